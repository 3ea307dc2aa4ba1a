"""A publisher's messages are stored while it removes old ones, whatever becomes of that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.log.topics.names import subject_of
from mielin_cells.log.topics.posts import decode_post
from mielin_cells.node.topics import publishing
from mielin_cells.node.topics.publishing import TRIM_EVERY


class Herald(cells.Agent):
    count: int = 0

    @cells.handler
    async def say(self) -> int:
        self.count += 1
        cells.publish("t", self.count)
        return self.count


@pytest.mark.parametrize("how", ["succeeds", "fails"])
async def test_what_is_published_while_old_messages_are_removed_is_stored(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was dropped from what is delivered, and the next message took its place: a gap that no retention had made."""
    removing, goes_on = asyncio.Event(), asyncio.Event()

    async def held(*args: Any) -> None:
        removing.set()
        await goes_on.wait()
        if how == "fails":
            raise RuntimeError("a connection that is broken in a new way")

    monkeypatch.setattr(publishing, "remove_old", held)
    async with asyncio.timeout(60), cells.local() as cluster:
        assert isinstance(cluster, Client)
        herald = await cluster.spawn(Herald, "herald")
        while not removing.is_set():
            await herald.say()
        last = await herald.say()
        goes_on.set()
        for _ in range(3):
            last = await herald.say()
        assert last > TRIM_EVERY
        subject, stored = subject_of("t", "herald"), list[int]()
        while len(stored) < last:
            entries = await cluster.log.read(subject)
            posts = [decode_post(entry.data, subject) for entry in entries]
            stored = [n for post in posts for n in range(post.n, post.last + 1)]
            await asyncio.sleep(0.01)
        assert stored == list(range(1, last + 1))
