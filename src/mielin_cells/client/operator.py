"""Operations on a deployment without its classes at hand, by names, ids and words."""

from __future__ import annotations

import difflib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import msgspec

from mielin_cells.agents.context import CallOptions
from mielin_cells.agents.reports import AgentInfo, CallInfo, MigrationReport, NodeInfo, TimerInfo
from mielin_cells.client.calls import Words
from mielin_cells.client.client import Client
from mielin_cells.client.moves import plan_move, watch_move
from mielin_cells.client.requester import REQUEST_S
from mielin_cells.client.status import (
    class_of,
    describe_agents,
    describe_fold,
    describe_nodes,
)
from mielin_cells.errors import (
    AgentTerminated,
    CellError,
    ClaimRefused,
    InvalidAgentId,
    NoResponder,
    NoSuchAgent,
    NoSuchMigration,
    RecordInvalid,
    RetryError,
    UnknownClass,
    UsageError,
    WrongClass,
)
from mielin_cells.log.ids import AgentId, log_subject
from mielin_cells.log.inboxes.lines import NORMAL
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import AnyRecord, HandedOff, Record, decode_record
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import Prediction, Progress
from mielin_cells.rpc.pages import EVERY, Which
from mielin_cells.store import journal
from mielin_cells.store.family import Branch, read_tree
from mielin_cells.store.letters import Letter, describe_letter, letter_id, read_letters
from mielin_cells.store.reader import list_owned_by_others, load, read_record

CALL_ID = re.compile(r"[0-9]+\.\S+")
"""What the id of a call looks like."""

T = TypeVar("T")

WATCH_S = 0.1
"""Wait between two reads of a shown migration."""

READ_RECORDS = 256

NEAREST = 3
"""How many existing names are suggested for one that does not exist."""


