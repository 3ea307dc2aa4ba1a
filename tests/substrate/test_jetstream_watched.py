"""Tails that nobody reads, and that call when something has come: also after a gap of the connection, and without a read each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from support.nats_servers import nats_server, opened, proxied, stored
from support.waiting import until

from mielin_cells.substrate.jetstream.tail import JetTail
from mielin_cells.substrate.ports import Entry, Log


async def watched(log: Log, subject: str, calls: list[str]) -> JetTail:
    """A tail that has given the first entry of the subject, and is watched."""
    tail = log.tail(subject)
    assert isinstance(tail, JetTail)
    reading = asyncio.ensure_future(anext(tail))
    assert len(await reading) == 1
    reading = asyncio.ensure_future(anext(tail))
    await until(lambda: tail.watch(lambda: calls.append(subject)))
    reading.cancel()
    await asyncio.wait((reading,))
    return tail


async def test_what_came_while_the_connection_was_lost_calls_its_watcher_and_no_other(tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path / "s") as server,
        proxied(server) as proxy,
        opened(server.url) as writing,
        opened(proxy.url) as reading,
    ):
        calls, subjects = list[str](), [f"inbox.{n}" for n in range(6)]
        for subject in subjects:
            await stored(writing.log, subject, b"first")
        tails = [await watched(reading.log, subject, calls) for subject in subjects]
        asked = list[Sequence[str]]()
        lasts = reading.log._rechecks._lasts

        async def counted(some: list[str]) -> dict[str, Entry]:
            asked.append(some)
            return await lasts(some)

        reading.log._rechecks._lasts = counted
        proxy.hold(to_server=True, to_client=True)
        second = await stored(writing.log, subjects[2], b"second")
        proxy.cut()
        proxy.release()
        await until(lambda: calls)
        assert calls == [subjects[2]]
        assert asked == [subjects]  # one request for all of them
        assert await anext(tails[2]) == [Entry(second, b"second")]
        third = await stored(writing.log, subjects[4], b"third")  # the others are watched as before
        await until(lambda: len(calls) == 2)
        assert await anext(tails[4]) == [Entry(third, b"third")]
        assert [tail.is_watched for tail in tails] == [True, True, False, True, False, True]
