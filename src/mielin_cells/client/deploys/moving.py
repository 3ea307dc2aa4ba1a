"""Moves the agents of a deploy to new nodes, and back to old ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from math import ceil

import msgspec
from blake3 import blake3

from mielin_cells.client.client import Client
from mielin_cells.client.deploys.tries import Failure, Tries, failure_of_error, failure_of_move
from mielin_cells.client.moves import plan_move, watch_move
from mielin_cells.client.operator import Operator
from mielin_cells.client.undo import undo_move
from mielin_cells.errors import (
    AgentInError,
    AgentTerminated,
    AlreadyThere,
    BadArguments,
    CellError,
    Fenced,
    NoSuchHandler,
    RetryError,
    StateTooNew,
)
from mielin_cells.log.commit import DeadLetter
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import AgentState, Phase
from mielin_cells.log.records import named_owner
from mielin_cells.membership.members import Status
from mielin_cells.migration.journal import migration_of
from mielin_cells.policy.deploys.events import AnyEvent, Began, Failed, Moved, TakenBack
from mielin_cells.policy.deploys.machine import MoveAgents
from mielin_cells.rpc import requests
from mielin_cells.store import journal
from mielin_cells.store.letters import letter_id
from mielin_cells.store.reader import list_owned, load, load_at, read_ends
from mielin_cells.tasks.together import together

MOVES = 16
"""Moves at the same time."""

REST_S = 0.5
"""Between two rounds, and behind a try that does not count."""

SHOWN = 20
"""Agents that are named in an event."""

NAMED = 3
"""Agents that are named in the sentence which says why a deploy failed."""

REFUSALS = frozenset({NoSuchHandler.__name__, BadArguments.__name__})
"""Causes of dead letters whose messages the code has refused without a try."""

RECOVERY = {
    "max_retries": 0.0, "initial_retry_delay_secs": 0.25, "max_retry_delay_secs": 2.0, "recovery_timeout_secs": 30.0,
    "auto_rollback": 1.0,
}  # fmt: skip
"""An agent that cannot be moved goes on where it runs.  A retry would try other nodes as well; this one is tried again later."""


def migration_prefix(deploy: str) -> str:
    """What the ids of all moves of a deploy begin with; by it an undo finds them in the agents' logs."""
    return f"m-{deploy.removeprefix('d-')}"


def order_of(deploy: str, agent: str) -> bytes:
    """Which agents a deploy moves first: in an order that is another one for each deploy, and the same for each driver."""
    return blake3(f"{deploy}\0{agent}".encode()).digest(16)


def is_of_code(letter: DeadLetter) -> bool:
    """True if other code may handle the letter's message: its turn failed, or the code has no such handler or parameters.

    What is late, came too often or is not wanted any more has nothing to do with the code.  Nor have letters that are no message:
    a gap of a topic, a wait without a value.  Sent to the handler that they name they would be taken for messages.
    """
    return bool(letter.handler and (letter.tries or letter.cause.partition(":")[0] in REFUSALS))


