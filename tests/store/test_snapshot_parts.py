"""Damaged snapshots: the load names what is wrong or takes the snapshot before it; who runs on runs on; nothing else is changed."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
from blake3 import blake3

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.errors import (
    CellError,
    DigestMismatch,
    PartMisplaced,
    PartMissing,
    RecordInvalid,
    RecordTruncated,
    TrailingData,
    UnsupportedFormat,
)
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject, part_prefix, part_subject
from mielin_cells.log.records import Snapshot, decode_record
from mielin_cells.node.activation import snapshots as compaction
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Appended, Entry, Log

AGENT = "album/1"
SUBJECT = log_subject(AGENT)
SETTINGS = cells.Settings(snapshot_records=20, ask_timeout_s=1.0, ask_repeat_s=0.1)

LARGE = 20_000
"""Bytes of an entry, so that the state is cut into some parts at the first snapshot."""

Damage: TypeAlias = dict[int, bytes | None]
"""What is read at a sequence instead of what was stored; None: it is gone."""


class Album(cells.Agent):
    title: str = "first"
    shots: cells.Table[int, bytes] = cells.Table()
    film: cells.Buffer = cells.Buffer()

    @cells.handler
    async def put(self, key: int, size: int = 10) -> int:
        self.shots[key] = b"%d" % key * size
        self.title = f"{key} of {len(self.shots)}"
        self.film.append(b"%d" % key)
        return len(self.shots)

    @cells.handler
    async def content(self) -> bytes:
        return blake3(repr((self.title, sorted(self.shots.items()), bytes(self.film))).encode()).digest()


class Damaged:
    """A log that shows some entries other than they are stored."""

    def __init__(self, log: Log, damage: Damage) -> None:
        self.log = log
        self.damage = damage

    def __getattr__(self, name: str) -> object:
        return getattr(self.log, name)

    def _seen(self, entry: Entry) -> Entry | None:
        data = self.damage.get(entry.seq, entry.data)
        return None if data is None else Entry(entry.seq, data)

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        found = [self._seen(entry) for entry in await self.log.read(subject, after, limit)]
        return [entry for entry in found if entry is not None]

    async def last(self, subject: str) -> Entry | None:
        entry = await self.log.last(subject)
        return None if entry is None else self._seen(entry)

    async def settled(self, subject: str) -> Entry | None:
        return await self.last(subject)


async def read_with(log: Log, damage: Damage) -> Fold:
    return await load(Damaged(log, damage), AGENT)  # type: ignore[arg-type]


async def snapshots_of(log: Log) -> list[tuple[int, Snapshot]]:
    records = [(entry.seq, decode_record(entry.data, "the log")) for entry in await log.read(SUBJECT, 0, 10_000)]
    return [(seq, record) for seq, record in records if isinstance(record, Snapshot)]


async def parts_of(log: Log, snapshot: Snapshot) -> dict[int, bytes]:
    entries = {entry.seq: entry.data for entry in await log.read(part_subject(AGENT, snapshot.part), 0, 10_000)}
    return {ref.seq: entries[ref.seq] for ref in snapshot.parts}


async def until_snapshots(album: Album, log: Log, count: int, size: int = 10) -> bytes:
    """Turns until the log has had `count` snapshots, and two more turns.  The content then."""
    key, seen = 0, set[int]()
    while len(seen := seen | {seq for seq, _ in await snapshots_of(log)}) < count:
        await album.put(key, size)
        key += 1
        await asyncio.sleep(0)
    for more in range(2):
        await album.put(key + more, size)
    return await album.content()


@asynccontextmanager
async def stored(count: int, size: int = 10) -> AsyncIterator[tuple[Log, list[tuple[int, Snapshot]]]]:
    """A log with `count` snapshots, as the engine wrote it.  A move that could be undone keeps all of it."""
    async with cells.local(nodes=2, settings=SETTINGS) as cluster:
        assert isinstance(cluster, Client)
        album = await cluster.spawn(Album, AGENT)
        await cluster.migrate(album)
        await until_snapshots(album, cluster.log, count, size)
        snapshots = await snapshots_of(cluster.log)
        assert len(snapshots) == count
        yield cluster.log, snapshots


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small states go into parts, too, so that every byte of them can be tried."""
    monkeypatch.setattr(compaction, "SMALL_BYTES", 0)


