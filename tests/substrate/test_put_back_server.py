"""A NATS server whose store is put back to an older copy, under nodes and a client that live."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import pytest
from support.nats_servers import WAIT_S, nats_server, opened

import mielin_cells as cells
from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.errors import EpochRegression
from mielin_cells.node.node import Node
from mielin_cells.store.reader import load

QUICK = cells.Settings(reconcile_s=0.2, ask_repeat_s=0.2, regression_s=0.3)


class Vault(cells.Agent):
    coins: int = 0

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.coins += n
        return self.coins


async def test_a_server_started_on_an_older_copy_quarantines_agents_that_had_gone_on(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "server") as server, opened(server.url) as one, opened(server.url) as two:
        client = Client(two.log, two.wire, settings=QUICK)
        node = Node("node-1", one.log, one.wire, classes.get, settings=QUICK, wall=time.time, cluster=client)
        await client.open()
        await node.start()
        try:
            gone_on, rested = await client.spawn(Vault, "gone-on"), await client.spawn(Vault, "rested")
            assert await gone_on.add(1) == await rested.add(1) == 1
            server.kill()
            shutil.copytree(tmp_path / "server" / "data", tmp_path / "copy")
            await server.start()
            async with asyncio.timeout(WAIT_S):
                assert await gone_on.add(10) == 11  # the same store again: no agent is quarantined
            server.kill()
            shutil.rmtree(tmp_path / "server" / "data")
            shutil.copytree(tmp_path / "copy", tmp_path / "server" / "data")
            await server.start()
            with pytest.raises(EpochRegression, match="mielin resume gone-on"):
                await gone_on.add(1)
            async with asyncio.timeout(WAIT_S):
                while (await load(two.log, "gone-on")).lifecycle.error is None:
                    await asyncio.sleep(0.02)
                assert await rested.add(1) == 2
            [found] = [info for info in await client.agents() if info.id == "gone-on"]
            assert (found.state, found.code) == ("Error", "EpochRegression")
            await client.resume("gone-on")
            assert (await client.show("gone-on")).state == "Running"
        finally:
            await client.close()
            node.kill()
            await asyncio.gather(*node.home.tasks, return_exceptions=True)
