"""Timers as an operator sees them: listed, taken away, and told once when their handler is gone."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from support.waiting import until

import mielin_cells as cells
from mielin_cells.agents.spec import spec_of
from mielin_cells.cli import look, steer
from mielin_cells.cli.show import Printer
from mielin_cells.client.client import Client
from mielin_cells.client.operator import Operator
from mielin_cells.log.ids import log_subject
from mielin_cells.store.reader import load


class Sweeper(cells.Agent):
    swept: int = 0

    @cells.handler
    async def begin(self, seconds: float) -> str:
        cells.after(1000, self.sweep, id="later")()
        return cells.every(seconds, self.sweep, id="often")()

    @cells.handler
    async def sweep(self) -> None:
        self.swept += 1

    @cells.handler
    async def count(self) -> int:
        return self.swept


@pytest_asyncio.fixture
async def operator() -> AsyncIterator[Operator]:
    async with cells.local(nodes=2) as cluster:
        assert isinstance(cluster, Client)
        await cluster.on("node-1").spawn(Sweeper, "broom")
        yield Operator(cluster)


async def test_a_repeating_timer_without_its_handler_is_logged_once_and_removed_by_an_operator(
    operator: Operator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broom = await operator.client.spawn(Sweeper, "broom")
    await broom.begin(0.1)
    monkeypatch.delitem(spec_of(Sweeper).handlers, "sweep")
    with caplog.at_level(logging.WARNING, "mielin_cells.timers"):
        await until(lambda: bool(caplog.records))
        last = await operator.log.last(log_subject("broom"))
        await asyncio.sleep(0.25)  # more times of it
    [said] = [record.getMessage() for record in caplog.records]
    assert "timer 'often' is due every 0.1 s, and class Sweeper has no handler 'sweep'" in said
    assert "`mielin cancel broom often`" in said
    assert await operator.log.last(log_subject("broom")) == last  # a time without a message writes nothing
    assert await operator.letters("broom") == []
    assert await look.timers.work(operator, Printer(as_json=False), "broom") == 0
    shown = capsys.readouterr().out
    assert "sweep (gone)" in shown
    assert "0.1 s" in shown
    assert [timer["is_known"] for timer in await listed(operator, capsys)] == [False, False]
    assert await steer.cancel.work(operator, Printer(as_json=False), "broom", "often") == 0
    assert [timer["id"] for timer in await listed(operator, capsys)] == ["later"]
    await operator.client.migrate("broom", "node-2")
    assert [timer["id"] for timer in await listed(operator, capsys)] == ["later"]


async def listed(operator: Operator, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    capsys.readouterr()
    await look.timers.work(operator, Printer(as_json=True), "broom")
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


async def test_a_timer_whose_handler_is_there_again_goes_on(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broom = await operator.client.spawn(Sweeper, "broom")
    await broom.begin(0.005)
    with monkeypatch.context() as meanwhile, caplog.at_level(logging.WARNING, "mielin_cells.timers"):
        meanwhile.delitem(spec_of(Sweeper).handlers, "sweep")
        await until(lambda: bool(caplog.records))
        letters = await operator.letters("broom")
    swept = await broom.count()
    async with asyncio.timeout(30):
        while await broom.count() <= swept:
            await asyncio.sleep(0.002)
    assert len(letters) <= 1  # of a message that was on its way when the handler went


async def test_a_suspended_agents_timer_is_taken_away(operator: Operator) -> None:
    await (await operator.client.spawn(Sweeper, "broom")).begin(1000)
    await operator.client.suspend("broom", "tea")
    await operator.cancel_timer("broom", "often")
    assert set((await load(operator.log, "broom")).ledger.timers) == {"later"}
    await operator.client.resume("broom")
    assert [timer.id for timer in await operator.timers("broom")] == ["later"]
    with pytest.raises(cells.UsageError, match="no timer 'often', and that is no id of a call; its timers are 'later'"):
        await operator.cancel_timer("broom", "often")
    with pytest.raises(cells.NoSuchAgent):
        await operator.timers("nobody")