class Moving:
    """Of one deploy."""

    def __init__(self, client: Client, began: Began, say: Callable[[int, int], None]) -> None:
        """`say` is called with how many agents have moved, and of how many."""
        self._client = client
        self._began = began
        self._say = say
        self._tries = Tries()
        self._back_here, self._finished = set[str](), set[str]()
        """The agents that this driver has moved back, and those for which all that follows is done."""

    # ---- who is where ----------------------------------------------------------------------------------------

    async def owned(self, nodes: Iterable[str]) -> list[str]:
        """The agents that their logs give to these nodes.  The newest may be missing."""
        nodes, hinted = set(nodes), set[str]()
        for node in sorted(nodes):
            hinted.update(await list_owned(self._client.log, node))
        ends = await read_ends(self._client.log, sorted(hinted))
        return [end.agent for end in ends if named_owner(end.record) in nodes]

    async def serving(self, nodes: Iterable[str]) -> dict[str, int]:
        """Those of the nodes that serve and are not about to stop, with their incarnations."""
        table = await self._client.members.read_to_end()
        found = ((name, table.get(name)) for name in nodes)
        return {
            name: one.incarnation
            for name, one in found
            if one is not None and one.status is Status.SERVING and not one.is_leaving
        }

    async def _choose(self, agent: str, nodes: list[str]) -> tuple[str, int]:
        """One node after the other, with its incarnation.  Raises `RetryError` if none of them serves."""
        able = await self.serving(nodes)
        if not able:
            raise RetryError(f"None of {', '.join(nodes)} serves.")
        target = self._tries.choose(agent, list(able))
        return target, able[target]

    # ---- to new nodes ----------------------------------------------------------------------------------------

    async def move(self, effect: MoveAgents) -> AnyEvent:
        """Moves what the stage asks for; the event says how many moved, or which could not and why."""
        tries, moved = self._tries, 0
        while todo := list(filter(tries.may, chosen := await self._chosen(effect))):
            before = moved

            async def one(agent: str) -> None:
                nonlocal moved
                if await self._tried(agent, self._move(agent, self._began.new), tries):
                    moved += 1
                self._say(moved, len(todo))

            await _some_at_a_time(one, todo)
            if moved == before:  # all failed, or a replica that lags still shows them where they were
                await asyncio.sleep(REST_S)
        if chosen:  # all that are left have failed too often
            return Failed(
                deploy=self._began.deploy, why=_why_not_moved({agent: tries.failure(agent) for agent in chosen})
            )
        return Moved(deploy=self._began.deploy, stage=effect.stage, agents=moved)

    async def _tried(self, agent: str, work: Awaitable[Failure | bool], tries: Tries) -> bool:
        """True if the agent moved; if it failed to, the failure is kept."""
        try:
            became = await work
        except CellError as error:
            became = failure_of_error(error)
        if isinstance(became, bool):
            tries.succeeded(agent)
            return became
        tries.failed(agent, became, asyncio.get_running_loop().time())
        if became.passes:
            await asyncio.sleep(REST_S)
        return False

    async def _chosen(self, effect: MoveAgents) -> list[str]:
        """The agents on old nodes that are to move now."""
        here, there = await self.owned(self._began.old), await self.owned(self._began.new)
        if effect.where:
            found = self._client.find_named(None, effect.where, None, None)
            wanted = {one.id async for one in found}
            return [agent for agent in here if agent in wanted]
        every = sorted({*here, *there}, key=lambda agent: order_of(self._began.deploy, agent))
        first = every[: ceil(len(every) * effect.percent / 100)]
        chosen = set(first).intersection(here)
        return [agent for agent in every if agent in chosen]

    async def _move(self, agent: str, nodes: list[str]) -> Failure | bool:
        """True if the agent moved, False if it need not, else why it did not."""
        target, incarnation = await self._choose(agent, nodes)
        try:
            request, source = await plan_move(self._client, agent, target)
            if source in nodes:
                return False
            name = migration_prefix(self._began.deploy) + self._client.rng.randbytes(5).hex()
            request = msgspec.structs.replace(request, migration=name, recovery=RECOVERY)
            report = await watch_move(self._client, request, source)
        except (AlreadyThere, AgentTerminated):
            return False
        except CellError as error:
            return failure_of_error(error, target)
        if report.ok and report.target in nodes:
            return True
        return failure_of_move(report, (await self.serving([target])).get(target) == incarnation)

    # ---- back to old nodes -----------------------------------------------------------------------------------

    async def take_back(self) -> TakenBack:
        """Takes every agent of new nodes back to old ones, with what follows from it, or says what is left and why."""
        began, tries = self._began, self._tries
        counts = {"moved": 0, "rewound": 0, "replayed": 0}
        table = await self._client.members.read_to_end()
        had = dict[str, int]()
        for old in began.old:
            had.update(((known := table.get(old)) is not None and known.about.classes) or {})
        while todo := list(filter(tries.may, still := await self.owned(began.new))):
            before = counts["moved"] + counts["rewound"]

            async def one(agent: str) -> None:
                await self._tried(agent, self._back(agent, had, counts), tries)
                self._say(counts["moved"] + counts["rewound"], len(todo))

            await _some_at_a_time(one, todo)
            if counts["moved"] + counts["rewound"] == before:
                await asyncio.sleep(REST_S)
        stuck = await self._finish_all(counts)
        stuck.update({agent: failure.why for agent in still if (failure := tries.failure(agent)) is not None})
        return TakenBack(
            deploy=began.deploy, moved=counts["moved"], rewound=counts["rewound"], replayed=counts["replayed"],
            stuck=sorted(stuck.items())[:SHOWN], stay=len(stuck),
        )  # fmt: skip

    async def _back(self, agent: str, had: dict[str, int], counts: dict[str, int]) -> Failure | bool:
        """As `_move`."""
        fold = await load(self._client.log, agent)
        if fold.owner not in self._began.new or fold.phase is Phase.TERMINATED:
            return False
        is_newer = fold.version > had.get(fold.cls, 0)
        first = self._first_move(fold)
        if first and (is_newer or self._began.rewinds):
            return await self._undo(agent, first, counts)
        if is_newer:
            why = (
                f"its state is of {fold.cls} version {fold.version}, which old nodes cannot load, and this deploy did not move it "
                "here: it was created or taken over in the new code"
            )
            return Failure(why, StateTooNew.__name__, passes=False)
        became = await self._move(agent, self._began.old)
        if became is True:
            counts["moved"] += 1
            self._back_here.add(agent)
            with contextlib.suppress(CellError):  # `_finish_all` tries this again, and says what keeps failing
                await self._finish(agent, counts)
        return became

    async def _undo(self, agent: str, first: str, counts: dict[str, int]) -> Failure | bool:
        target, _ = await self._choose(agent, self._began.old)
        try:
            report = await undo_move(self._client, first, target, agent=agent)
        except CellError as error:
            return failure_of_error(error, target)
        counts["rewound"] += 1
        # It is undone; until the node claims it, the log may still give it to the new one.
        return Failure(report.trouble, "ClaimRefused", passes=True, target=target) if report.trouble else True

    def _first_move(self, fold: Fold) -> str:
        """The first move of this deploy that the agent's state still comes from; "" if there is none."""
        prefix = migration_prefix(self._began.deploy)
        mine = [
            (seq, attempt) for attempt, seq in fold.handed.items()
            if attempt.startswith(prefix) and fold.outcomes.get(attempt) == "completed" and fold.is_ancestor(seq)
        ]  # fmt: skip
        return migration_of(min(mine)[1]) if mine else ""

    # ---- what follows once they are back ---------------------------------------------------------------------

    async def _finish_all(self, counts: dict[str, int]) -> dict[str, str]:
        """Does what follows for all agents that are back, and returns those for which it fails, each with the reason.

        An error, or the death of the driver, may come between an agent's move back and what follows, and nothing would ever look
        at the agent again.  So all are looked at that a move of this deploy concerned.
        """
        tries, todo = Tries(), list[str]()
        while todo := list(filter(tries.may, left := await self._unfinished())):
            before = len(self._finished)
            await _some_at_a_time(lambda agent: self._tried(agent, self._finish(agent, counts), tries), todo)
            if len(self._finished) == before:
                await asyncio.sleep(REST_S)
        return {
            agent: f"it is back, but what follows failed (see `mielin show {agent}` and `mielin dead {agent}`): {failure.why}"
            for agent in left if (failure := tries.failure(agent)) is not None
        }  # fmt: skip

    async def _unfinished(self) -> list[str]:
        """The agents on old nodes that moves of this deploy concern, besides those that are done with."""
        prefix = migration_prefix(self._began.deploy)
        concerned = {agent for agent, name in await journal.listed(self._client.log) if name.startswith(prefix)}
        ends = await read_ends(self._client.log, sorted(concerned - self._finished))
        found = {end.agent for end in ends if named_owner(end.record) in self._began.old}
        return sorted(found | (self._back_here - self._finished))

    async def _finish(self, agent: str, counts: dict[str, int]) -> Failure | bool:
        """What follows once an agent is back; safe to repeat.  A rewound agent has its messages again, and may have to be resumed."""
        fold, prefix = await load(self._client.log, agent), migration_prefix(self._began.deploy)
        if fold.phase is not Phase.TERMINATED:
            if fold.owner in self._began.new:
                return Failure(f"it is on {fold.owner} again, or the log is read late", Fenced.__name__, passes=True)
            gone = [
                seq for attempt, seq in fold.handed.items()
                if attempt.startswith(prefix) and fold.outcomes.get(attempt) == "completed"
            ]  # fmt: skip
            undone = [to for to, by in fold.undone if any(to <= seq < by for seq in gone)]
            if undone and fold.lifecycle.state is AgentState.ERROR:
                then = await load_at(self._client.log, fold, undone[-1])
                if then.lifecycle.state is AgentState.RUNNING:  # else it was in ERROR before the deploy
                    state = await self._client.send_to_owner(agent, requests.Order(agent, "resume"))
                    if state == AgentState.ERROR.value:
                        return Failure(f"it is in ERROR at {fold.owner}", AgentInError.__name__, passes=False)
            elif gone and not undone:
                await self._replay(fold, counts)
        self._finished.add(agent)
        return True

    async def _replay(self, fold: Fold, counts: dict[str, int]) -> None:
        """Sends the messages again that became dead letters since the deploy began because the code failed or refused them."""
        for letter in fold.ledger.dead:
            if letter.at >= self._began.at and is_of_code(letter):
                await Operator(self._client).replay(fold.agent, letter_id(fold.agent, letter))
                counts["replayed"] += 1


def _why_not_moved(failures: dict[str, Failure | None]) -> str:
    """`failures` are not empty; a few of them are named, each with the code of its cause."""
    known = {agent: failure for agent, failure in sorted(failures.items()) if failure is not None}
    named = "; ".join(f"{agent}: {one.why} ({one.code})" for agent, one in list(known.items())[:NAMED])
    more = f" (and {len(known) - NAMED} more)" if len(known) > NAMED else ""
    count = "1 agent" if len(known) == 1 else f"{len(known)} agents"
    return f"{count} could not be moved to new nodes: {named}{more}"


async def _some_at_a_time(work: Callable[[str], Awaitable[object]], agents: list[str]) -> None:
    queue = iter(agents)

    async def worker() -> None:
        for agent in queue:
            await work(agent)

    await together(worker() for _ in range(MOVES))
