"""Calls as an operator sees them: listed with their ids, and cancelled by them."""

from __future__ import annotations

import asyncio
import json

import pytest

import mielin_cells as cells
from mielin_cells.cli import look, steer
from mielin_cells.cli.show import Printer
from mielin_cells.client.client import Client
from mielin_cells.client.operator import Operator
from mielin_cells.errors import Cancelled, UsageError


class Idler(cells.Agent, name="CliIdler"):
    @cells.handler
    async def hang(self) -> None:
        await asyncio.Event().wait()

    @cells.handler
    async def say(self) -> None:
        pass


async def test_calls_are_listed_with_their_ids_and_cancelled_by_them(capsys: pytest.CaptureFixture[str]) -> None:
    async with cells.local() as cluster:
        assert isinstance(cluster, Client)
        operator, idler = Operator(cluster), await cluster.spawn(Idler, "i")
        asks = [asyncio.ensure_future(idler.hang()), asyncio.ensure_future(idler.say())]
        async with asyncio.timeout(60):
            while len(await operator.calls("i")) < 2:
                await asyncio.sleep(0.005)
        assert await look.calls.work(operator, Printer(as_json=True), "i") == 0
        listed = json.loads(capsys.readouterr().out)
        assert [(one["handler"], one["state"], one["priority"]) for one in listed] == [
            ("hang", "runs", "normal"), ("say", "waits", "normal"),
        ]  # fmt: skip
        for one in reversed(listed):
            assert await steer.cancel.work(operator, Printer(as_json=False), "i", one["id"]) == 0
        assert "is cancelled, unless it has taken effect" in capsys.readouterr().out
        for ask in asks:
            with pytest.raises(Cancelled):
                await ask
        assert await operator.calls("i") == []
        with pytest.raises(UsageError, match="and that is no id of a call"):
            await operator.cancel("i", "nonsense")
