"""Tails over republished messages: what a live message says of its place is a hint, and never opens a gap."""

from __future__ import annotations

import asyncio

import pytest
from support.nats_servers import WAIT_S, opened, raw_client, stored

from mielin_cells.substrate.jetstream.server import Server
from mielin_cells.substrate.jetstream.tail import JetTail
from mielin_cells.substrate.ports import Entry


class Stored:
    """What a tail reads, with a count of its reads."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.reads = 0

    def add(self, seq: int) -> Entry:
        entry = Entry(seq, b"%d" % seq)
        self.entries.append(entry)
        return entry

    async def read(self, subject: str, after: int, limit: int) -> list[Entry]:
        self.reads += 1
        return [entry for entry in self.entries if entry.seq > after][:limit]

    def tail(self) -> JetTail:
        return JetTail("x", 0, self.read, lambda _: None, None)


async def sequences(tail: JetTail, last: int) -> list[int]:
    found: list[int] = []
    async with asyncio.timeout(WAIT_S):
        while not found or found[-1] != last:
            found += [entry.seq for entry in await anext(tail)]
    return found


@pytest.mark.parametrize("previous", [0, 3, 4, 6, 9, 2**63])
async def test_a_wrong_word_about_what_came_before_opens_no_gap(previous: int) -> None:
    """The server says 0 after a restart, where it has not looked; a trim makes it say other things."""
    held = Stored()
    tail = held.tail()
    held.add(1)
    assert await sequences(tail, 1) == [1]
    missed, seen = held.add(5), held.add(7)
    tail.push(seen, previous)
    assert await sequences(tail, 7) == [5, 7]
    tail.push(missed, 1)  # late, or once more
    tail.push(held.add(8), 7)
    assert await sequences(tail, 8) == [8]


@pytest.mark.parametrize(
    ("seq", "previous"), [(0, 0), (0, 7), (7, 7), (3, 7), (7, 0), (0, 8), (0, 2**63), (8, 8)], ids=str
)
@pytest.mark.parametrize("is_first", [True, False])
async def test_a_live_message_without_a_place_is_no_entry(is_first: bool, seq: int, previous: int) -> None:
    held = Stored()
    tail = held.tail()
    held.add(7)
    assert await sequences(tail, 7) == [7]
    if not is_first:
        tail.push(held.add(8), 7)
    tail.push(Entry(seq, b"forged"), previous)
    tail.push(held.add(9), 8 if not is_first else 7)
    found: list[Entry] = []
    async with asyncio.timeout(WAIT_S):
        while not found or found[-1].seq != 9:
            found += await anext(tail)
    assert found == held.entries[1:]


async def test_messages_that_follow_each_other_cost_no_read() -> None:
    held = Stored()
    tail = held.tail()
    held.add(1)
    assert await sequences(tail, 1) == [1]
    for seq in range(2, 100):
        tail.push(held.add(seq), seq - 1)
    assert await sequences(tail, 99) == list(range(2, 100))
    assert held.reads == 1


async def test_a_reader_that_is_behind_reads_dropped_entries_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mielin_cells.substrate.tail.WAITING_MAX", 10)
    held = Stored()
    tail = held.tail()
    held.add(1)
    assert await sequences(tail, 1) == [1]
    for seq in range(2, 1000):
        tail.push(held.add(seq), seq - 1)
        assert len(tail._waiting) <= 10
    assert await sequences(tail, 999) == list(range(2, 1000))


async def test_forged_messages_on_a_live_subject_are_no_entries(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """On a real server: without headers, with wrong ones, before and between the true ones."""
    forged: list[dict[str, str] | None] = [
        None, {"Nats-Sequence": "0", "Nats-Last-Sequence": "0"}, {"Nats-Sequence": "x", "Nats-Last-Sequence": "-1"},
        {"Nats-Sequence": "\N{ARABIC-INDIC DIGIT THREE}", "Nats-Last-Sequence": "9" * 5000}, {"Status": "404"},
        {"Nats-Last-Sequence": "LAST"}, {"Nats-Sequence": "1e3", "Nats-Last-Sequence": "LAST"}, {"nats-sequence": "5"},
        {"Nats-Sequence": " ", "Nats-Subject": "a.y", "Nats-Last-Sequence": "LAST"},
    ]  # fmt: skip
    async with opened(server.url, deployment="forged") as substrate, raw_client(server.url) as other:
        log, last, found = substrate.log, 0, list[Entry]()
        tail = log.tail("a.x")

        async def forge(headers: dict[str, str] | None) -> None:
            """As if it came behind what was stored last."""
            if headers is not None:
                headers = {name: value.replace("LAST", str(last)) for name, value in headers.items()}
            await other.publish("forged.live.0.a.x", b"forged", headers=headers)
            await other.flush()

        for headers in forged:
            await forge(headers)
            last = await stored(log, "a.x", b"true", last)
            await forge(headers)
            found += await asyncio.wait_for(anext(tail), WAIT_S)
        while found[-1].seq != last:
            found += await asyncio.wait_for(anext(tail), WAIT_S)
        assert found == await log.read("a.x")
        assert {entry.data for entry in found} == {b"true"}
        assert "raised" not in caplog.text  # it is nothing that a listener would stumble over
        tail.close()
