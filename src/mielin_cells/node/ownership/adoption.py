"""Which agents a node should activation, and does not: it reads their logs and takes those that name it (rule 4).

An agent that cannot be taken is in `Activations.unloadable` with its reason.  It keeps neither the node from starting nor other
agents from running.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
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
from mielin_cells.store.reader import known_agents, load, record_of

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation
    from mielin_cells.node.activation.activations import Activations
    from mielin_cells.node.moves.admission import Copies
    from mielin_cells.node.moves.manager import Migrations
    from mielin_cells.node.ownership.claims import Claims
    from mielin_cells.node.ownership.quarantine import Quarantine
    from mielin_cells.node.ownership.returns import Returns
    from mielin_cells.node.ownership.undo import Undoes

logger = logging.getLogger("mielin_cells.node")

LOOK_SUBJECTS = 256
"""Subjects looked at before the loop gets its turn."""

ADOPTIONS_MAX = 32
"""Agents that a node takes over at the same time when it starts, and lets go when it stops."""

SLOW_S = 10.0
"""An adoption that takes longer, in a hook that hangs say, goes on and no longer keeps others waiting."""


REST_S_MAX = 300.0
"""The longest wait before an adoption that raised is tried again."""


class Adoption:
    """Of one node: `round` looks at every log, `look` at one."""

    def __init__(
        self, activations: Activations, copies: Copies, migrations: Migrations, quarantine: Quarantine, claims: Claims,
        undoes: Undoes, returns: Returns,
    ) -> None:  # fmt: skip
        self._activations = activations
        self._copies = copies
        self._migrations = migrations
        self._quarantine = quarantine
        self._claims = claims
        self._undoes = undoes
        self._returns = returns
        self._taking: dict[str, asyncio.Future[None]] = {}
        """Agents whose logs are read or that are taken over; done once that is over, or has proved slow."""
        self._slots = asyncio.Semaphore(ADOPTIONS_MAX)
        self.quiet: dict[str, int] = {}
        """Logs that were read and name another owner, with their last sequence then."""
        self._rests: dict[str, tuple[float, float]] = {}
        """Agents whose adoption failed in a way that nobody foresaw: how long rounds leave them alone, and until when."""

    def look(self, agent: str, error: Exception | None = None) -> None:
        """Reads who owns the agent, soon: the log may name this node.  `error` is what the store has failed with before."""
        if error is not None:
            self.failed(agent, error)
        if not self._activations.is_stopping and agent not in self._taking:
            self._begin(agent, self._until_known, contextlib.nullcontext())

    def failed(self, agent: str, error: Exception) -> None:
        """A call of the store for the agent has failed: it waits a little longer each time before it is read again."""
        self._returns.failed(agent, error)

    async def _until_known(self, agent: str) -> None:
        """Until the store has said whose the agent is, and has taken the claim if it is this node's."""
        activations = self._activations
        await self._returns.rest(agent)
        while not await self.take_named(agent) and not activations.is_stopping:
            self._lets_go(agent)
            await self._returns.rest(agent)

    def _begin(
        self,
        agent: str,
        work: Callable[[str], Coroutine[Any, Any, Any]],
        room: contextlib.AbstractAsyncContextManager[Any],
    ) -> None:
        self._taking[agent] = asyncio.get_running_loop().create_future()
        self._activations.home.begin(self._look(agent, work, room))

    async def _look(
        self,
        agent: str,
        work: Callable[[str], Coroutine[Any, Any, Any]],
        room: contextlib.AbstractAsyncContextManager[Any],
    ) -> None:
        try:
            async with room:
                taking = self._activations.home.start(work(agent))
                await asyncio.wait((taking, self._taking[agent]), timeout=SLOW_S, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done() and not self._taking[agent].done():
                logger.warning(
                    "node %s: taking agent %s over has lasted for %g s (its on_arrive may hang); others no longer wait for it",
                    self._activations.name, agent, SLOW_S,
                )  # fmt: skip
            self._lets_go(agent)
            await asyncio.wait((taking,))
        finally:
            self._lets_go(agent)
            del self._taking[agent]

    def _lets_go(self, agent: str) -> None:
        """No round waits for the agent any more."""
        if not self._taking[agent].done():
            self._taking[agent].set_result(None)

    # ---- rounds ----------------------------------------------------------------------------------------------

    async def round(self, every: bool = False) -> None:
        """Ownership is what the log says, not what this node remembers.

        A log that has moved since the last look has an owner that appends: it is looked at once it has been still for a
        round.  `every`: look at all of them, as at the start.
        """
        activations, still = self._activations, []
        acknowledged = self._quarantine.acknowledged()
        listed = await known_agents(activations.home.log)
        await self._quarantine.look(dict(listed), acknowledged)
        for count, (agent, seq) in enumerate(listed, 1):
            if self._quarantine.is_behind(agent, seq, acknowledged.get(agent, 0)):
                continue
            moved, self._quarantine.seen[agent] = self._quarantine.seen.get(agent) != seq, seq
            activation = activations.live.get(agent)
            if activation is not None and agent not in self._migrations.moves and seq > activation.fold.seq:
                await self._check(activation)
            elif (
                activation is None
                and agent not in self._copies.by_agent
                and self.quiet.get(agent) != seq
                and (every or not moved)
            ):
                still.append(agent)
            if count % LOOK_SUBJECTS == 0:
                await asyncio.sleep(0)
        for start in range(0, len(still), LOOK_SUBJECTS):
            await self._take_all(await self._maybe_ours(still[start : start + LOOK_SUBJECTS]))

    async def _take_all(self, agents: list[str]) -> None:
        """Some at a time.  Returns when each is taken, has failed, or has proved slow."""
        for agent in agents:
            if agent not in self._taking and not self._activations.is_stopping and not self._is_resting(agent):
                self._begin(agent, self.take_named, self._slots)
        waits = [self._taking[agent] for agent in agents if agent in self._taking]
        if waits:
            await asyncio.wait(waits)

    def _is_resting(self, agent: str) -> bool:
        return agent in self._rests and self._activations.clock() < self._rests[agent][1]

    async def _maybe_ours(self, agents: list[str]) -> list[str]:
        """All but those whose logs name another node, read at least as far as they were listed: many cost hardly more than one."""
        activations, by_subject, others = self._activations, {log_subject(agent): agent for agent in agents}, set[str]()
        try:
            found = await activations.home.log.lasts(list(by_subject))
        except CellError as error:
            logger.info("node %s looks at agents one by one: %s", activations.name, error)
            return agents
        for subject, last in found.items():
            agent = by_subject[subject]
            if self._claims.is_underway(agent) or last.seq < self._quarantine.seen.get(agent, last.seq + 1):
                continue
            with contextlib.suppress(RecordInvalid):  # whoever looks at it alone says so
                record = decode_record(last.data, f"The log of agent {agent!r} at {last.seq}")
                if not isinstance(record, Spilled) and named_owner(record) != activations.name:
                    others.add(agent)
                    self._others(agent, last.seq, record)
        return [agent for agent in agents if agent not in others]

    def _others(self, agent: str, seq: int, record: AnyRecord) -> None:
        """Its log names another node up to `seq`, where it ended when it was read, or nobody: then a former process of this node
        may have been the last, and have died before it had written the end of a migration."""
        self.quiet[agent] = seq
        was_here = record.node == self._activations.name and record.incarnation != self._activations.home.incarnation
        if isinstance(record, Terminated) and was_here:
            self._migrations.settle_soon(agent, 0.0)
        self._returns.gone(agent)
        self._activations.can_run(agent)

    async def _check(self, activation: Activation) -> None:
        """The log is ahead of an activation: its own append may just be landing, or it has lost the agent."""
        activations, agent = self._activations, activation.fold.agent
        last = await activations.home.log.last(log_subject(agent))
        if last is None or last.seq <= activation.fold.seq:
            return
        try:
            record = await record_of(activations.home.log, agent, last)
        except RecordInvalid as error:
            activation.lose(error)  # whatever it is: no append of this activation can follow it
            return
        mine = record.node == activations.name and record.incarnation == activations.home.incarnation
        if not mine and activations.live.get(agent) is activation and agent not in self._migrations.moves:
            activation.lose(Fenced(f"Agent {agent!r} has another owner now.", agent=agent))

    # ---- one agent -------------------------------------------------------------------------------------------

    async def take_named(self, agent: str) -> bool:
        """Runs the agent if its log names this node: by a claim, or in probation by verifying (rules 4, 5, 8).

        False if the store has not let this be found out or done: it is to be tried again.  Raises nothing: what else keeps the
        agent from running is its own trouble.
        """
        activations = self._activations
        if (
            agent in activations.live
            or agent in self._copies.by_agent
            or self._claims.is_underway(agent)
            or activations.is_stopping
        ):
            return True
        fold: Fold | None = None
        try:
            last = await activations.home.log.last(log_subject(agent))
            if last is None or self._quarantine.is_behind(agent, last.seq):
                return True
            record = await record_of(activations.home.log, agent, last)  # also of a handover that is in parts
            if named_owner(record) != activations.name:
                self._others(agent, last.seq, record)
                return True
            fold = await load(activations.home.log, agent)
            if (
                fold.owner != activations.name
                or agent in activations.live
                or agent in self._copies.by_agent
                or activations.is_starting(agent)
            ):
                return True
            if fold.phase is Phase.PROBATION:
                await self._copies.verify(fold, record if isinstance(record, HandedOff) else None)
            elif fold.phase is Phase.RUN and fold.goes_to not in ("", activations.name):
                await self._undoes.pass_on(fold)
            elif fold.phase is Phase.RUN:
                await self._claims.take(fold, "restarted")
        except (Fenced, NoSuchAgent):
            return True
        except RetryError as error:
            logger.info("node %s looks at agent %s again later: %s", activations.name, agent, error)
            return not self._returns.failed(agent, error)
        except Exception as error:  # also a bug, of ours or of the agent's class: it is this agent's trouble alone
            return self._is_troubled(agent, fold, error)
        activations.can_run(agent)
        self._rests.pop(agent, None)
        self._returns.taken(agent)
        return True

    def _is_troubled(self, agent: str, fold: Fold | None, error: Exception) -> bool:
        """Notes why the agent does not run; False if that is to be tried again soon."""
        activations = self._activations
        if agent in activations.live:  # it has come here meanwhile, by a move
            return True
        why = error if isinstance(error, CellError) else InternalError(described(error), agent=agent)
        before = activations.unloadable.get(agent)
        activations.cannot_run(agent, fold, why)
        if before is None or before.error != why.message:  # once: it is tried again in later rounds
            logger.error(
                "node %s cannot take agent %s, which stays claimable: %s", activations.name, agent, why,
                exc_info=None if why is error else error,
            )  # fmt: skip
        if why is error:
            return not self._returns.failed(agent, error)
        seconds, _ = self._rests.get(agent, (activations.settings.reconcile_s / 2, 0.0))
        seconds = min(seconds * 2, REST_S_MAX)  # what failed may have claimed first: not a claim in every round
        self._rests[agent] = seconds, activations.clock() + seconds
        return True

    async def take_again(self, agent: str) -> str:
        """Tries once more to run an agent that did not load; its state then.  Raises `StateUnloadable` with the reason."""
        activations = self._activations
        self._returns.wake(agent)
        await self.take_named(agent)
        activation = activations.live.get(agent)
        if activation is None:
            found = activations.unloadable.get(agent)
            reason = found.error if found is not None else "its log names another node"
            raise StateUnloadable(f"Agent {agent!r} still cannot run on {activations.name}: {reason}", agent=agent)
        return activation.fold.lifecycle.state.value
