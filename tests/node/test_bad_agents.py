"""One agent that cannot run, for whatever reason, keeps no node from starting and no other agent from running."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.bad_agents import QUICK, bad_class, good_class, having
from support.nodes import deployment

import mielin_cells as cells
from mielin_cells.log.ids import log_subject
from mielin_cells.node.ownership import adoption
from mielin_cells.node.ownership.claims import Claims


class Sound(cells.Agent):
    count: int = 0

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count


TROUBLES = (
    "its class is gone", "its upgrade raises", "its upgrade ends the process", "its hook raises", "its hook ends the process",
    "its hook is cancelled", "its hook hangs", "its farewell ends the process", "its log is rubbish", "taking it raises",
)  # fmt: skip


@pytest.mark.parametrize("what", TROUBLES)
async def test_a_node_starts_serves_drains_and_stops_with_an_agent_that_cannot_run(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "SLOW_S", 0.05)
    async with deployment(settings=QUICK) as at, asyncio.timeout(30):
        good = good_class()
        before = await at.start("node-1", known=having(good))
        sound = [await at.client.on("node-1").spawn(Sound, f"s{n}") for n in range(3)]
        bad = [await at.client.on("node-1").spawn(good, f"{n}-bad") for n in range(2)]
        for agent in (*sound, *bad):
            assert await agent.add() == 1  # type: ignore[attr-defined]
        before._close_all()
        before.kill()
        if what == "its log is rubbish":
            last = await at.substrate.log.last(log_subject("0-bad"))
            assert last is not None
            await at.substrate.log.append(log_subject("0-bad"), b"rubbish", last.seq)
        if what == "taking it raises":
            take = Claims.take

            async def raises(claims: Claims, fold: Any, cause: str) -> Any:
                if fold.cls == "Bad":
                    raise KeyError("a bug")
                return await take(claims, fold, cause)

            monkeypatch.setattr(Claims, "take", raises)

        node = await at.start("node-1", known=having(bad_class(what)))
        assert [await agent.add() for agent in sound] == [2] * 3
        await node.rounds.round()
        assert {f"s{n}" for n in range(3)} <= node.activations.live.keys()

        other = await at.start("node-2", known=having(bad_class(what)))
        emptying = node.drains.new(1.0, is_patient=False)
        await emptying.run()
        assert {f"s{n}" for n in range(3)} <= other.activations.live.keys()
        assert [await agent.add() for agent in sound] == [3] * 3
        for one in (node, other):
            await one.stop(0.3)


async def test_an_adoption_that_failed_unexpectedly_is_not_tried_again_in_every_round(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with deployment(settings=QUICK) as at, asyncio.timeout(30):
        good, tries = good_class(), 0
        before = await at.start("node-1", known=having(good))
        await at.client.on("node-1").spawn(good, "bad")
        before._close_all()
        before.kill()

        async def raises(claims: Claims, fold: Any, cause: str) -> Any:
            nonlocal tries
            tries += 1
            raise KeyError("a bug")

        with monkeypatch.context() as patched:
            patched.setattr(Claims, "take", raises)
            node = await at.start("node-1", known=having(good))
            for _ in range(10):
                await node.rounds.round(every=True)
            assert tries == 1
            assert "KeyError" in node.activations.unloadable["bad"].error
            assert len([record for record in caplog.records if record.exc_info]) == 1
        await at.client.resume("bad")
        assert await at.client.get(good, "bad").add() == 1  # type: ignore[attr-defined]
        await node.stop()
