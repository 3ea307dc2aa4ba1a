"""Quarantines agents whose logs have lost acknowledged records.

A log only grows, and a trim never takes its last record.  So if a log ends before a sequence that a node has seen, or lacks an
acknowledged record above its oldest one, the store lost its tail or was put back to an older copy.  The node that remembers more
appends two records to the agent's log, `Claimed` and `Failed`: the agent is in ERROR on every node until an operator resumes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from mielin_cells.errors import OF_STORE, QUARANTINED, CellError, EpochRegression, Fenced, NoSuchAgent, described
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import inbox_subject, log_subject
from mielin_cells.log.inboxes.lines import NORMAL
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import Claimed
from mielin_cells.node.activation.writer import append_failed
from mielin_cells.settings import RETRY_S_MAX
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Entry, Log
from mielin_cells.tasks.supervision import Backoff

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation, Activations
    from mielin_cells.node.activation.inbox import Inbox
    from mielin_cells.node.ownership.standby import Standbys

logger = logging.getLogger("mielin_cells.quarantine")


Find: TypeAlias = Callable[[], Awaitable[EpochRegression | None]]


async def find_regression(log: Log, agent: str, seq: int) -> EpochRegression | None:
    """The error if the agent's log lost the record at `seq`, which it held; None if the record is there, or was trimmed."""
    subject = log_subject(agent)
    last = await log.last(subject)
    end = last.seq if last is not None else 0
    if end == seq:
        return None
    if end > seq:
        entries = await log.read(subject, seq - 1, 1)
        if not entries or entries[0].seq == seq:
            return None
        oldest = await log.read(subject, 0, 1)
        if not oldest or oldest[0].seq > seq:
            return None
    what = "is gone" if not end else f"ends at {end}" if end < seq else f"goes on to {end} without it"
    return EpochRegression(
        f"The log of agent {agent!r} held record {seq} and {what}: the store lost acknowledged records, or was put back to an older "
        f"copy. The agent is quarantined and runs nothing. Restore the newer store, or accept the loss: `mielin resume {agent}`.",
        agent=agent, have=end, need=seq,
    )  # fmt: skip


async def find_inbox_regression(log: Log, agent: str, cursor: int, priority: str = NORMAL) -> EpochRegression | None:
    """The error if the agent's inbox ends before what its log has taken from it; None if not, or if it is empty (trimmed)."""
    last = await log.last(inbox_subject(agent, priority))
    if last is None or last.seq >= cursor:
        return None
    return EpochRegression(
        f"The inbox of agent {agent!r} ends at {last.seq}, and its log has taken messages up to {cursor}: the store lost "
        "acknowledged messages. The agent is quarantined and runs nothing. Restore the newer store, or accept the loss: "
        f"`mielin resume {agent}`.", agent=agent, have=last.seq, need=cursor,
    )  # fmt: skip


