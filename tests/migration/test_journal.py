"""A migration's journal: what may follow what, what is refused, and writing it against others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import msgspec
import pytest
from support.journals import AGENT, MIGRATION, Make, attempted, cancelled, ended, head, planned

from mielin_cells.errors import LogGap, NoSuchMigration, RecordInvalid, UnknownRecord, UnsupportedFormat
from mielin_cells.log.codec import framed
from mielin_cells.log.ids import journal_subject, journals_of, migration_of
from mielin_cells.migration.journal import (
    Decided,
    Failed,
    Journal,
    Reached,
    decode,
    encode,
)
from mielin_cells.node.activation.context import NodeContext
from mielin_cells.node.moves.journal import JournalTaken, JournalWriter
from mielin_cells.settings import Settings
from mielin_cells.store import journal as journals
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Conflict, Entry, Log, Outcome, Unknown


def failed(number: int) -> Make:
    return lambda h: Failed(**h, number=number, target="node-2", kind="Timeout", code="Timeout", message="slow")


def reached(number: int) -> Make:
    return lambda h: Reached(**h, number=number, phases=[("PLANNED", 0.1)], rounds=1, bytes=2, pause_ms=0.3)


def decided(h: dict[str, Any]) -> Decided:
    return Decided(**h, number=1, strategy="RetryOnSameTarget", rule="Timeout is tried again there", delay_s=10.0)


def after(*makers: Make) -> Journal:
    journal = Journal(MIGRATION)
    for make in makers:
        journal.apply(journal.seq + 3, decode(encode(make(head(journal))), "here"))
    return journal


def with_(make: Make, **over: Any) -> Make:
    return lambda h: msgspec.structs.replace(make(h), **over)


RETRIED: tuple[Make, ...] = (planned, attempted(1), failed(1), decided)
STORY: tuple[Make, ...] = (planned, attempted(1), reached(1), failed(1), decided, attempted(2), reached(2), ended)


def test_the_type_of_a_failure_is_that_of_the_last_attempt_unless_the_migration_completed() -> None:
    corrupt = with_(failed(2), kind="StateCorruption")
    assert after(planned, attempted(1)).error_type == ""
    assert after(planned, attempted(1), failed(1)).error_type == "Timeout"
    assert after(planned, attempted(1), failed(1), decided, attempted(2), corrupt).error_type == "StateCorruption"
    assert after(*STORY).error_type == ""
    assert after(*STORY[:-1], with_(ended, outcome="rolled_back")).error_type == "Timeout"


def test_a_journal_records_the_attempts_and_the_end() -> None:
    journal = after(*STORY)
    assert not journal.is_open
    assert journal.end is not None
    assert journal.end.outcome == "completed"
    assert [attempt.id for attempt in journal.attempts] == ["m-1.1", "m-1.2"]
    assert all(after(*STORY[:n]).is_open for n in range(1, len(STORY)))


@pytest.mark.parametrize(
    ("story", "then"),
    [
        ((), attempted(1)),
        ((), ended),
        ((planned,), planned),
        ((planned,), decided),
        ((planned,), attempted(2)),
        ((planned, attempted(1)), attempted(2)),
        ((planned, attempted(1)), failed(2)),
        ((planned, attempted(1)), reached(2)),
        ((planned, attempted(1), failed(1)), attempted(2)),
        ((planned, attempted(1), failed(1), decided), decided),
        (STORY, attempted(3)),
        (STORY, ended),
        ((planned, cancelled), attempted(1)),
        ((*RETRIED, cancelled), attempted(2)),
        (RETRIED, with_(attempted(2), id="m-1.1")),
        (RETRIED, with_(attempted(2), target="")),
        (RETRIED, with_(attempted(2), target="node-1")),
        (RETRIED, with_(attempted(2), epoch=0)),
        ((planned, attempted(1), failed(1)), with_(decided, number=2)),
        ((planned, attempted(1), failed(1)), with_(decided, delay_s=-1.0)),
        ((planned, attempted(1), failed(1), with_(decided, strategy="Rollback")), attempted(2)),
        ((planned,), reached(0)),
        ((planned,), with_(ended, outcome="perhaps")),
        ((), with_(planned, epoch=0)),
        ((), with_(planned, source="")),
    ],
)
def test_a_record_out_of_its_order_is_refused_and_changes_nothing(story: tuple[Make, ...], then: Make) -> None:
    journal = after(*story)
    before = (journal.seq, list(journal.records))
    with pytest.raises(RecordInvalid):
        journal.apply(journal.seq + 1, then(head(journal)))
    assert (journal.seq, journal.records) == before


@pytest.mark.parametrize(
    ("over", "error"),
    [({"prev": 1}, LogGap), ({"migration": "m-2"}, RecordInvalid), ({"agent": "cart/bert"}, RecordInvalid)],
)
def test_a_record_of_another_place_is_refused(over: dict[str, Any], error: type[Exception]) -> None:
    journal = after(planned)
    with pytest.raises(error):
        journal.apply(journal.seq + 1, attempted(1)(head(journal, **over)))


def test_a_newer_format_is_named_and_every_changed_bit_is_detected() -> None:
    data = encode(planned(head(Journal(MIGRATION))))
    with pytest.raises(UnknownRecord, match="Renamed"):
        decode(framed(data[39:].replace(b"\xa7Planned", b"\xa7Renamed")), "here")
    with pytest.raises(UnsupportedFormat):
        decode(data[:2] + b"\x63" + data[3:], "here")
    for place in range(len(data)):
        with pytest.raises(RecordInvalid):
            decode(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], "here")
        with pytest.raises(RecordInvalid):
            decode(data[:place], "here")


def test_subjects_of_journals_name_agent_and_migration() -> None:
    subject = journal_subject(AGENT, MIGRATION)
    assert subject.startswith(journals_of(AGENT))
    assert migration_of(subject) == (AGENT, MIGRATION)


# ---- writing it ----------------------------------------------------------------------------------------------


@pytest.fixture
async def log() -> AsyncIterator[Log]:
    substrate = await Embedded.open()
    yield substrate.log
    await substrate.close()


def home(log: Log, name: str = "node-1") -> NodeContext:
    return NodeContext(name, 1, log, None, Random(name), time.time, Settings(), "", lambda activation, error: None)  # type: ignore[arg-type]


async def test_progress_records_are_written_before_the_next_awaited_record(log: Log) -> None:
    writer = JournalWriter(home(log), AGENT, MIGRATION)
    await writer.write(planned)
    await writer.write(attempted(1))
    writer.later(reached(1))
    assert len((await journals.read(log, AGENT, MIGRATION)).records) == 2
    await writer.write(ended)
    found = await journals.read(log, AGENT, MIGRATION)
    assert [type(record).__name__ for record in found.records] == ["Planned", "Attempted", "Reached", "Ended"]
    assert found.records == writer.fold.records


async def test_of_two_nodes_that_settle_one_migration_one_succeeds(log: Log) -> None:
    first = JournalWriter(home(log), AGENT, MIGRATION)
    await first.write(planned)
    other = JournalWriter(home(log, "node-2"), AGENT, MIGRATION, await journals.read(log, AGENT, MIGRATION))
    results = await asyncio.gather(first.write(ended), other.write(ended), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Ended", "JournalTaken"]
    assert len((await journals.read(log, AGENT, MIGRATION)).records) == 2


class LosesAnswers:
    """A log whose next answers are lost: the appends land, or not; and one that reports a conflict that is none."""

    def __init__(self, inner: Log, *faults: str) -> None:
        self.inner = inner
        self.faults = list(faults)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "conflict":
            return Conflict(0)
        if fault == "never":
            return Unknown("lost")
        outcome = await self.inner.append(subject, data, expect, owner)
        return Unknown("lost") if fault else outcome

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        return await self.inner.read(subject, after, limit)


@pytest.mark.parametrize("faults", [("lands",), ("never",), ("conflict",), ("never", "lands", "conflict")])
async def test_an_unknown_answer_is_settled_by_the_same_append(log: Log, faults: tuple[str, ...]) -> None:
    writer = JournalWriter(home(LosesAnswers(log, *faults)), AGENT, MIGRATION)  # type: ignore[arg-type]
    await writer.write(planned)
    await writer.write(ended)
    assert [type(r).__name__ for r in (await journals.read(log, AGENT, MIGRATION)).records] == ["Planned", "Ended"]


async def test_a_journal_that_cannot_be_read_is_reported_and_the_others_are_listed(log: Log) -> None:
    good, bad = JournalWriter(home(log), AGENT, MIGRATION), journal_subject("other", "m-2")
    await good.write(planned)
    await log.append(bad, b"garbage")
    readable, unreadable = await journals.all_of(log)
    assert [journal.migration for journal in readable] == [MIGRATION]
    assert [name for name, _ in unreadable] == ["m-2"]
    assert isinstance(unreadable[0][1], RecordInvalid)
    assert (await journals.find(log, MIGRATION)).planned == good.fold.planned
    with pytest.raises(NoSuchMigration):
        await journals.find(log, "m-3")
    with pytest.raises(NoSuchMigration):
        await journals.read(log, AGENT, "m-3")


async def test_a_journal_without_its_beginning_is_refused(log: Log) -> None:
    writer = JournalWriter(home(log), AGENT, MIGRATION)
    await writer.write(planned)
    await writer.write(attempted(1))
    await log.trim(journal_subject(AGENT, MIGRATION), writer.fold.seq)
    with pytest.raises(LogGap):
        await journals.read(log, AGENT, MIGRATION)


async def test_who_was_overtaken_writes_nothing_more(log: Log) -> None:
    mine = JournalWriter(home(log), AGENT, MIGRATION)
    await mine.write(planned)
    theirs = JournalWriter(home(log, "node-2"), AGENT, MIGRATION, await journals.read(log, AGENT, MIGRATION))
    await theirs.write(ended)
    for _ in range(2):
        with pytest.raises(JournalTaken, match="m-1"):
            await mine.write(attempted(1))
    found = await journals.read(log, AGENT, MIGRATION)
    assert found.records == theirs.fold.records
