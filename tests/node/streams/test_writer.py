"""What a writer of a stream finds of earlier runs, of its own call and of others that share the subject."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from mielin_cells.log.ids import stream_subject
from mielin_cells.log.streams.entries import AnyStreamEntry, Ended, Parts, encode_stream_entry
from mielin_cells.node.streams.writer import StreamWriter
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Appended, Log

AGENT, SENDER = "a", "s"


class Owner:
    """The owner of the agent in its second epoch."""

    agent, epoch, is_open = AGENT, 2, True

    def __init__(self, log: Log) -> None:
        self.log = log
        self.runs = 10

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.ensure_future(work)

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        work.close()

    def next_run(self) -> int:
        self.runs += 1
        return self.runs

    async def check(self) -> None:
        pass


def parts(n: int, *data: bytes) -> Any:
    return lambda prev: Parts(1, 1, n, prev, 0, data=[*data])


def end(n: int, at: int = 1) -> Any:
    return lambda prev: Ended(1, 1, n, prev, at, answer=b"")


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ([parts(2, b"x"), end(2)], []),
        ([end(2, 0)], []),
        ([parts(2, b"x"), parts(6, b"y", b"z"), end(2)], [b"y", b"z"]),
        ([parts(2, b"x"), parts(6, b"y"), end(2), end(4, 0)], [b"y"]),
        ([parts(2, b"x"), parts(6, b"y")], [b"y"]),
        ([parts(2, b"x"), end(2), end(4, 0)], []),
    ],
)
@pytest.mark.parametrize("trimmed", [False, True])
async def test_a_run_finds_what_earlier_runs_of_its_call_have_stored(
    stored: list[Any], found: list[bytes], trimmed: bool, tmp_path: Path
) -> None:
    """Also behind the end of an earlier call, which may come late: it leaves after the commit, when the next turn may have begun."""
    substrate = await Embedded.open(str(tmp_path / "db"))
    try:
        subject, prev = stream_subject(AGENT, SENDER), 0
        seqs = list[int]()
        for make in stored:
            entry: AnyStreamEntry = make(prev)
            outcome = await substrate.log.append(subject, encode_stream_entry(entry), prev)
            assert isinstance(outcome, Appended)
            prev = outcome.seq
            seqs.append(prev)
        if trimmed and len(seqs) > 1:
            await substrate.log.trim(subject, seqs[1])
        view = await StreamWriter(Owner(substrate.log), SENDER, 6).open()
        assert view.parts == found
        assert view.last == prev
    finally:
        await substrate.close()