class Quarantine:
    """Checks logs that contradict what this node remembers, and quarantines their agents."""

    def __init__(self, activations: Activations, standbys: Standbys) -> None:
        self._activations = activations
        self._standbys = standbys
        self.seen: dict[str, int] = {}
        """By agent, the last sequence of its log that this node has seen."""
        self._checking: set[str] = set()
        self._went_back = False
        """True once the store has gone back during this node's life."""

    def __contains__(self, agent: object) -> bool:
        """True while the agent's log is checked: this node does not take the agent meanwhile."""
        return agent in self._checking

    def acknowledged(self) -> dict[str, int]:
        """By agent, the sequence that its activation or standby copy here is at.  To be called before the logs are listed."""
        positions = {agent: copy.fold.seq for agent, copy in self._standbys.copies.items() if copy.fold is not None}
        positions.update({agent: activation.fold.seq for agent, activation in self._activations.live.items()})
        positions.update({agent: sleeper.seq for agent, sleeper in self._activations.asleep.items()})
        return positions

    def is_behind(self, agent: str, seq: int, acknowledged: int = 0) -> bool:
        """True if the log ends before what this node has seen; then the agent is checked."""
        seen = max(self.seen.get(agent, 0), acknowledged)
        if seq < seen:
            self.suspect(agent, seen)
        return seq < seen

    async def check_all(self, missing: Mapping[str, int]) -> None:
        """Checks agents whose logs were not there when they were looked for; by agent, the sequence that this node knows of.

        Once the store has gone back, it checks inboxes too: one that ends before what its agent has taken would have new messages
        passed over.
        """
        if self._went_back:
            inboxes = {
                inbox_subject(agent, inbox.priority): (inbox, inbox.place.cursor)
                for agent, activation in self._activations.live.items()
                if not is_quarantined(activation.fold)
                for inbox in activation.inbox.all()
            }
            for subject, last in (await self._activations.home.log.lasts(list(inboxes))).items():
                inbox, cursor = inboxes[subject]
                if last.seq < cursor:
                    self.check(inbox.agent, partial(_find_passed_over, self._activations.home.log, inbox))
            asleep = {
                inbox_subject(agent, priority): (agent, cursor, priority)
                for agent, sleeper in self._activations.asleep.items()
                for priority, cursor in ((NORMAL, sleeper.cursor), *sleeper.cursors)
            }
            for subject, last in (await self._activations.home.log.lasts(list(asleep))).items():
                agent, cursor, priority = asleep[subject]
                if last.seq < cursor:
                    self.check(
                        agent, partial(find_inbox_regression, self._activations.home.log, agent, cursor, priority)
                    )
        for agent, known in missing.items():
            self.suspect(agent, known)

    def lost(self, agent: str, seq: int) -> None:
        """An activation that was at `seq` may not go on: either another node took the agent, or the log has lost records."""
        self.seen[agent] = max(seq, self.seen.get(agent, 0))
        self.suspect(agent, seq)

    def suspect(self, agent: str, seq: int) -> None:
        self.check(agent, lambda: find_regression(self._activations.home.log, agent, seq))

    def check(self, agent: str, find: Find) -> None:
        """Quarantines the agent if `find` gives an error for `regression_s`; then its log is read again."""
        if agent not in self._checking and not self._activations.is_stopping:
            self._checking.add(agent)
            self._activations.home.begin(self._check(agent, find))

    async def _check(self, agent: str, find: Find) -> None:
        activations = self._activations
        try:
            error = await self._confirm(find)
            if error is not None:
                logger.error("node %s: %s", activations.name, error)
                self._went_back = True
                activation = activations.live.get(agent)
                if activation is not None:
                    activation.lose(error)
                activations.forget(agent)
                self.seen.pop(agent, None)
                await self._quarantine(agent, error)
        finally:
            self._checking.discard(agent)
        activations.look(agent)

    async def _confirm(self, find: Find) -> EpochRegression | None:
        """The error, if it persists for `regression_s`: a leader that was cut off may serve old data for some seconds."""
        loop, limit = asyncio.get_running_loop(), self._activations.settings.regression_s
        since: float | None = None
        unheard = Backoff(RETRY_S_MAX / 10)
        while True:
            try:
                error = await find()
                if error is None:
                    return None
                since = loop.time() if since is None else since
                if loop.time() - since >= limit:
                    return error
                unheard.reset()
            except Exception as silent:  # whatever the store raises: not heard is not denied
                since = None
                logger.info(
                    "node %s: checking a log that went back failed; trying again: %s",
                    self._activations.name,
                    described(silent),
                )
                await unheard.wait()
            else:
                await asyncio.sleep(min(limit / 4, RETRY_S_MAX))

    async def _quarantine(self, agent: str, error: EpochRegression) -> None:
        """Writes the quarantine to the log; tries again until that succeeds, or shows operators why it cannot."""
        activations, backoff = self._activations, Backoff()
        while True:
            try:
                fold = await load(activations.home.log, agent)
                if fold.phase is not Phase.TERMINATED and not is_quarantined(fold):
                    writer = activations.writer(fold)
                    await writer.append(lambda head: Claimed(**head, cause="quarantined", waits=False), claim=True)
                    await append_failed(writer, error)
                return
            except Fenced as race:
                logger.info("agent %s: the quarantine met another record; trying again: %s", agent, race)
            except NoSuchAgent:
                activations.cannot_run(agent, None, error)
                return
            except Exception as absent:
                if isinstance(absent, CellError) and not isinstance(absent, OF_STORE):
                    error = EpochRegression(f"{error.message} {absent.message}", **error.facts)
                    activations.cannot_run(agent, None, error)
                    return
                logger.info("agent %s: the quarantine failed; trying again: %s", agent, described(absent))
                await backoff.wait()

    def check_inbox(self, fold: Fold, last: Entry | None, priority: str = NORMAL) -> None:
        """Raises `Fenced` if the inbox ends before what its agent has taken; then the agent is checked."""
        agent, cursor = fold.agent, fold.ledger.place(priority).cursor
        if last is not None and last.seq < cursor:
            self.check(agent, lambda: find_inbox_regression(self._activations.home.log, agent, cursor, priority))
            raise Fenced(f"Agent {agent!r} is being checked by {self._activations.name}; ask again.", agent=agent)

    def check_new(self, agent: str) -> None:
        """Raises `EpochRegression` for an agent that this node remembers, and the store does not."""
        info = self._activations.unloadable.get(agent)
        if info is not None and info.code == EpochRegression.__name__:
            raise EpochRegression(info.error, agent=agent)


def is_quarantined(fold: Fold) -> bool:
    error = fold.lifecycle.error or fold.lifecycle.left
    return error is not None and error.code in QUARANTINED


async def _find_passed_over(log: Log, inbox: Inbox) -> EpochRegression | None:
    """Compares with the present cursor, since an operator may have accepted the loss meanwhile."""
    return await find_inbox_regression(log, inbox.agent, inbox.place.cursor, inbox.priority)


async def accept_loss(activation: Activation) -> bool:
    """Before a resume: True if an inbox ends before its cursor, and the agent must be opened anew to read it from its beginning.

    Messages that were taken before are known by their numbers, wherever they are.
    """
    is_lost = False
    for inbox in list(activation.inbox.all()):
        last = await activation.home.log.settled(inbox_subject(inbox.agent, inbox.priority))
        if last is not None and last.seq >= inbox.place.cursor:
            continue
        if inbox.priority != NORMAL and not inbox.place.cursor:
            continue
        inbox.place.cursor = 0
        inbox.place.held.clear()
        activation.batch.held = True
        if inbox.priority != NORMAL:
            inbox.note(activation.batch)
        is_lost = True
    if is_lost:
        activation.touch()
        await activation.flush()
    return is_lost
