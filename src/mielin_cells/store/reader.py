"""Reading an agent's log: entries to records to a fold, from the newest snapshot on (rule 19)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import NamedTuple, TypeAlias

from mielin_cells.errors import (
    CellError,
    JournalGap,
    LogGap,
    NoSuchAgent,
    PartMissing,
    RecordInvalid,
    RollbackExpired,
    StateUnloadable,
)
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import LOGS, agent_of, log_subject, part_subject
from mielin_cells.log.records import AnyRecord, Committed, HandedOff, Snapshot, Spilled, decode_record
from mielin_cells.log.state import StoredState
from mielin_cells.substrate import parts
from mielin_cells.substrate.ports import Entry, Log, Source
from mielin_cells.substrate.retry import whole

logger = logging.getLogger("mielin_cells.reader")

LOAD_TRIES = 8
"""A load starts over when its snapshot is trimmed under it; each new snapshot may do that once."""

READ_RECORDS = 32
"""Records of a large agent that are in memory at the same time."""

READ_RECORDS_SMALL = 512
"""Of an agent whose state is small, all that follow a snapshot: they are read from the last one back (`Log.read`), once."""

BACK_RECORDS = 3
"""Records that are read one by one, from the end of a log back; a log with more is read in batches."""

SLICE_RECORDS = 64
SLICE_BYTES = 512 * 1024
"""Other tasks run after this many records or bytes: folding takes about 0.1 ms a record and 10 ms a MiB."""


SMALL_END_BYTES = 16 * 1024
"""A last entry that is kept until its agent is loaded."""

Hold: TypeAlias = Callable[[int], Awaitable[None]]
"""Called with the bytes of an agent's state before they are read; returns when there is room for them."""


class Seen(NamedTuple):
    """The end of an agent's log as it was read a moment ago: its sequence, and that of the newest snapshot (0: none)."""

    seq: int
    snap: int


async def list_agents(log: Log) -> list[tuple[str, int]]:
    """Every agent that has a log, with the log's last sequence; agents that have ended are among them."""
    return _agents_of(await log.subjects(LOGS))


async def list_owned(log: Log, node: str, source: Source = "index") -> list[str]:
    """Agents that have a record that names the node: a hint (`Log.owned`).

    With "settled index" it has all that the logs had at the call, unless the index has lost an entry: the list that must show
    nothing before a node's name may be given up.
    """
    return [agent for agent, _ in _agents_of((subject, 0) for subject in await log.owned(node, source))]


async def list_owned_by_others(log: Log, nodes: Collection[str]) -> list[str]:
    """Agents that have a record that names another node than these, by the logs' names; in order (`Log.owned_by_others`)."""
    return sorted(agent for agent, _ in _agents_of((subject, 0) for subject in await log.owned_by_others(nodes)))


