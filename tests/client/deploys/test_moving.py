"""Rounds of a deploy's moves: what counts as moved, how soon the next one begins, and what follows once an agent is back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from support.nodes import Deployment, deployment

import mielin_cells as cells
from mielin_cells.client.deploys import moving as module
from mielin_cells.client.deploys.moving import Moving
from mielin_cells.client.operator import Operator
from mielin_cells.client.requester import Requester
from mielin_cells.errors import AskTimeout, InboxFull, UsageError
from mielin_cells.membership.announcement import Announcement
from mielin_cells.policy.deploys.events import AnyEvent, Began, Moved, TakenBack
from mielin_cells.policy.deploys.machine import MoveAgents
from mielin_cells.rpc import requests
from mielin_cells.store.letters import Letter

REST_S = 0.1
LATE = 4
"""Reads in which a replica still shows an agent where it was."""


class MovingTill(cells.Agent):
    n: int = 0

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.n += n
        return self.n

    @cells.handler(tries=1)
    async def refuse(self, word: str) -> None:
        raise ValueError(word)


def of_deploy(made: Deployment) -> Moving:
    return Moving(made.client, Began(deploy="d-1", app="new.py", old=["old"], new=["new"]), lambda moved, of: None)


@pytest.mark.parametrize(
    ("at", "run", "event"),
    [
        ("new", lambda moving: moving.move(MoveAgents(0, 100, "")), Moved),
        ("old", lambda moving: moving.take_back(), TakenBack),
    ],
)
async def test_an_agent_that_a_late_replica_shows_where_it_was_is_no_move_and_waits_for_the_next_round(
    at: str, run: Callable[[Moving], Awaitable[AnyEvent]], event: type[AnyEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, real, clock = list[float](), Moving.owned, asyncio.get_running_loop().time
    from_there = ["old"] if at == "new" else ["new"]

    async def owned(self: Moving, nodes: Iterable[str]) -> list[str]:
        if list(nodes) != from_there:
            return await real(self, nodes)
        reads.append(clock())
        return ["t"] if len(reads) <= LATE else await real(self, nodes)

    monkeypatch.setattr(Moving, "owned", owned)
    monkeypatch.setattr(module, "REST_S", REST_S)
    async with deployment("old", "new") as made, asyncio.timeout(30):
        await made.client.on(at).spawn(MovingTill, "t")
        ended = await run(of_deploy(made))
    assert isinstance(ended, event)
    assert isinstance(ended, (Moved, TakenBack))
    assert (ended.agents if isinstance(ended, Moved) else ended.moved) == 0
    rests = [later - earlier for earlier, later in pairwise(reads)]
    assert len(rests) == LATE
    assert min(rests) >= REST_S * 0.9


# ---- what follows once an agent is back ---------------------------------------------------------------------------


@asynccontextmanager
async def world() -> AsyncIterator[Deployment]:
    async with deployment() as made:
        for name in ("old", "new"):
            await made.start(name, about=Announcement(classes={"MovingTill": 1}))
        yield made


Replay = Callable[[Operator, str, str], Awaitable[Letter]]


async def with_a_letter(made: Deployment) -> None:
    """An agent that a deploy has moved to the new node, where a message became a dead letter."""
    till = await made.client.on("old").spawn(MovingTill, "t")
    assert await of_deploy(made).move(MoveAgents(0, 100, "")) is not None
    await till.refuse.tell("no")
    while not await Operator(made.client).letters("t"):
        await asyncio.sleep(0.01)


def failing(times: int, real: Replay) -> Replay:
    """`replay` that fails so often."""
    left = [times]

    async def replay(self: Operator, agent: str, which: str) -> Letter:
        left[0] -= 1
        if left[0] >= 0:
            raise InboxFull("It is full.") if times == 1 else UsageError("It is wrong.")
        return await real(self, agent, which)

    return replay


async def test_a_letter_whose_sending_fails_once_is_sent_in_a_later_round(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as made, asyncio.timeout(30):
        await with_a_letter(made)
        monkeypatch.setattr(Operator, "replay", failing(1, Operator.replay))
        back = await of_deploy(made).take_back()
    assert (back.moved, back.replayed, back.stuck) == (1, 1, [])


async def test_an_agent_whose_letters_cannot_be_sent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as made, asyncio.timeout(30):
        await with_a_letter(made)
        monkeypatch.setattr(Operator, "replay", failing(100, Operator.replay))
        back = await of_deploy(made).take_back()
        assert (await made.client.owner("t"))[0] == "old"
    [(agent, why)] = back.stuck
    assert (back.moved, back.replayed, back.stay, agent) == (1, 0, 1, "t")
    assert "It is wrong." in why


async def test_a_driver_that_follows_a_killed_one_does_what_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = asyncio.Event()

    async def replay(self: Operator, agent: str, which: str) -> Letter:
        reached.set()
        return await asyncio.Future[Letter]()

    async with world() as made, asyncio.timeout(30):
        await with_a_letter(made)
        with monkeypatch.context() as patched:
            patched.setattr(Operator, "replay", replay)
            killed = asyncio.create_task(of_deploy(made).take_back())
            await reached.wait()
            killed.cancel()
            await asyncio.gather(killed, return_exceptions=True)
        back = await of_deploy(made).take_back()
    assert (back.moved, back.replayed, back.stuck) == (0, 1, [])


async def test_a_rewound_agent_whose_resume_fails_is_resumed_in_a_later_round(monkeypatch: pytest.MonkeyPatch) -> None:
    real, orders = Requester.send_to_owner, list[str]()

    async def send(self: Requester, agent: str, request: Any, *args: Any, **options: Any) -> Any:
        if isinstance(request, requests.Order) and request.order == "resume":
            orders.append(agent)
            if len(orders) == 1:
                raise AskTimeout("It did not answer.")
        return await real(self, agent, request, *args, **options)

    async with world() as made, asyncio.timeout(30):
        till = await made.client.on("old").spawn(MovingTill, "t")
        began = Began(deploy="d-1", app="new.py", old=["old"], new=["new"], rewinds=True)
        await Moving(made.client, began, lambda moved, of: None).move(MoveAgents(0, 100, ""))
        assert await till.add() == 1
        await made.nodes["new"].activations.running("t").failed(ValueError("the new code is wrong"))
        monkeypatch.setattr(Requester, "send_to_owner", send)
        back = await Moving(made.client, began, lambda moved, of: None).take_back()
        assert (back.rewound, back.stuck, orders) == (1, [], ["t", "t"])
        assert await till.add() == 2
