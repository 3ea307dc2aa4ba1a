"""A log that says less than it had acknowledged: found by who remembers more, and the agent is parked.

A log only grows, and a trim never takes its last record.  So a last sequence below one that was seen, or an acknowledged record that
is missing above the oldest one, means that the store lost its tail or was put back to an older copy.  Parked is an agent by two
records of its own log, `Claimed` and `Failed`: it is in ERROR wherever it goes, until an operator resumes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from mielin_cells.errors import OF_STORE, PARKED, CellError, EpochRegression, Fenced, NoSuchAgent, described
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import inbox_subject, log_subject
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import Claimed
from mielin_cells.node.activation.writer import append_failed
from mielin_cells.settings import RETRY_S_MAX
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Entry, Log
from mielin_cells.tasks.supervision import Backoff

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation
    from mielin_cells.node.activation.activations import Activations
    from mielin_cells.node.ownership.standby import Standbys

logger = logging.getLogger("mielin_cells.parking")


Check: TypeAlias = Callable[[], Awaitable[EpochRegression | None]]


async def regression(log: Log, agent: str, seq: int) -> EpochRegression | None:
    """What is wrong if the agent's log no longer holds the record at `seq`, which it held; None if it does, or if that was trimmed."""
    subject = log_subject(agent)
    last = await log.last(subject)
    end = last.seq if last is not None else 0
    if end == seq:
        return None
    if end > seq:
        found = await log.read(subject, seq - 1, 1)
        if not found or found[0].seq == seq:
            return None
        oldest = await log.read(subject, 0, 1)
        if not oldest or oldest[0].seq > seq:
            return None
    what = "is gone" if not end else f"ends at {end}" if end < seq else f"goes on to {end} without it"
    return EpochRegression(
        f"The log of agent {agent!r} held record {seq} and {what}: the store lost acknowledged records, or was put back to an "
        f"older copy. The agent is parked and runs nothing. Restore the newer store, or accept the loss: `mielin resume {agent}`.",
        agent=agent, have=end, need=seq,
    )  # fmt: skip


async def inbox_regression(log: Log, agent: str, cursor: int) -> EpochRegression | None:
    """What is wrong if the agent's inbox ends before what its log has taken from it; None if not, or if it is empty (trimmed)."""
    last = await log.last(inbox_subject(agent))
    if last is None or last.seq >= cursor:
        return None
    return EpochRegression(
        f"The inbox of agent {agent!r} ends at {last.seq}, and its log has taken messages up to {cursor}: the store lost "
        "acknowledged messages. The agent is parked and runs nothing. Restore the newer store, or accept the loss: "
        f"`mielin resume {agent}`.", agent=agent, have=last.seq, need=cursor,
    )  # fmt: skip