def _agents_of(subjects: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    agents = []
    for subject, seq in subjects:
        with contextlib.suppress(UnicodeDecodeError):  # else nobody's log: no agent id makes this subject
            agents.append((agent_of(subject), seq))
    return agents


class End(NamedTuple):
    """The last record of an agent's log."""

    agent: str
    record: AnyRecord
    seen: Seen


async def read_ends(log: Log, agents: Iterable[str]) -> list[End]:
    """The ends of the agents' logs, without those whose last record cannot be read.  They may be stale."""
    by_subject, result = {log_subject(agent): agent for agent in agents}, list[End]()
    for count, (subject, last) in enumerate((await log.lasts(list(by_subject))).items(), 1):
        if count % SLICE_RECORDS == 0:
            await asyncio.sleep(0)
        agent = by_subject[subject]
        try:
            record = await read_record(log, agent, last)
        except RecordInvalid as error:
            logger.warning("agent %s has no readable owner: %s", agent, error)
            continue
        result.append(End(agent, record, _seen(last, record)))
    return result


def _seen(last: Entry, record: AnyRecord) -> Seen:
    return Seen(last.seq, last.seq if isinstance(record, Snapshot) else record.snap)


async def read_small_ends(log: Log, agents: Iterable[str]) -> dict[str, Entry]:
    """The last entries of the agents' logs that are small, read together.  They may be stale, and are empty if the store fails.

    They are kept until each agent is loaded, so large ones are left to be read again then.
    """
    by_subject = {log_subject(agent): agent for agent in agents}
    try:
        lasts = await log.lasts(list(by_subject))
    except CellError as error:
        logger.info("reading the last records of agents together failed; reading them one by one: %s", error)
        return {}
    return {by_subject[subject]: last for subject, last in lasts.items() if len(last.data) <= SMALL_END_BYTES}


async def read_record(log: Log, agent: str, entry: Entry) -> AnyRecord:
    """The record that an entry holds, or stands for if it was too large for one entry."""
    where = f"The log of agent {agent!r} at {entry.seq}"
    try:
        record = decode_record(entry.data, where)
    except RecordInvalid:  # perhaps only on its way to us
        record = await whole(log, log_subject(agent), entry, lambda data: decode_record(data, where))
    if not isinstance(record, Spilled):
        return record
    data = await parts.get_parts(log, part_subject(agent, record.part), record.parts)
    inner = decode_record(data, where)
    if isinstance(inner, Spilled) or inner.nonce != record.nonce:
        raise RecordInvalid(f"{where} refers to the parts of another record.", subject=agent, seq=entry.seq)
    return inner


async def load(log: Log, agent: str, seen: Seen | None = None, hold: Hold | None = None) -> Fold:
    """The agent as of the end of its log, or with `seen` at least as of that.  Never holds the event loop for long.

    A snapshot whose parts are damaged is passed over for the one before it, whose log is kept as well.
    Raises `NoSuchAgent`, `JournalGap` if records are missing, or the `RecordInvalid` or `StateUnloadable` that says what in the
    log cannot be used.
    """
    tries = LOAD_TRIES
    while True:
        try:
            return await _load(log, agent, seen, hold)
        except (LogGap, PartMissing) as error:
            tries, seen = tries - 1, None
            if tries:
                continue
            if isinstance(error, PartMissing):
                raise
            raise JournalGap(
                f"{error.message} Records are missing for good: agent {agent!r} is quarantined. Restore a backup that has them.",
                **{**error.facts, "agent": agent},
            ) from error


async def load_behind(log: Log, agent: str, last: Entry, hold: Hold | None = None) -> Fold:
    """As `load`, of a log whose last entry was just read, perhaps from a replica that is behind.

    A log that is short since its snapshot or its beginning is read from its end back: each record says which one was before it.
    """
    record = await read_record(log, agent, last)
    with contextlib.suppress(
        LogGap, PartMissing, RecordInvalid, StateUnloadable
    ):  # else `load` says what is wrong, or mends it
        if (back := await _read_back(log, agent, last, record)) is not None:
            first, begin = back.pop()
            if isinstance(begin, Snapshot):
                await _hold_for(begin, hold)
                fold = await _of_snapshot(log, agent, first.seq, begin)
            else:
                fold = Fold(agent)
                add_to(fold, first, begin)
            for entry, earlier in reversed(back):
                add_to(fold, entry, earlier)
            fold.verify()
            return fold
    return await load(log, agent, _seen(last, record), hold)


async def _read_back(log: Log, agent: str, last: Entry, record: AnyRecord) -> list[tuple[Entry, AnyRecord]] | None:
    """The last record and those before it, as far as a snapshot or the first one; None if these are many, or one is gone."""
    back = [(last, record)]
    while record.prev and not isinstance(record, Snapshot):
        entries = await log.read(log_subject(agent), record.prev - 1, 1) if len(back) <= BACK_RECORDS else []
        if not entries or entries[0].seq != record.prev:
            return None
        record = await read_record(log, agent, entries[0])
        back.append((entries[0], record))
    return back


async def _load(log: Log, agent: str, seen: Seen | None, hold: Hold | None) -> Fold:
    if seen is None:
        last = await log.last(log_subject(agent)) or await log.settled(log_subject(agent))
        if last is None:
            raise NoSuchAgent.of(agent)
        seen = _seen(last, await read_record(log, agent, last))
    fold = await _snapshot(log, agent, seen.snap, hold) if seen.snap else Fold(agent)
    while fold.seq < seen.seq:
        if not await read_on(log, fold):
            raise LogGap(
                f"The log of agent {agent!r} ends at {seen.seq}, but nothing follows {fold.seq}.",
                subject=agent, have=fold.seq, need=seen.seq,
            )  # fmt: skip
    fold.verify()
    return fold


async def load_at(log: Log, now: Fold, seq: int) -> Fold:
    """The agent as of an earlier record of its log.  Raises `RollbackExpired` if the log is no longer kept that far back."""
    agent = now.agent
    fold = await _newest_usable(log, agent, [kept.seq for kept in now.snapshots if kept.seq <= seq]) or Fold(agent)
    try:
        while fold.seq < seq:
            entries = [e for e in await log.read(log_subject(agent), fold.seq, READ_RECORDS) if e.seq <= seq]
            if not entries:  # also if what is behind it is trimmed up to `seq`
                raise LogGap(
                    f"The log of agent {agent!r} has nothing after record {fold.seq}.", have=fold.seq, need=seq
                )
            await fold_entries(log, fold, entries)
    except (LogGap, PartMissing) as error:
        raise RollbackExpired(
            f"Agent {agent!r} as of record {seq} is no longer kept: {error}", agent=agent, seq=seq
        ) from error
    fold.verify()
    return fold


async def read_on(log: Log, fold: Fold) -> int:
    """Folds what follows in the log; the number of records folded (0: nothing was there)."""
    limit = READ_RECORDS_SMALL if fold.state.size_bytes < SLICE_BYTES else READ_RECORDS
    entries = await log.read(log_subject(fold.agent), fold.seq, limit)
    await fold_entries(log, fold, entries)
    return len(entries)


async def next_record(log: Log, fold: Fold, entry: Entry) -> AnyRecord:
    """The next record to fold.  Other tasks may run before it is returned, never after."""
    size = fold.behind_bytes + len(entry.data)
    if (
        size // SLICE_BYTES > fold.behind_bytes // SLICE_BYTES
        or fold.behind_records % SLICE_RECORDS == SLICE_RECORDS - 1
    ):
        await asyncio.sleep(0)
    return await read_record(log, fold.agent, entry)


def add_to(fold: Fold, entry: Entry, record: AnyRecord) -> None:
    """Folds the record of an entry."""
    fold.apply(entry.seq, record)
    fold.behind_bytes += len(entry.data)


async def fold_entries(log: Log, fold: Fold, entries: list[Entry]) -> None:
    for entry in entries:
        add_to(fold, entry, await next_record(log, fold, entry))


async def _snapshot(log: Log, agent: str, seq: int, hold: Hold | None) -> Fold:
    """The fold as of the snapshot at `seq`, or of the newest one before it that can be used."""
    record = await _snapshot_record(log, agent, seq)
    await _hold_for(record, hold)
    try:
        return await _of_snapshot(log, agent, seq, record)
    except (RecordInvalid, StateUnloadable) as error:
        fold = await _newest_usable(log, agent, [kept.seq for kept in record.snapshots])
        if fold is None:
            raise
        logger.warning(
            "agent %s: its snapshot at %d cannot be used, so it is loaded from the one at %d: %s",
            agent,
            seq,
            fold.seq,
            error,
        )
        return fold


async def _hold_for(record: Snapshot, hold: Hold | None) -> None:
    if hold is not None:
        await hold(sum(part.size for part in record.parts) + len(record.small or b""))


async def _newest_usable(log: Log, agent: str, snapshots: list[int]) -> Fold | None:
    """The fold as of the last of these snapshots that can be used."""
    for seq in reversed([seq for seq in snapshots if seq]):
        try:
            return await _of_snapshot(log, agent, seq, await _snapshot_record(log, agent, seq))
        except (RecordInvalid, StateUnloadable) as error:
            logger.info("agent %s: its snapshot at %d cannot be used: %s", agent, seq, error)
    return None


async def _snapshot_record(log: Log, agent: str, seq: int) -> Snapshot:
    entries = await log.read(log_subject(agent), seq - 1, 1)
    if not entries or entries[0].seq != seq:
        raise LogGap(f"The snapshot of agent {agent!r} at {seq} is gone.", subject=agent, have=0, need=seq)
    record = await read_record(log, agent, entries[0])
    if not isinstance(record, Snapshot):
        raise RecordInvalid(f"The log of agent {agent!r} at {seq} is no snapshot.", subject=agent, seq=seq)
    return record


async def _of_snapshot(log: Log, agent: str, seq: int, record: Snapshot) -> Fold:
    """State from the parts, and over it the commits made while they were written."""
    subject = log_subject(agent)
    state = await _state(log, agent, record)
    at, weight = record.since, 0
    while at < record.prev:
        entries = await log.read(subject, at, READ_RECORDS)
        for entry in entries:
            if entry.seq >= seq:
                break
            between = await read_record(log, agent, entry)
            if at not in {record.since, between.prev}:
                raise LogGap(
                    f"The log of agent {agent!r} has a gap at {entry.seq}.",
                    subject=agent, seq=entry.seq, have=at, need=between.prev,
                )  # fmt: skip
            commit = between.commit if isinstance(between, Committed) else None
            if isinstance(between, HandedOff):
                commit = between.seal
            if commit is not None and commit.state is not None:
                state.apply(commit.state)
            at = entry.seq
            weight += max(len(entry.data), SLICE_BYTES // SLICE_RECORDS)
            if weight >= SLICE_BYTES:
                weight = 0
                await asyncio.sleep(0)
        if not entries or entries[-1].seq >= seq:
            break
        await asyncio.sleep(0)
    if at != record.prev and record.since < record.prev:
        raise LogGap(
            f"The log before the snapshot of agent {agent!r} at {seq} has a gap.",
            subject=agent, seq=seq, have=at, need=record.prev,
        )  # fmt: skip
    return Fold.of_snapshot(seq, record, state)


async def _state(log: Log, agent: str, record: Snapshot) -> StoredState:
    if record.small is not None:
        return StoredState.decode_small(record.small)
    state = StoredState()
    async for piece in parts.iter_parts(log, part_subject(agent, record.part), record.parts):
        state.load_slice(piece)
        state.digest()  # slice by slice: all of it at the end would be one long step
    return state
