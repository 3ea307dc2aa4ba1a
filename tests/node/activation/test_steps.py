"""What one step of the event loop handles is bounded, whatever the size of state, log and snapshot: bytes are counted, not time.

`benchmarks/bench_steps.py` measures how long the steps are.
"""

from __future__ import annotations

import asyncio
from asyncio.events import Handle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject, part_subject
from mielin_cells.log.records import PartRef, Snapshot, decode_record, encode_record
from mielin_cells.log.state import SLICE_BYTES as STATE_SLICE
from mielin_cells.log.state import StoredState
from mielin_cells.store import reader
from mielin_cells.substrate import parts
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.embedded.log import BATCH_TRIMS
from mielin_cells.substrate.embedded.store import PAGE_BYTES, TRIM_BYTES, Store
from mielin_cells.substrate.ports import Appended, Log

AGENT = "heavy"
ROW = 1000


class Heavy(cells.Agent):
    turns: int = 0
    rows: cells.Table[int, bytes] = cells.Table()

    @cells.handler
    async def fill(self, first: int, count: int) -> int:
        self.turns += 1
        for key in range(first, first + count):
            self.rows[key] = b"%4d" % self.turns * (ROW // 4)
        return len(self.rows)


class Steps:
    """Counts what is done in each step of the loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step = 0
        self.counts: dict[str, Counter[int]] = {}
        self._patch = monkeypatch
        run = Handle._run

        def counted(handle: Handle) -> None:
            self.step += 1
            run(handle)

        monkeypatch.setattr(Handle, "_run", counted)

    def count(self, where: object, name: str, size: Callable[..., int]) -> None:
        """Adds `size(result, *arguments)` of each call of the real `where.name` to the step it was made in."""
        real: Callable[..., Any] = getattr(where, name)
        counter = self.counts.setdefault(name, Counter())

        def counting(*args: Any, **named: Any) -> Any:
            result = real(*args, **named)
            counter[self.step] += size(result, *args)
            return result

        self._patch.setattr(where, name, counting)

    def most(self, name: str) -> int:
        return max(self.counts[name].values())

    def all(self, name: str) -> int:
        return self.counts[name].total()


def size_of_record(_: object, data: bytes, *__: object) -> int:
    return len(data)


async def filled(cluster: Client, turns: int, rows: int) -> None:
    heavy = await cluster.spawn(Heavy, AGENT)
    for turn in range(turns):
        await heavy.fill(turn % 20 * rows, rows)


@pytest.mark.parametrize(("turns", "rows"), [(700, 1), (40, 400)])
async def test_a_load_folds_few_records_and_few_bytes_of_the_log_in_a_step(
    turns: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = cells.Settings(snapshot_records=100_000, snapshot_bytes=1 << 40)
    async with cells.local(settings=settings) as cluster:
        assert isinstance(cluster, Client)
        await filled(cluster, turns, rows)
        largest = max(len(entry.data) for entry in await cluster.log.read(log_subject(AGENT), 0, 10_000))
        steps = Steps(monkeypatch)
        steps.count(reader, "decode_record", size_of_record)
        steps.count(Fold, "apply", lambda *_: 1)

        await reader.load(cluster.log, AGENT)

        assert steps.all("apply") > turns
        assert steps.all("decode_record") > 2 * reader.SLICE_BYTES or turns > 5 * reader.SLICE_RECORDS
        assert steps.most("apply") <= reader.SLICE_RECORDS
        assert steps.most("decode_record") <= reader.SLICE_BYTES + 2 * largest


async def with_a_long_tail(log: Log) -> int:
    """Appends a snapshot whose parts are those of the first records: all later commits are replayed over them."""
    entries = await log.read(log_subject(AGENT), 0, 10_000)
    fold = Fold(AGENT)
    refs: list[PartRef] = []
    since = entries[10].seq
    for entry in entries:
        fold.apply(entry.seq, decode_record(entry.data, "the log"))
        if entry.seq == since:
            refs = list(await parts.put_parts(log, part_subject(AGENT, "early"), fold.state.slices()))
    record = Snapshot(
        agent=AGENT, epoch=fold.epoch, node=fold.owner, incarnation=fold.incarnation, nonce=b"n" * 12, prev=fold.seq, snap=0,
        cls=fold.cls, version=fold.version, lifecycle=fold.lifecycle, ledger=fold.ledger.copy(), part="early", parts=refs,
        small=None, since=since, digest=fold.state.digest(), snapshots=[], outcomes={}, turn=None, claims=0, at=0.0,
    )  # fmt: skip
    assert isinstance(await log.append(log_subject(AGENT), encode_record(record), fold.seq), Appended)
    return len(entries) - 11


@pytest.mark.parametrize(("turns", "rows"), [(700, 1), (40, 400)])
async def test_replays_over_a_snapshot_are_bounded_also_with_steps(
    turns: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = cells.Settings(snapshot_records=100_000, snapshot_bytes=1 << 40)
    async with cells.local(settings=settings) as cluster:
        assert isinstance(cluster, Client)
        await filled(cluster, turns, rows)
        replayed = await with_a_long_tail(cluster.log)
        largest = max(len(entry.data) for entry in await cluster.log.read(log_subject(AGENT), 0, 10_000))
        steps = Steps(monkeypatch)
        steps.count(reader, "decode_record", size_of_record)
        steps.count(StoredState, "apply", lambda *_: 1)

        fold = await reader.load(cluster.log, AGENT)

        assert len(fold.state.tables["rows"]) == min(turns, 20) * rows
        assert steps.all("apply") >= replayed
        assert steps.most("apply") <= reader.SLICE_RECORDS
        assert steps.most("decode_record") <= reader.SLICE_BYTES + 2 * largest


async def test_a_snapshot_is_written_and_loaded_one_slice_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = cells.Settings(snapshot_records=20, retention_s=0)
    async with cells.local(nodes=2, settings=settings) as cluster:
        assert isinstance(cluster, Client)
        steps = Steps(monkeypatch)
        steps.count(parts, "_framed", lambda _, subject, index, payload: len(payload))
        steps.count(StoredState, "load_slice", lambda _, __, data: len(data))
        await filled(cluster, 60, 400)

        report = await cluster.migrate(AGENT, to="node-2")

        assert report.ok
        for name in ("_framed", "load_slice"):
            assert steps.all(name) > 20 * STATE_SLICE
            assert steps.most(name) <= STATE_SLICE


async def test_a_trim_and_a_read_of_large_entries_are_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    substrate = await Embedded.open()
    log, large = substrate.log, bytes(300_000)
    seqs = []
    for n in range(200):
        outcome = await log.append(f"a.{n % 4}", large)
        assert isinstance(outcome, Appended)
        seqs.append(outcome.seq)
    steps = Steps(monkeypatch)
    rows = dict.fromkeys(seqs, len(large))
    steps.count(Store, "page", lambda result, *_: sum(len(entry.data) for entry in result[0]))
    steps.count(Store, "_remove", lambda _, store, trim: removed(store, rows))

    for subject in range(4):
        assert len(await log.read(f"a.{subject}")) == 50
        await asyncio.sleep(0)
    await asyncio.gather(*(log.trim(f"a.{subject}", seqs[-1] + 1) for subject in range(4)))

    assert await log.subjects("a.") == []
    assert steps.all("page") >= 200 * len(large)
    assert steps.most("page") <= PAGE_BYTES + len(large)
    assert steps.all("_remove") == 200 * len(large)
    assert steps.most("_remove") <= BATCH_TRIMS * (TRIM_BYTES + len(large))
    assert steps.most("_remove") < steps.all("_remove") / 2
    await substrate.close()


def removed(store: Store, rows: dict[int, int]) -> int:
    """Bytes of the entries that are not there any more."""
    left = {seq for (seq,) in store._read.execute("SELECT seq FROM entries")}
    gone = [seq for seq in rows if seq not in left]
    return sum(rows.pop(seq) for seq in gone)
