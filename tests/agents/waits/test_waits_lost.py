"""Words about waits of calls that the store has lost, that are still to come, and that come while nobody owns the agent (rule T5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio
from support.nodes import Deployment, deployment
from support.waiters import Applicant, may_end, next_token, settles, tokens

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.errors import WaitOver
from mielin_cells.log.ids import inbox_subject
from mielin_cells.log.message import client_sender, decode_mail
from mielin_cells.log.waits.tokens import WaitName, token_of, wait_of
from mielin_cells.node.activation.calls.resolves import Resolves
from mielin_cells.store.reader import load
from mielin_cells.store.secret import Secret

QUICK = cells.Settings(ask_timeout_s=1.0, ask_repeat_s=0.2, reconcile_s=0.5)


@pytest_asyncio.fixture
async def opened() -> AsyncIterator[Deployment]:
    tokens.clear()
    may_end.clear()
    async with deployment("node-1", "node-2", settings=QUICK) as made:
        yield made


async def spawned(client: Client) -> Applicant:
    return await client.on("node-1").spawn(Applicant, "desk")


async def genuine(client: Client, like: str, sender: str, n: int) -> str:
    """A token that the deployment would have made for this message of a client."""
    name: WaitName = msgspec.structs.replace(wait_of(like), sender=sender, n=n)
    return token_of(await Secret(client.log).get(), name)


async def held(client: Client) -> list[int]:
    """Entries of the critical inbox that the agent's log says are kept."""
    inboxes = (await load(client.log, "desk")).ledger.inboxes or {}
    return [*inboxes["critical"].held]


async def test_a_word_about_a_call_that_the_store_has_lost_is_told_so_and_is_not_kept(opened: Deployment) -> None:
    client = opened.client
    desk = await spawned(client)
    lost = await genuine(client, await desk.begin("tea"), client_sender("gone"), 1)
    for word in range(5):
        with pytest.raises(WaitOver, match="the store has lost the call"):
            await client.resolve(lost, word)
    await desk.note("goes on")
    assert await held(client) == []


async def test_without_that_look_its_words_are_kept_for_ever(
    opened: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard, taken away."""

    async def never(self: Resolves, name: WaitName, until: int) -> bool:
        return False

    monkeypatch.setattr(Resolves, "_is_lost", never)
    client = opened.client
    desk = await spawned(client)
    lost = await genuine(client, await desk.begin("tea"), client_sender("gone"), 1)
    for word in range(2):
        with pytest.raises(cells.AskTimeout):
            await client.resolve(lost, word)
    await desk.note("goes on")
    assert len(await held(client)) >= 2


async def test_words_that_an_earlier_version_kept_are_answered_by_the_next_owner(
    opened: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = opened.client
    desk = await spawned(client)
    lost = await genuine(client, await desk.begin("tea"), client_sender("gone"), 1)
    with monkeypatch.context() as patch:

        async def never(self: Resolves, name: WaitName, until: int) -> bool:
            return False

        patch.setattr(Resolves, "_is_lost", never)
        with pytest.raises(cells.AskTimeout):
            await client.resolve(lost, 1)
        await desk.note("goes on")
        assert len(await held(client)) >= 1
    assert (await client.migrate(desk, to="node-2")).ok
    with pytest.raises(WaitOver):
        await client.resolve(lost, 2)
    await desk.note("goes on")
    assert await held(client) == []


async def test_a_word_about_a_call_that_waits_behind_others_is_kept_until_its_turn(opened: Deployment) -> None:
    client = opened.client
    desk = await spawned(client)
    first = await desk.begin("tea")
    slow = asyncio.create_task(desk.begin_slowly.options(timeout=30)("milk"))
    await next_token(0)
    order = asyncio.create_task(desk.order.options(timeout=30)("rum"))
    early = await genuine(client, first, client.session("desk").sender, await number_of(client, "order"))
    name = msgspec.structs.replace(wait_of(early), name="approval", path=(), k=0)
    early = token_of(await Secret(client.log).get(), name)
    word = asyncio.create_task(resolved(client, early, True))
    await asyncio.sleep(0.1)
    may_end.set()
    await slow
    assert await order == "rum: yes"
    await word  # False if the answer to the first word was late, and the same was said again


async def number_of(client: Client, handler: str) -> int:
    """The number of the first message that calls this handler, once it is stored."""
    async with asyncio.timeout(30):
        while True:
            mails = [decode_mail(one.data, "the inbox") for one in await client.log.read(inbox_subject("desk"))]
            for message in (message for mail in mails for message in mail.messages):
                if message.handler == handler:
                    return message.n
            await asyncio.sleep(0.005)


async def resolved(client: Client, token: str, value: object) -> bool:
    """Says it again until there is an answer."""
    while True:
        try:
            return (await client.resolve(token, value)).accepted
        except cells.AskTimeout:
            continue


async def test_a_word_that_comes_while_nobody_owns_the_agent_is_taken_by_the_next_owner(opened: Deployment) -> None:
    client = opened.client
    desk = await spawned(client)
    order = asyncio.create_task(desk.order.options(timeout=60)("tea"))
    token = await next_token(0)
    opened.kill("node-1")
    words = [asyncio.create_task(resolved(client, token, one)) for one in (True, True)]
    await asyncio.sleep(0.2)
    assert not order.done()
    await client.claim("desk", to="node-2")
    assert await order == "tea: yes"
    assert sorted(await asyncio.gather(*words)) in ([False, True], [True, True]), (
        "each person says one word, twice perhaps"
    )
    await settles(desk.look, ["tea: yes"])
    assert set(tokens) == {token}, (
        "the call that gives it out is made again if it was not recorded, with the same token"
    )
