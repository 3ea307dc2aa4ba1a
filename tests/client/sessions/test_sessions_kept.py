"""Which sessions a client keeps: those in use, those whose calls may still land, and few others."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import cast

import pytest

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.client.sessions import kept
from mielin_cells.client.sessions.session import Session
from mielin_cells.store.reader import load

pytestmark = pytest.mark.usefixtures("few")


class Doorbell(cells.Agent):
    rung: int = 0

    @cells.handler
    async def ring(self) -> int:
        self.rung += 1
        return self.rung


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "FEW", 3)
    monkeypatch.setattr(kept, "REST_S", 0.0)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with cells.local() as cluster:
        yield cast("Client", cluster)


async def call_others(client: Client, count: int = 20) -> None:
    for n in range(count):
        bell = await client.spawn(Doorbell, f"other-{n}")
        await bell.ring()
    gc.collect()


def alive() -> int:
    gc.collect()
    return sum(isinstance(one, Session) for one in gc.get_objects())


async def test_a_client_that_calls_many_agents_keeps_few_sessions_and_goes_on_with_all(client: Client) -> None:
    before = alive()
    await call_others(client, 40)
    async with asyncio.timeout(60):  # the timer of a session's last call holds it until it fires
        while alive() - before > 10:
            await asyncio.sleep(0.05)
    assert [await client.get(Doorbell, f"other-{n}").ring() for n in range(40)] == [2] * 40


async def test_a_session_that_rests_for_less_than_an_hour_is_kept(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "REST_S", 3600.0)
    before = alive()
    await call_others(client, 40)
    assert alive() - before == 40


async def test_a_call_that_was_made_and_not_awaited_is_sent_in_the_session_of_later_ones(client: Client) -> None:
    bell = await client.spawn(Doorbell, "b")
    early = bell.ring()
    await call_others(client)
    assert "b" not in client._sessions.in_use, "the session is not dropped, so this shows nothing"
    assert [await bell.ring(), await early] == [1, 2]
    assert len((await load(client.log, "b")).ledger.peers) == 1


async def test_a_session_whose_message_may_still_land_is_kept(client: Client) -> None:
    bell = await client.spawn(Doorbell, "b")
    await bell.ring()
    session = client.session("b")
    session.given_up.add(2)
    sender = session.sender
    del session
    await call_others(client)
    assert client.session("b").sender == sender


async def test_a_session_that_is_forgotten_is_not_found_by_a_later_call(client: Client) -> None:
    bell = await client.spawn(Doorbell, "b")
    await bell.ring()
    old = client.session("b")
    client.forget(old)
    assert client.session("b") is not old
    client.forget(old)
    assert await bell.ring() == 2
