"""The first part of a stream comes without a read of what was stored before, which nothing of the call can be among."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count

import pytest
from support.nats_servers import opened
from support.nodes import Deployment, deployment

import mielin_cells as cells
from mielin_cells.substrate.jetstream.log import JetLog
from mielin_cells.substrate.jetstream.server import Server
from mielin_cells.substrate.ports import Entry

_numbers = count()


class FirstTeller(cells.Agent, name="FirstTeller"):
    @cells.handler
    async def tell(self, first: int, to: int) -> AsyncIterator[int]:
        for n in range(first, to):
            yield n


@pytest.fixture
async def at(server: Server) -> AsyncIterator[Deployment]:
    async with (
        opened(server.url, deployment=f"first{next(_numbers)}") as substrate,
        deployment("node-1", on=substrate) as there,
    ):
        yield there


async def test_a_call_reads_nothing_of_its_stream_before_its_parts_come(
    at: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, subjects = JetLog.read, list[str]()

    async def reading(self: JetLog, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        subjects.append(subject)
        return await read(self, subject, after, limit)

    monkeypatch.setattr(JetLog, "read", reading)
    teller = await at.client.spawn(FirstTeller, "t")
    for first in (0, 10, 20):
        assert [n async for n in teller.tell(first, first + 3)] == [first, first + 1, first + 2]
    assert [subject for subject in subjects if subject.startswith("stream.")] == []


async def test_a_call_behind_one_that_was_not_read_to_its_end_has_all_its_parts(at: Deployment) -> None:
    """What came of the earlier call meanwhile is a gap in what the tail hears: it is read."""
    teller = await at.client.spawn(FirstTeller, "t")
    left = teller.tell(0, 400)
    assert await anext(left) == 0
    left.close()
    again = [n async for n in teller.tell.read(left.id)]
    assert again == list(range(400)), "it went on"
    assert [n async for n in teller.tell(1000, 1300)] == list(range(1000, 1300))