class Operator:
    """Over a client that is open."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.log = client.log

    # ---- calls -----------------------------------------------------------------------------------------------

    async def spawn(self, cls: str, id: str, words: list[str], on: str | None = None) -> tuple[str, bool]:
        """Creates the agent; returns its node, and whether it is new.  An existing agent of this class is not changed.

        Raises `WrongClass`, `AgentTerminated`, `UnknownClass`, `UnknownNode`, `BadArguments`.
        """
        agent = str(AgentId(id))
        if await self.log.last(log_subject(agent)) is not None:
            have = await class_of(self.client, agent)
            if have != cls:
                raise WrongClass(f"Agent {agent!r} exists and is a {have}.", agent=agent, have=have, need=cls)
            return (await self.client.owner(agent))[0], False
        place = on or await self._place_for(cls)
        await self.client.send_to(place, await self._request(place, requests.ReadState(agent, cls, words)))
        return place, True

    async def _place_for(self, cls: str) -> str:
        """The node with the fewest agents among those that know the class, as the table of members says."""
        nodes = (await self.client.members.read()).infos()
        able = [node for node in nodes if cls in node.classes and not node.is_cordoned]
        if not nodes:
            raise NoResponder("No node answers; start one with `mielin node` or `mielin up`.")
        if not able:
            classes = sorted({name for node in nodes for name in node.classes})
            raise UnknownClass(
                f"No node that takes agents knows the class {cls!r}; they know {', '.join(classes) or 'none'}.",
                name=cls,
            )
        return await self.client.choose_node(cls)

    async def _request(self, node: str, request: requests.Request[T]) -> T:
        """The node's answer.  Raises `UnknownNode` if there is none of this name, and what the request raises there."""
        try:
            return await self.client.request(node, request, REQUEST_S)
        except NoResponder as error:
            await self.client.check_node(node)
            raise NoResponder(f"Node {node} does not answer; see `mielin nodes`.", node=node) from error

    async def ask(
        self, agent: str, handler: str, words: list[str], timeout: float | None = None,
        deadline: float | None = None, key: str | None = None, priority: str = NORMAL,
    ) -> Any:  # fmt: skip
        """The handler's result, as plain data."""
        cls, args = await self._encode(agent, handler, words)
        options = _options(deadline, key, priority)
        session = self.client.session(agent, options=options)
        return await session.ask(cls, Words(handler, args), (), {}, timeout, None, options)

    async def tell(
        self, agent: str, handler: str, words: list[str], deadline: float | None = None, key: str | None = None,
        priority: str = NORMAL,
    ) -> None:  # fmt: skip
        """Returns when the message is stored."""
        cls, args = await self._encode(agent, handler, words)
        options = _options(deadline, key, priority)
        await self.client.session(agent, options=options).tell(cls, handler, args, options)

    async def _encode(self, agent: str, handler: str, words: list[str]) -> tuple[str, bytes]:
        """The agent's class, and the words as arguments: its owner encodes them, or another node that knows the class."""
        agent = str(AgentId(agent))
        cls = await class_of(self.client, agent)
        owner, _ = await self.client.owner(agent)
        error: Exception | None = None
        for node in [owner, *(one.name for one in (await self.client.members.read()).infos() if one.name != owner)]:
            try:
                return cls, await self.client.request(node, requests.ReadArguments(cls, handler, words), REQUEST_S)
            except UnknownClass as refusal:
                error = refusal
            except RetryError as silence:
                error = error or silence
        if isinstance(error, UnknownClass):
            raise error
        raise NoResponder(
            f"No node answers that knows the class {cls} of agent {agent!r}; nothing was sent.", agent=agent
        ) from error

    # ---- what there is ---------------------------------------------------------------------------------------

    async def agents(
        self, node: str | None = None, which: Which = EVERY, after: str = "", limit: int | None = None
    ) -> list[AgentInfo]:
        """The agents that have not ended, by id: as their nodes describe them, or, if none runs one, as its log does.

        `node`: only the agents of that node.  `after`, `limit`: only the first of those whose ids come after it.
        """
        return await describe_agents(self.client, self.log, node, which, after, limit)

    async def tree(self, agent: str | None) -> list[Branch]:
        """The agent with all that it has spawned; without one, each agent that has children and no parent that is there."""
        if agent is not None:
            return [await read_tree(self.log, agent)]
        infos = {info.id: info for info in await self.agents()}
        tops = [info.id for info in infos.values() if info.children and info.parent not in infos]
        return [await read_tree(self.log, one) for one in tops]

    async def nodes(self) -> list[NodeInfo]:
        """Every node of the table of members, by name, as the leader of failover hears it."""
        return await describe_nodes(self.client)

    async def look_at_nodes(self) -> list[NodeInfo]:
        """As `nodes`, and each node that answers says itself what it measures and moves now."""
        return await describe_nodes(self.client, asks_all=True)

    async def show(self, thing: str) -> AgentInfo | NodeInfo:
        """The agent or node of this name.  If there is neither, raises `NoSuchMigration` for a migration's id, else `NoSuchAgent`."""
        if _is_id(thing) and await self.client.last_entry(thing) is not None:
            return await self._agent(thing)
        for node in await self.nodes():
            if node.name == thing:
                return node
        if thing.startswith("m-"):
            raise NoSuchMigration(f"There is no migration {thing}; see `mielin migrations`.", migration=thing)
        raise NoSuchAgent(f"There is no agent and no node {thing!r}; see `mielin agents`, `mielin nodes`.", agent=thing)

    async def _agent(self, agent: str) -> AgentInfo:
        try:
            owner, _ = await self.client.owner(agent)
            info = await self.client.request(owner, requests.ShowAgent(agent), REQUEST_S)
        except (RetryError, AgentTerminated):
            info = None
        return info or describe_fold(await load(self.log, agent))

    async def nearest(self, name: str) -> list[str]:
        """Agents and nodes, or migrations, of names like this one; the likeliest first."""
        if name.startswith("m-"):
            names = [migration for _, migration in await journal.listed(self.log)]
        else:
            names = await list_owned_by_others(self.log, ()) + sorted((await self.client.members.read()).members)
        starts = [one for one in names if name and one.startswith(name)][:NEAREST]
        return starts or difflib.get_close_matches(name, names, NEAREST)

    async def records(
        self, agent: str, after: int = 0, follow: bool = False
    ) -> AsyncIterator[tuple[int, int, AnyRecord | Record | RecordInvalid]]:
        """Each record of the agent's log: sequence, bytes, and the record or why it cannot be read."""
        agent = str(AgentId(agent))
        if await self.client.last_entry(agent) is None:
            raise NoSuchAgent(f"There is no agent {agent!r} in this deployment.", agent=agent)
        at = after
        while entries := await self.log.read(log_subject(agent), at, READ_RECORDS):
            for entry in entries:
                yield entry.seq, len(entry.data), _record(agent, entry.seq, entry.data)
            at = entries[-1].seq
        if not follow:
            return
        tail = self.log.tail(log_subject(agent), at)
        try:
            async for batch in tail:
                for entry in batch:
                    yield entry.seq, len(entry.data), _record(agent, entry.seq, entry.data)
        finally:
            tail.close()

    # ---- moves -----------------------------------------------------------------------------------------------

    async def predict(self, agent: str, to: str | None) -> Prediction:
        """What a move would take, and every reason against it now.  Raises as `plan_move`."""
        _, source = await plan_move(self.client, agent, to)
        return await self._request(source, requests.Predict(str(AgentId(agent)), to or ""))

    async def predicted(self, agent: str, to: str | None) -> Prediction | None:
        """As `predict`, for an optional comparison: None if the prediction fails."""
        try:
            return await self.predict(agent, to)
        except CellError:
            return None

    async def watch(self, request: requests.Migrate, source: str, seen: Callable[[Progress], None]) -> MigrationReport:
        """Moves the agent and waits; `seen` gets the progress.  A refusal is in the report."""
        return await watch_move(self.client, msgspec.structs.replace(request, wait=WATCH_S), source, seen)

    async def begin(
        self, agent: str, to: str | None, recovery: dict[str, float] | None = None
    ) -> tuple[requests.Migrate, str, str]:
        """Has the source begin the move without waiting for its end; returns the move, source and target.

        Raises what keeps it from beginning.
        """
        request, source = await plan_move(self.client, agent, to)
        request = msgspec.structs.replace(request, wait=0.0, recovery=recovery)
        return request, source, (await self._request(source, request)).target

    async def claim(self, agent: str, to: str, force: bool) -> str:
        """Has node `to` take the agent over; returns the former owner.  Raises `ClaimRefused` while that answers, unless forced."""
        owner, epoch = await self.client.owner(agent)
        await self.client.check_node(to)
        if not force and owner != to:
            await self._check_gone(agent, owner, epoch, to)
        await self.client.claim(agent, to, force=force)
        return owner

    async def _check_gone(self, agent: str, owner: str, epoch: int, to: str) -> None:
        """Raises `ClaimRefused` if the owner answers and runs the agent, or verifies it."""
        try:
            info = await self.client.request(owner, requests.ShowAgent(agent), REQUEST_S)
        except RetryError:
            return
        if info is not None:
            does = f"runs agent {agent!r} (epoch {info.epoch}, {info.state})"
        else:
            last = await self.log.last(log_subject(agent))
            if last is None or not isinstance(await read_record(self.log, agent, last), HandedOff):
                return
            does = f"verifies agent {agent!r}, which was just moved to it (epoch {epoch})"
        raise ClaimRefused(
            f"{owner} answers and {does}; move it with `mielin migrate {agent} --to {to}`, or add --force: {owner} is then fenced, "
            "and nothing is lost.", agent=agent, node=owner,
        )  # fmt: skip

    # ---- timers and dead letters -----------------------------------------------------------------------------

    async def timers(self, agent: str) -> list[TimerInfo]:
        """The agent's timers, the next first; from its log if no node runs it."""
        agent = str(AgentId(agent))
        try:
            owner, _ = await self.client.owner(agent)
            return await self.client.request(owner, requests.ListTimers(agent), REQUEST_S)
        except (RetryError, AgentTerminated):
            timers = (await load(self.log, agent)).ledger.timers.values()
        plain = [
            TimerInfo(
                id=one.id, handler=one.handler, due=one.due, every=one.every, cron=f"{one.cron} {one.zone}".strip()
            )
            for one in timers
        ]
        return sorted(plain, key=lambda one: one.due)

    async def calls(self, agent: str) -> list[CallInfo]:
        """The agent's calls that have not taken effect, as its owner knows them."""
        return await self.client.send_to_owner(str(AgentId(agent)), requests.ListCalls(agent), REQUEST_S)

    async def cancel(self, agent: str, what: str) -> str:
        """Cancels a timer or, if there is none of this id, a call; says which."""
        if what not in [one.id for one in await self.timers(agent)] and CALL_ID.fullmatch(what):
            await self.client.cancel(agent, what)
            return "call"
        await self.cancel_timer(agent, what)
        return "timer"

    async def cancel_timer(self, agent: str, timer: str) -> None:
        """Raises `UsageError` if there is no such timer."""
        agent = str(AgentId(agent))
        timer_ids = [one.id for one in await self.timers(agent)]
        if timer not in timer_ids:
            shown = ", ".join(map(repr, timer_ids)) or "none"
            raise UsageError(
                f"Agent {agent!r} has no timer {timer!r}, and that is no id of a call; its timers are {shown}.",
                agent=agent,
            )
        request = requests.CancelTimer(agent, timer)
        await self.client.send_to_owner(agent, request, self.client.settings.turn_deadline_s)

    async def letters(self, agent: str) -> list[Letter]:
        _, dead = await read_letters(self.log, str(AgentId(agent)))
        return [describe_letter(agent, number, letter) for number, letter in enumerate(dead, 1)]

    def letter(self, agent: str, which: str, among: list[Letter]) -> Letter:
        """The dead letter with this number or id.  Raises `UsageError`."""
        return among[_index(agent, which, [one.id for one in among])]

    async def replay(self, agent: str, which: str) -> Letter:
        """Sends a dead letter's message again, as a new message, and removes the letter, which is returned.

        If the message fails again it is a new dead letter.  Its session is named after the letter, so that a replay
        repeated because its outcome was unknown takes effect once.
        """
        fold, dead = await read_letters(self.log, str(AgentId(agent)))
        index = _index(agent, which, [letter_id(agent, one) for one in dead])
        letter = dead[index]
        if fold.phase is Phase.TERMINATED:
            raise AgentTerminated(f"Agent {agent!r} has ended: its letters can be read, not replayed.", agent=agent)
        if not letter.handler:
            raise UsageError(f"Letter {which} of agent {agent!r} was never readable: it can only be purged.")
        session = self.client.session(agent, f"replay.{letter_id(agent, letter)}")
        await session.tell(fold.cls, letter.handler, letter.args)
        await self.client.send_to_owner(agent, requests.PurgeLetters(agent, [letter.key]))
        return describe_letter(agent, index + 1, letter)

    async def purge(self, agent: str, which: str | None) -> int:
        """Removes one dead letter, or all of them; returns how many."""
        fold, dead = await read_letters(self.log, str(AgentId(agent)))
        if fold.phase is Phase.TERMINATED:
            raise AgentTerminated(f"Agent {agent!r} has ended: its letters can be read, not purged.", agent=agent)
        if which is not None:
            dead = [dead[_index(agent, which, [letter_id(agent, one) for one in dead])]]
        if not dead:
            return 0
        return await self.client.send_to_owner(agent, requests.PurgeLetters(agent, [one.key for one in dead]))


def _options(deadline: float | None, key: str | None, priority: str) -> CallOptions | None:
    has_none = deadline is None and key is None and priority == NORMAL
    return None if has_none else CallOptions(deadline, key or "", priority)


def _index(agent: str, which: str, ids: list[str]) -> int:
    if which in ids:
        return ids.index(which)
    if which.isdecimal() and 1 <= int(which) <= len(ids):
        return int(which) - 1
    raise UsageError(
        f"Agent {agent!r} has no dead letter {which!r}; it has {len(ids)}: `mielin dead {agent}` lists them."
    )


def _is_id(text: str) -> bool:
    try:
        AgentId(text)
    except InvalidAgentId:
        return False
    return True


def _record(agent: str, seq: int, data: bytes) -> AnyRecord | RecordInvalid:
    try:
        return decode_record(data, f"The log of agent {agent!r} at {seq}")
    except RecordInvalid as error:
        return error