class Quarantine:
    """Of one node: looks into what its memory and a log contradict each other about."""

    def __init__(self, activations: Activations, standbys: Standbys) -> None:
        self._activations = activations
        self._standbys = standbys
        self.seen: dict[str, int] = {}
        """By agent, the last sequence of its log that this node has seen."""
        self._open: set[str] = set()
        self._went_back = False
        """The store has gone back once while this node lived."""

    def __contains__(self, agent: object) -> bool:
        """True while the agent is looked into: this node does not take it meanwhile."""
        return agent in self._open

    def acknowledged(self) -> dict[str, int]:
        """How far this node's activations and copies know their agents' logs to go; asked before the logs are."""
        known = {agent: copy.fold.seq for agent, copy in self._standbys.copies.items() if copy.fold is not None}
        known.update({agent: activation.fold.seq for agent, activation in self._activations.live.items()})
        return known

    def is_behind(self, agent: str, seq: int, acknowledged: int = 0) -> bool:
        """True, and the agent is looked into, if its log says less than this node has seen of it before."""
        known = max(self.seen.get(agent, 0), acknowledged)
        if seq < known:
            self.suspect(agent, known)
        return seq < known

    async def look(self, listed: Container[str], acknowledged: dict[str, int]) -> None:
        """Looks into agents whose logs were there and are not listed any more; and, once the store has gone back, into those whose
        inboxes end before what they have taken: what comes there would be passed over."""
        if self._went_back:
            inboxes = {
                inbox_subject(agent): activation
                for agent, activation in self._activations.live.items()
                if not is_parked(activation.fold)
            }
            taken = {subject: activation.fold.ledger.cursor for subject, activation in inboxes.items()}
            for subject, seq in await self._activations.home.log.subjects(inbox_subject("")):
                if seq < taken.get(subject, 0):
                    self.look_into(inboxes[subject].fold.agent, partial(_passed_over, inboxes[subject]))
        for agent, known in {**self.seen, **acknowledged}.items():
            if agent not in listed:
                self.suspect(agent, known)

    def lost(self, agent: str, seq: int) -> None:
        """An activation of this node that was at `seq` may not go on: has another node taken over, or has the log forgotten it?"""
        self.seen[agent] = max(seq, self.seen.get(agent, 0))
        self.suspect(agent, seq)

    def suspect(self, agent: str, seq: int) -> None:
        self.look_into(agent, lambda: regression(self._activations.home.log, agent, seq))

    def look_into(self, agent: str, check: Check) -> None:
        """Parks the agent if `check` finds an error, and goes on finding it for `regression_s`; then the log is looked at."""
        if agent not in self._open and not self._activations.is_stopping:
            self._open.add(agent)
            self._activations.home.begin(self._look_into(agent, check))

    async def _look_into(self, agent: str, check: Check) -> None:
        activations = self._activations
        try:
            error = await self._confirmed(check)
            if error is not None:
                logger.error("node %s: %s", activations.name, error)
                self._went_back = True
                activation = activations.live.get(agent)
                if activation is not None:
                    activation.lose(error)
                self.seen.pop(agent, None)
                await self._park(agent, error)
        finally:
            self._open.discard(agent)
        activations.look(agent)

    async def _confirmed(self, check: Check) -> EpochRegression | None:
        """Of a cluster, a leader that was cut off may answer for some seconds with what it had."""
        loop, limit = asyncio.get_running_loop(), self._activations.settings.regression_s
        since: float | None = None
        unheard = Backoff(RETRY_S_MAX / 10)
        while True:
            try:
                error = await check()
                if error is None:
                    return None
                since = loop.time() if since is None else since
                if loop.time() - since >= limit:
                    return error
                unheard.reset()
            except Exception as silent:  # whatever the store raises: not heard is not denied
                since = None
                logger.info("node %s looks again: %s", self._activations.name, described(silent))
                await unheard.wait()
            else:
                await asyncio.sleep(min(limit / 4, RETRY_S_MAX))

    async def _park(self, agent: str, error: EpochRegression) -> None:
        """Until the log says so, or this node shows why it cannot."""
        activations, backoff = self._activations, Backoff()
        while True:
            try:
                fold = await load(activations.home.log, agent)
                if fold.phase is not Phase.TERMINATED and not is_parked(fold):
                    writer = activations.writer(fold)
                    await writer.append(lambda head: Claimed(**head, cause="parked", waits=False), claim=True)
                    await append_failed(writer, error)
                return
            except Fenced as race:
                logger.info("agent %s is parked again: %s", agent, race)
            except NoSuchAgent:
                activations.cannot_run(agent, None, error)
                return
            except Exception as absent:
                if isinstance(absent, CellError) and not isinstance(absent, OF_STORE):
                    error = EpochRegression(f"{error.message} {absent.message}", **error.facts)
                    activations.cannot_run(agent, None, error)
                    return
                logger.info("agent %s is parked later: %s", agent, described(absent))
                await backoff.wait()

    def check_inbox(self, fold: Fold, last: Entry | None) -> None:
        """Raises `Fenced`, and the agent is looked into, if its inbox ends before what its log has taken."""
        agent, cursor = fold.agent, fold.ledger.cursor
        if last is not None and last.seq < cursor:
            self.look_into(agent, lambda: inbox_regression(self._activations.home.log, agent, cursor))
            raise Fenced(f"Agent {agent!r} is being looked into by {self._activations.name}; ask again.", agent=agent)

    def check_new(self, agent: str) -> None:
        """Raises `EpochRegression` for an agent that this node remembers, and the store does not."""
        found = self._activations.unloadable.get(agent)
        if found is not None and found.code == EpochRegression.__name__:
            raise EpochRegression(found.error, agent=agent)


def is_parked(fold: Fold) -> bool:
    error = fold.lifecycle.error or fold.lifecycle.left
    return error is not None and error.code in PARKED


async def _passed_over(activation: Activation) -> EpochRegression | None:
    """As its cursor is now: an operator may have accepted the loss meanwhile."""
    return await inbox_regression(activation.home.log, activation.fold.agent, activation.fold.ledger.cursor)


async def accepted(activation: Activation) -> bool:
    """Before a resume: if the inbox that is there ends before the cursor, it is to be read from its beginning, and True is given: the
    agent must be opened anew for that.  What was taken before is known by its number, whatever its place."""
    ledger = activation.fold.ledger
    last = await activation.home.log.settled(inbox_subject(activation.fold.agent))
    if last is not None and last.seq >= ledger.cursor:
        return False
    ledger.cursor = 0
    ledger.held.clear()
    activation.batch.held = True
    activation.touch()
    await activation.flush()
    return True
