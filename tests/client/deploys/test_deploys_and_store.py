"""What says nothing about new code: errors of the store, and messages that were never run."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest
from support.nodes import deployment

import mielin_cells as cells
from mielin_cells.client.deploys.driver import Driver
from mielin_cells.client.deploys.moving import Moving, is_of_code
from mielin_cells.client.operator import Operator
from mielin_cells.errors import InternalError, StoreCorrupt
from mielin_cells.log.commit import DeadLetter
from mielin_cells.membership.announcement import Announcement
from mielin_cells.policy.deploys.events import Began
from mielin_cells.policy.deploys.machine import Phase
from mielin_cells.store.deploys import Deploys
from mielin_cells.store.reader import load


class LateDesk(cells.Agent):
    heard: list[str] = []

    @cells.handler
    async def hear(self, word: str) -> list[str]:
        self.heard.append(word)
        return self.heard

    @cells.handler(tries=1)
    async def refuse(self, word: str) -> None:
        raise ValueError(word)


@pytest.mark.parametrize(
    ("error", "phase"), [(StoreCorrupt("It is damaged."), Phase.DONE), (InternalError("A bug."), Phase.UNDONE)]
)
async def test_a_store_that_refuses_for_a_while_is_waited_for_and_a_bug_undoes_the_deploy(
    error: cells.CellError, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with deployment() as made, asyncio.timeout(30):
        await made.start("old")
        await made.start("new", about=Announcement(is_reserved=True))
        await made.client.on("old").spawn(LateDesk, "d")
        deploys, said, move = Deploys(made.substrate.log), list[dict[str, Any]](), Moving.move
        await deploys.append(Began(deploy="d-1", app="new.py", old=["old"], new=["new"], stages=[100], watch_s=0.1))

        async def refused(self: Moving, effect: Any) -> Any:
            monkeypatch.setattr(Moving, "move", move)
            raise error

        monkeypatch.setattr(Moving, "move", refused)
        ended = await Driver(made.client, deploys, said.append).run()
        assert ended.phase is phase
        waits = [one["reason"] for one in said if one["event"] == "waiting"]
        assert waits == ([error.message] if phase is Phase.DONE else [])


async def test_an_undo_sends_letters_again_whose_turns_failed_and_none_that_came_too_late() -> None:
    """Seed 354: a message ran long after its deadline, because an undo had sent it again."""
    async with deployment("n1") as made, asyncio.timeout(30):
        client = made.client
        desk = await client.spawn(LateDesk, "d")
        await client.suspend("d")
        await desk.hear.options(deadline=0.05).tell("late")
        await asyncio.sleep(0.1)  # the deadline is over by the store's clock, which is this machine's
        await client.resume("d")
        await desk.refuse.tell("refused")
        while len(await Operator(client).letters("d")) < 2:
            await asyncio.sleep(0.01)
        client.rng = Random(1)
        moving = Moving(client, Began(deploy="d-1", app="new.py", old=["n1"], new=["n2"]), lambda moved, of: None)
        counts = {"replayed": 0}
        await moving._replay(await load(client.log, "d"), counts)
        assert counts == {"replayed": 1}
        assert await desk.hear("now") == ["now"]


@pytest.mark.parametrize(
    ("cause", "tries", "handler", "is_sent"),
    [
        ("ValueError: no", 5, "hear", True), ("NoSuchHandler: It has no handler 'hear'.", 0, "hear", True),
        ("BadArguments: word is no str.", 1, "hear", True), ("BadArguments: it is no JSON.", 0, "hear", True),
        ("InboxFull", 3, "hear", True), ("InboxFull: too many.", 0, "hear", False), ("Expired: late.", 0, "hear", False),
        ("KeyConflict: another.", 0, "hear", False), ("SessionExpired: forgotten.", 0, "hear", False),
        ("TopicGap: 1 to 3 are gone.", 0, "hear", False), ("WaitRejected: no.", 0, "hear", False),
        ("WrongClass: it is another.", 0, "hear", False), ("The inbox is damaged.", 1, "", False),
    ],
)  # fmt: skip
def test_letters_are_sent_again_that_other_code_may_handle(cause: str, tries: int, handler: str, is_sent: bool) -> None:
    assert is_of_code(DeadLetter(7, "s", 1, handler, cause, tries, [], b"")) is is_sent
