"""Takes agents that the log gives to this node and that do not run here (rule 4); `rounds` finds them.

An agent that cannot be taken is in `Activations.unloadable` with its reason.  It keeps neither the node from starting nor other
agents from running.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from mielin_cells.errors import (
    CellError,
    Fenced,
    InternalError,
    NoSuchAgent,
    RecordInvalid,
    RetryError,
    StateUnloadable,
    described,
)
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import AnyRecord, HandedOff, Spilled, Terminated, decode_record, named_owner
from mielin_cells.node.ownership.claims import SLOW_S
from mielin_cells.settings import TAKES_MAX
from mielin_cells.store.reader import Hold, load_behind, read_record, read_small_ends
from mielin_cells.substrate.ports import Entry

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation, Activations
    from mielin_cells.node.moves.admission import Copies
    from mielin_cells.node.moves.manager import Migrations
    from mielin_cells.node.ownership.claims import Claims
    from mielin_cells.node.ownership.quarantine import Quarantine
    from mielin_cells.node.ownership.returns import Returns
    from mielin_cells.node.ownership.undo import Undoes

logger = logging.getLogger("mielin_cells.node")

LOOK_SUBJECTS = 256
"""Subjects processed before other tasks run."""

REST_S_MAX = 300.0
"""The longest wait before an adoption that raised is tried again."""


class Adoption:
    """`look` at one log, `take_all` those that do not name another node."""

    def __init__(
        self, activations: Activations, copies: Copies, migrations: Migrations, quarantine: Quarantine, claims: Claims,
        undoes: Undoes, returns: Returns,
    ) -> None:  # fmt: skip
        self._activations = activations
        self._home = activations.home
        self._copies = copies
        self._migrations = migrations
        self._quarantine = quarantine
        self._claims = claims
        self._undoes = undoes
        self._returns = returns
        self._taking: dict[str, asyncio.Future[None]] = {}
        """Agents that are being read or taken over; the future is done once that is over or has proved slow."""
        self._slots = asyncio.Semaphore(TAKES_MAX)
        self.quiet: dict[str, int] = {}
        """Logs that name another owner, with their last sequence when they were read."""
        self._rests: dict[str, tuple[float, float]] = {}
        """Agents whose adoption failed unexpectedly: how long rounds leave them alone, and until when."""

    def look(self, agent: str, error: Exception | None = None) -> None:
        """Reads soon who owns the agent, since the log may name this node; waits longer after each error of the store."""
        if error is not None:
            self._returns.failed(agent, error)
        sleeper = self._activations.asleep.get(agent)
        if sleeper is not None:
            sleeper.stir()  # it reads the log, too
            return
        if not self._activations.is_stopping and agent not in self._taking:
            self._begin(agent, self._take_until_known, contextlib.nullcontext())

    def take_hinted(self, agent: str) -> None:
        """A record in the agent's log may name this node: its log is read when there is a place.

        An agent that cannot run here, or whose adoption failed, is left to the rounds: this node's own claim is a hint, too, and
        would have it claimed without end.
        """
        is_known = self.is_here(agent) or agent in self._taking or self._claims.is_underway(agent)
        is_failing = agent in self._rests or agent in self._activations.unloadable
        if not (is_known or is_failing or self._activations.is_stopping):
            self._begin(agent, self._take_until_known, self._slots)

    async def _take_until_known(self, agent: str) -> None:
        """Tries until the store says who owns the agent and, if this node does, has accepted the claim."""
        await self._returns.rest(agent)
        while not await self.take_named(agent) and not self._activations.is_stopping:
            self._release_waiters(agent)
            await self._returns.rest(agent)

    def _begin(
        self,
        agent: str,
        work: Callable[[str], Coroutine[Any, Any, Any]],
        slot: contextlib.AbstractAsyncContextManager[Any],
    ) -> None:
        self._taking[agent] = asyncio.get_running_loop().create_future()
        self._home.begin(self._watch(agent, work, slot))

    async def _watch(
        self,
        agent: str,
        work: Callable[[str], Coroutine[Any, Any, Any]],
        slot: contextlib.AbstractAsyncContextManager[Any],
    ) -> None:
        try:
            async with slot:
                taking = self._home.start(work(agent))
                await asyncio.wait((taking, self._taking[agent]), timeout=SLOW_S, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done() and not self._taking[agent].done():
                logger.warning(
                    "node %s: taking agent %s over has lasted for %g s (its on_arrive may hang); others no longer wait for it",
                    self._home.name, agent, SLOW_S,
                )  # fmt: skip
            self._release_waiters(agent)
            await asyncio.wait((taking,))
        finally:
            self._release_waiters(agent)
            del self._taking[agent]

    def _release_waiters(self, agent: str) -> None:
        """Lets rounds continue without this agent."""
        if not self._taking[agent].done():
            self._taking[agent].set_result(None)

    # ---- several agents ---------------------------------------------------------------------------------------

    async def take_all(self, agents: list[str]) -> None:
        """Takes agents, some at a time, without those whose logs name another node.

        Returns when each is taken, has failed, or has proved slow.
        """
        for start in range(0, len(agents), LOOK_SUBJECTS):
            some = agents[start : start + LOOK_SUBJECTS]
            ends = await read_small_ends(self._home.log, some)
            others = self._others(ends)
            await self._take_some([agent for agent in some if agent not in others], ends)

    async def _take_some(self, agents: list[str], ends: dict[str, Entry]) -> None:
        for agent in agents:
            if agent not in self._taking and not self._activations.is_stopping and not self._is_resting(agent):
                self._begin(agent, partial(self.take_named, end=ends.get(agent)), self._slots)
        waits = [self._taking[agent] for agent in agents if agent in self._taking]
        if waits:
            await asyncio.wait(waits)

    def _is_resting(self, agent: str) -> bool:
        return agent in self._rests and self._activations.clock() < self._rests[agent][1]

    def _others(self, ends: Mapping[str, Entry]) -> set[str]:
        """Those of the agents whose last entries, read at least as far as they were listed, name another node."""
        others = set[str]()
        for agent, last in ends.items():
            if self._claims.is_underway(agent) or last.seq < self._quarantine.seen.get(agent, last.seq + 1):
                continue
            with contextlib.suppress(RecordInvalid):  # taking the agent alone says so
                record = decode_record(last.data, f"The log of agent {agent!r} at {last.seq}")
                if not isinstance(record, Spilled) and named_owner(record) != self._home.name:
                    others.add(agent)
                    self._note_other(agent, last.seq, record)
        return others

    def _note_other(self, agent: str, seq: int, record: AnyRecord) -> None:
        """The last record, at `seq`, names another node, or nobody.

        If a former process of this node ended the agent, that process may have died before it wrote the end of a migration.
        """
        self.quiet[agent] = seq
        was_here = record.node == self._home.name and record.incarnation != self._home.incarnation
        if isinstance(record, Terminated) and was_here:
            self._migrations.settle_soon(agent, 0.0)
        self._returns.gone(agent)
        self._activations.can_run(agent)

    async def drop_if_lost(self, activation: Activation) -> None:
        """The log is ahead of an activation: either its own append is just landing, or it has lost the agent."""
        home, agent = self._home, activation.fold.agent
        last = await home.log.last(log_subject(agent))
        if last is None or last.seq <= activation.fold.seq:
            return
        try:
            record = await read_record(home.log, agent, last)
        except RecordInvalid as error:
            activation.lose(error)  # whatever the record is: this activation cannot append behind it
            return
        is_own = record.node == home.name and record.incarnation == home.incarnation
        if (
            not is_own
            and self._activations.live.get(agent) is activation
            and agent not in self._migrations.attempts.moves
        ):
            activation.lose(Fenced(f"Agent {agent!r} has another owner now.", agent=agent))

    # ---- one agent -------------------------------------------------------------------------------------------

    def is_here(self, agent: str) -> bool:
        return self._activations.owns(agent) or agent in self._copies.by_agent

    def may_be_here(self, agent: str, seq: int) -> bool:
        """True unless the agent is here, or its log named another node in its last record, `seq`."""
        return not self.is_here(agent) and self.quiet.get(agent) != seq

    async def take_named(self, agent: str, end: Entry | None = None) -> bool:
        """Takes the agent if its log names this node: by a claim, or in probation by verifying (rules 4, 5, 8).

        `end` is the last entry of its log, if it was just read, perhaps from a replica that is behind: the claim is refused then.

        False if the store did not let this be found out or done: it is to be tried again.  Raises nothing: whatever else keeps the
        agent from running concerns this agent alone.
        """
        if self.is_here(agent) or self._claims.is_underway(agent) or self._activations.is_stopping:
            return True
        async with self._claims.places.place() as place:
            if self.is_here(agent) or self._claims.is_underway(agent) or self._activations.is_stopping:
                return True  # meanwhile
            return await self._take_named(agent, end, place.hold)

    async def _take_named(self, agent: str, end: Entry | None, hold: Hold) -> bool:
        home, fold = self._home, None
        try:
            last = end if self._names_here(agent, end) else await home.log.last(log_subject(agent))
            if last is None or self._quarantine.is_behind(agent, last.seq):
                return True
            record = await read_record(home.log, agent, last)  # also of a handover that is in parts
            if named_owner(record) != home.name:
                self._note_other(agent, last.seq, record)
                return True
            fold = await load_behind(home.log, agent, last, hold)
            if fold.owner != home.name or self.is_here(agent) or self._activations.is_starting(agent):
                return True
            if fold.phase is Phase.PROBATION:
                await self._copies.verify(fold, record if isinstance(record, HandedOff) else None)
            elif fold.phase is Phase.RUN and fold.goes_to not in ("", home.name):
                await self._undoes.pass_on(fold)
            elif fold.phase is Phase.RUN:
                await self._claims.take(fold, "restarted")
        except (Fenced, NoSuchAgent):
            return end is None or await self._take_named(
                agent, None, hold
            )  # else it may have been fenced by what `end` hides
        except RetryError as error:
            logger.info("node %s: taking agent %s failed; trying again later: %s", home.name, agent, error)
            return not self._returns.failed(agent, error)
        except Exception as error:  # also a bug, of ours or of the agent's class
            return self._note_failure(agent, fold, error)
        self._activations.can_run(agent)
        self._rests.pop(agent, None)
        self._returns.taken(agent)
        return True

    def _names_here(self, agent: str, end: Entry | None) -> bool:
        """True if a last entry that may be stale names this node; whatever else it says is for the leader to confirm."""
        if end is None or end.seq < self._quarantine.seen.get(agent, 0):
            return False
        try:
            return named_owner(decode_record(end.data, f"The log of agent {agent!r} at {end.seq}")) == self._home.name
        except RecordInvalid:
            return False

    def _note_failure(self, agent: str, fold: Fold | None, error: Exception) -> bool:
        """Shows why the agent does not run; False if taking it is to be tried again soon."""
        activations = self._activations
        if agent in activations.live:  # a move has brought it here meanwhile
            return True
        why = error if isinstance(error, CellError) else InternalError(described(error), agent=agent)
        before = activations.unloadable.get(agent)
        activations.cannot_run(agent, fold, why)
        if before is None or before.error != why.message:  # once: later rounds try it again
            logger.error(
                "node %s cannot take agent %s, which other nodes can still claim: %s", self._home.name, agent, why,
                exc_info=None if why is error else error,
            )  # fmt: skip
        if why is error:
            return not self._returns.failed(agent, error)
        seconds, _ = self._rests.get(agent, (activations.settings.reconcile_s / 2, 0.0))
        seconds = min(seconds * 2, REST_S_MAX)  # the failure may come behind a claim: not a claim in every round
        self._rests[agent] = seconds, activations.clock() + seconds
        return True

    async def take_again(self, agent: str) -> None:
        """Tries once more to run an agent that did not load.  Raises `StateUnloadable` with the reason if it still does not."""
        self._returns.wake(agent)
        await self.take_named(agent)
        if agent not in self._activations.live:
            info = self._activations.unloadable.get(agent)
            reason = info.error if info is not None else "its log names another node"
            raise StateUnloadable(f"Agent {agent!r} still cannot run on {self._home.name}: {reason}", agent=agent)