@contextmanager
def refused(kinds: tuple[type[CellError], ...]) -> Iterator[None]:
    with pytest.raises(kinds) as raised:
        yield
    message = raised.value.message
    assert raised.value.facts["subject"], "it does not say where"
    assert message.endswith("."), "it is no sentence"


def flips(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        yield bytes(flipped)


# ---- the only snapshot ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_parts")
async def test_a_flipped_bit_in_any_byte_of_a_part_is_named() -> None:
    async with stored(1) as (log, [(_, snapshot)]):
        for seq, data in (await parts_of(log, snapshot)).items():
            for flipped in flips(data):
                with refused((DigestMismatch, RecordTruncated, TrailingData, UnsupportedFormat)):
                    await read_with(log, {seq: flipped})


@pytest.mark.parametrize("whole", [True, False])
async def test_a_flipped_bit_in_any_byte_of_the_snapshots_record_is_named(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that holds the state itself, and of one that names parts."""
    monkeypatch.setattr(compaction, "SMALL_BYTES", 64 * 1024 if whole else 0)
    async with stored(1) as (log, [(seq, snapshot)]):
        assert (snapshot.small is not None) is whole
        (entry,) = await log.read(SUBJECT, seq - 1, 1)
        for flipped in flips(entry.data):
            with refused((DigestMismatch, RecordTruncated, TrailingData, UnsupportedFormat)):
                await read_with(log, {seq: flipped})


@pytest.mark.usefixtures("in_parts")
async def test_a_part_or_record_cut_at_any_length_or_with_more_bytes_is_named() -> None:
    async with stored(1) as (log, [(seq, snapshot)]):
        (entry,) = await log.read(SUBJECT, seq - 1, 1)
        for at, data in {seq: entry.data, **await parts_of(log, snapshot)}.items():
            for size in range(len(data)):
                with refused((RecordTruncated,)):
                    await read_with(log, {at: data[:size]})
            for more in (b"\0", data):
                with refused((TrailingData,)):
                    await read_with(log, {at: data + more})


async def test_missing_and_swapped_parts_are_named() -> None:
    async with stored(1, LARGE) as (log, [(_, snapshot)]):
        parts = await parts_of(log, snapshot)
        assert len(parts) > 2
        for seq in parts:
            with refused((PartMissing,)):
                await read_with(log, {seq: None})
        for one, other in itertools.combinations(parts, 2):
            with refused((PartMisplaced,)):
                await read_with(log, {one: parts[other], other: parts[one]})
        with refused((PartMisplaced,)):
            first, second, *_ = parts
            await read_with(log, {second: parts[first]})


async def test_a_part_of_another_snapshot_of_the_same_agent_is_refused() -> None:
    async with stored(2, LARGE) as (log, snapshots):
        older, newer = [await parts_of(log, snapshot) for _, snapshot in snapshots]
        damage: Damage = dict(zip(newer, older.values(), strict=False))
        damage |= dict.fromkeys(older)  # nothing to go back to
        with refused((PartMisplaced,)):
            await read_with(log, damage)


async def test_a_commit_that_is_missing_between_parts_and_record_is_a_gap() -> None:
    async with stored(1, LARGE) as (log, [(seq, snapshot)]):
        between = [entry.seq for entry in await log.read(SUBJECT, snapshot.since) if entry.seq < seq]
        assert between
        for missing in between:
            with refused((RecordInvalid,)):
                await read_with(log, {missing: None})


# ---- an older one is there -----------------------------------------------------------------------------------


def flipped_middle(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes((data[len(data) // 2] ^ 4,)) + data[len(data) // 2 + 1 :]


DAMAGES: dict[str, Callable[[dict[int, bytes]], Damage]] = {
    "flipped": lambda parts: {seq: flipped_middle(data) for seq, data in list(parts.items())[-1:]},
    "cut": lambda parts: {seq: data[:-1] for seq, data in list(parts.items())[1:2]},
    "missing": lambda parts: dict.fromkeys(list(parts)[:1]),
    "all missing": dict.fromkeys,
    "swapped": lambda parts: dict(zip(parts, reversed(parts.values()), strict=True)),
}


@pytest.mark.parametrize("kind", DAMAGES)
async def test_a_damaged_snapshot_is_passed_over_for_the_one_before_it(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stored(3, LARGE) as (log, snapshots):
        whole = await load(log, AGENT)
        parts = [await parts_of(log, snapshot) for _, snapshot in snapshots]
        damage: Damage = {}
        for back in (1, 2):
            damage |= DAMAGES[kind](parts[-back])
            caplog.clear()
            with caplog.at_level(logging.WARNING, "mielin_cells.reader"):
                found = await read_with(log, damage)
            assert (found.seq, found.snap, found.snapshots) == (whole.seq, whole.snap, whole.snapshots)
            assert found.seal_digest() == whole.seal_digest()
            (told,) = caplog.messages
            assert (
                f"at {snapshots[-1][0]} cannot be used, so it is loaded from the one at {snapshots[-1 - back][0]}"
                in told
            )
        with refused((RecordInvalid,)):
            await read_with(log, damage | DAMAGES[kind](parts[0]))


# ---- the engine on a damaged file ----------------------------------------------------------------------------


def spoil(path: Path, seqs: list[int]) -> dict[int, bytes]:
    """Flips a bit of entries, as another program or a bad disk would.  What they were."""
    with sqlite3.connect(path) as file:
        were = {seq: file.execute("SELECT data FROM entries WHERE seq = ?", (seq,)).fetchone()[0] for seq in seqs}
        rows = [(flipped_middle(data), seq) for seq, data in were.items()]
        file.executemany("UPDATE entries SET data = ? WHERE seq = ?", rows)
    file.close()
    return were


def mend(path: Path, were: dict[int, bytes]) -> None:
    with sqlite3.connect(path) as file:
        file.executemany("UPDATE entries SET data = ? WHERE seq = ?", [(data, seq) for seq, data in were.items()])
    file.close()


def log_in(path: Path, subject: str) -> list[tuple[int, bytes]]:
    file = sqlite3.connect(path)
    rows = file.execute("SELECT seq, data FROM entries WHERE subject = ? ORDER BY seq", (subject,)).fetchall()
    file.close()
    return rows


async def prepared(path: Path, count: int) -> tuple[bytes, list[list[int]]]:
    """A file with an agent of `count` snapshots and another agent: the content, and the sequences of each one's parts."""
    async with cells.local(path=path, settings=SETTINGS) as cluster:
        assert isinstance(cluster, Client)
        content = await until_snapshots(await cluster.spawn(Album, AGENT), cluster.log, count, LARGE)
        await (await cluster.spawn(Album, "other")).put(1)
        return content, [[ref.seq for ref in snapshot.parts] for _, snapshot in await snapshots_of(cluster.log)]


async def test_an_agent_without_a_whole_snapshot_is_not_run_and_neither_it_nor_others_are_harmed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.db"
    content, [parts] = await prepared(path, 1)
    were, before = spoil(path, parts[1:2]), log_in(path, SUBJECT)

    async with cells.local(path=path, settings=SETTINGS) as cluster:
        with pytest.raises(DigestMismatch):
            await cluster.get(Album, AGENT).content()
        assert isinstance(cluster, Client)
        with pytest.raises(DigestMismatch, match="does not match its digest"):
            await load(cluster.log, AGENT)
        assert await cluster.get(Album, "other").put(2) == 2

    assert log_in(path, SUBJECT) == before
    assert any("cannot take agent album/1, which other nodes can still claim" in told for told in caplog.messages)
    mend(path, were)
    async with cells.local(path=path, settings=SETTINGS) as cluster:
        assert await cluster.get(Album, AGENT).content() == content


async def test_an_agent_whose_newest_snapshot_is_damaged_is_back_whole_and_writes_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    content, [_, newest] = await prepared(path, 2)
    spoil(path, newest)

    async with cells.local(path=path, settings=SETTINGS) as cluster:
        assert isinstance(cluster, Client)
        album = cluster.get(Album, AGENT)
        assert await album.content() == content
        content = await until_snapshots(album, cluster.log, 3, LARGE)
    async with cells.local(path=path, settings=SETTINGS) as cluster:
        assert await cluster.get(Album, AGENT).content() == content


async def test_an_agent_runs_on_over_a_damaged_snapshot_and_its_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with cells.local(path=path, settings=SETTINGS) as cluster:
        assert isinstance(cluster, Client)
        album = await cluster.spawn(Album, AGENT)
        await until_snapshots(album, cluster.log, 2, LARGE)
        spoil(path, [ref.seq for _, snapshot in await snapshots_of(cluster.log) for ref in snapshot.parts])
        with pytest.raises(RecordInvalid):
            await load(cluster.log, AGENT)

        content = await until_snapshots(album, cluster.log, 3, LARGE)

        assert (await load(cluster.log, AGENT)).phase.value == "run"
    async with cells.local(path=path, settings=SETTINGS) as cluster:
        assert await cluster.get(Album, AGENT).content() == content


async def test_a_move_whose_target_finds_the_snapshot_damaged_is_rolled_back_and_the_agent_runs_on(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.db"
    async with cells.local(nodes=2, path=path, settings=SETTINGS) as cluster:
        assert isinstance(cluster, Client)
        album = await cluster.on("node-1").spawn(Album, AGENT)
        content = await until_snapshots(album, cluster.log, 1, LARGE)
        [(_, snapshot)] = await snapshots_of(cluster.log)
        were = spoil(path, [snapshot.parts[0].seq])

        report = await cluster.migrate(album, to="node-2")

        assert (report.outcome, report.code) == ("rolled_back", "DigestMismatch")
        assert "does not match its digest" in report.reason
        assert (await album.content()) == content
        assert await album.put(-1) > 0
        content = await album.content()
        mend(path, were)
        assert (await cluster.migrate(album, to="node-2")).ok
        assert await album.content() == content


# ---- what is left over ---------------------------------------------------------------------------------------


async def test_parts_that_a_crashed_writer_left_are_never_loaded_and_are_trimmed_behind_later_snapshots() -> None:
    async with cells.local(settings=cells.Settings(snapshot_records=20, retention_s=0)) as cluster:
        assert isinstance(cluster, Client)
        log, prefix = cluster.log, part_prefix(AGENT)
        album = await cluster.spawn(Album, AGENT)
        for n in range(3):
            assert isinstance(await log.append(part_subject(AGENT, "crashed"), b"half a snapshot %d" % n), Appended)

        key = 0
        while part_subject(AGENT, "crashed") in dict(await log.subjects(prefix)):
            key += 1
            await album.put(key % 5, LARGE)
            assert isinstance(await log.append(part_subject(AGENT, "beside"), b"one that is being written"), Appended)

        fold = await load(log, AGENT)
        names = {subject.removeprefix(prefix) for subject, _ in await log.subjects(prefix)}
        assert {kept.part for kept in fold.snapshots} - {""} <= names
        assert "beside" in names
        assert len(names) < key
        async with asyncio.timeout(30):
            while len(names) > len(fold.snapshots) + 2:  # trims are behind; parts of the next one may be there
                await asyncio.sleep(0)
                names = {subject.removeprefix(prefix) for subject, _ in await log.subjects(prefix)}
