"""Snapshots beside the log, and trimming behind them (rule 18).

The state is written in slices between commits, so that no step holds the event loop; the `Snapshot` record names the parts and
the position from which commits are replayed over them.  Trims come only after an acknowledged record that allows them, so a
late or repeated trim, also a zombie's, does no harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from mielin_cells.errors import described, never
from mielin_cells.log.commit import Commit
from mielin_cells.log.fold import Fold, snapshot_fields
from mielin_cells.log.ids import inbox_subject, log_subject, part_prefix, part_subject
from mielin_cells.log.inboxes.lines import NORMAL
from mielin_cells.log.ledger import Ledger
from mielin_cells.log.records import PartRef, Snapshot, SnapshotRef
from mielin_cells.node.activation.context import NodeContext
from mielin_cells.node.activation.writer import Follow
from mielin_cells.settings import SNAPSHOTS_KEPT
from mielin_cells.substrate import parts

logger = logging.getLogger("mielin_cells.compaction")

SMALL_BYTES = 64 * 1024
"""A state up to this size is put into the Snapshot record itself."""

WORTH = 8
"""A snapshot costs as much as the state is large, so it waits until an eighth of that was appended.  The cost of a turn stays
proportional to what the turn changed, and a load replays little beside what it reads."""

PART_NAME_BYTES = 8

PAUSE_S = 10.0
"""A snapshot that failed is tried again after this time, and not with each commit."""

START = SnapshotRef(0, 0, 0, "", 0.0)
"""Stands for the beginning of a log, which needs no snapshot."""

KEPT_IN_RETENTION = 8
"""So many snapshots are kept within the retention.  The log is there; they only shorten what an undo reads of it."""


def still_needed(
    snapshots: list[SnapshotRef], handovers: Collection[int], now: float, retention_s: float
) -> list[SnapshotRef]:
    """Of the snapshots so far: the last before the oldest handover that can be undone, some behind it, and the newest.

    A handover can be undone until a snapshot behind it is as old as the retention.  What nobody can go back to is not kept: an agent
    that never moves would otherwise keep an hour of its messages.  A snapshot of a later time than `now` was made by a clock that was
    ahead: it counts as made now, so that nothing is kept for as long as the clock was wrong by.
    """
    snapshots = [one if one.at <= now else msgspec.structs.replace(one, at=now) for one in snapshots or [START]]
    while len(snapshots) >= SNAPSHOTS_KEPT:
        first, second = snapshots[0], snapshots[1]
        if second.at > now - retention_s and any(first.seq <= seq < second.seq for seq in handovers):
            break
        snapshots = snapshots[1:]
    spaced = [snapshots[0]]
    for one in snapshots[1:-1]:
        if one.at >= spaced[-1].at + retention_s / KEPT_IN_RETENTION:
            spaced.append(one)
        elif (
            one.inbox < spaced[-1].inbox
        ):  # an undo went back; what can be gone back to behind it is loaded from the one before
            spaced[-1] = msgspec.structs.replace(spaced[-1], inbox=one.inbox)
    return spaced + snapshots[1:][-1:]


class Captured(NamedTuple):
    """State and ledger as of the commit that is being composed, for the Snapshot right behind it."""

    ledger: Ledger
    small: bytes | None
    digest: bytes


class Owner(Protocol):
    """What snapshots need of the agent that they are of."""

    @property
    def home(self) -> NodeContext: ...

    @property
    def fold(self) -> Fold: ...

    def commit_soon(self) -> None: ...


class Snapshots:
    """When and how the snapshots of one agent are written."""

    __slots__ = ("_captured", "_name", "_not_before", "_owner", "_parts", "_passed_over", "_since", "_task", "is_ready")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._task: asyncio.Task[Any] | None = None
        self._name = ""
        self._not_before = 0.0
        """By the loop's clock: no snapshot is begun before, since one has failed."""
        self._parts: list[PartRef] | None = None
        self._since = 0
        self._captured: Captured | None = None
        self._passed_over: Sequence[str] = ()
        """Parts of the snapshots that the newest record does not name any more."""
        self.is_ready = False
        """The slices are written; the record can follow the next commit."""

    @property
    def is_busy(self) -> bool:
        """True while one is written, or waits for the next commit."""
        return self._task is not None or self.is_ready

    async def written(self) -> None:
        """Returns when the slices are written, or have failed."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def consider(self) -> None:
        """Called after each commit: begins a snapshot when enough has been appended since the last."""
        settings, fold = self._owner.home.settings, self._owner.fold
        appended, size = fold.behind_bytes, fold.size_bytes
        many = fold.behind_records >= settings.snapshot_records and appended >= size // WORTH
        if many or (appended >= settings.snapshot_bytes and appended >= size):
            self.begin()

    def begin(self) -> None:
        """Writes a snapshot now, unless one is being written."""
        if self._task is None and not self.is_ready and asyncio.get_running_loop().time() >= self._not_before:
            self._task = self._owner.home.start(self._write())

    async def _write(self) -> None:
        owner = self._owner
        try:
            self._since, self._parts, state = owner.fold.seq, None, owner.fold.state
            if state.size_bytes > SMALL_BYTES:
                self._name = owner.home.rng.randbytes(PART_NAME_BYTES).hex()
                subject = part_subject(owner.fold.agent, self._name)
                self._parts = list(await parts.put_parts(owner.home.log, subject, state.slices()))
            self.is_ready = True
        except Exception as error:  # of whatever kind: a snapshot only shortens what is read
            self._not_before = asyncio.get_running_loop().time() + PAUSE_S
            logger.warning(
                "agent %s: writing its snapshot failed; trying again later: %s", owner.fold.agent, described(error)
            )
        finally:
            self._task = None
        owner.commit_soon()

    def capture(self, commit: Commit) -> None:
        """Called when a commit is composed: state and ledger are exactly as after it."""
        self._captured = None
        if self.is_ready:
            fold = self._owner.fold
            small = fold.state.encode_small() if self._parts is None else None
            self._captured = Captured(fold.ledger.copy(), small, commit.digest)

    def follow(self) -> Follow | None:
        """Right after that commit, under the writer's lock: the snapshot, if it was captured."""
        return self.compose if self._captured is not None else None

    def compose(self, head: dict[str, Any]) -> Snapshot:
        owner, fold, captured = self._owner, self._owner.fold, self._captured
        if captured is None:
            raise never("captured is not None does not hold")
        now = owner.home.wall()
        in_parts = self._parts is not None
        record = Snapshot(
            **head, **snapshot_fields(fold), ledger=captured.ledger, part=self._name if in_parts else "",
            parts=self._parts or [], small=captured.small, since=self._since if in_parts else head["prev"],
            digest=captured.digest, snapshots=self._keep(now), at=now,
        )  # fmt: skip
        self._captured, self._parts, self.is_ready = None, None, False
        return record

    def _keep(self, now: float) -> list[SnapshotRef]:
        fold = self._owner.fold
        needed = still_needed(fold.snapshots, fold.handed.values(), now, self._owner.home.settings.retention_s)
        parts = {one.part for one in needed}
        self._passed_over = [one.part for one in fold.snapshots if one.part and one.part not in parts]
        return needed

    async def trim(self) -> None:
        """Removes what the newest acknowledged snapshot no longer needs.  If the store does not answer, a later trim does it."""
        try:
            await self._trim()
        except Exception as error:  # whatever the store raises: the next trim removes what is left
            logger.info(
                "agent %s: trimming its log failed; trying again later: %s", self._owner.fold.agent, described(error)
            )

    async def _trim(self) -> None:
        owner = self._owner
        first, log, agent = owner.fold.snapshots[0], owner.home.log, owner.fold.agent
        names = {snapshot.part for snapshot in owner.fold.snapshots}
        await log.trim(log_subject(agent), first.since + 1)
        for priority in (NORMAL, *(owner.fold.ledger.inboxes or ())):
            await log.trim(inbox_subject(agent, priority), owner.fold.inbox_kept_from(priority))
        passed_over = {part_subject(agent, part) for part in self._passed_over}
        for subject, last in await log.subjects(part_prefix(agent)):
            if subject in passed_over or (subject.removeprefix(part_prefix(agent)) not in names and last < first.since):
                await log.trim(subject, last + 1)
