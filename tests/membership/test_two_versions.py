"""Nodes with a newer version of a class beside nodes with an older one: an agent goes only where its state can be loaded."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.logs import SLOW
from support.nodes import Deployment, deployment

import mielin_cells as cells
from mielin_cells.agents.reference import classes
from mielin_cells.errors import StateTooNew
from mielin_cells.log.ids import control_subject
from mielin_cells.membership import table
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.takeover import Takeover
from mielin_cells.rpc import requests


class OlderVault(cells.Agent, name="TwoVersionsVault"):
    count: int = 0

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count


_ = classes.pop("TwoVersionsVault")  # a process knows one class by a name; nodes of this test know the one or the other


class Vault(OlderVault, name="TwoVersionsVault", version=2):
    level: int = 0

    @cells.upgrade(from_version=1)
    def to_2(self, old: dict[str, object]) -> dict[str, object]:
        return {**old, "level": 1}


def older(name: str) -> type[cells.Agent] | None:
    return OlderVault if name == "TwoVersionsVault" else classes.get(name)


@asynccontextmanager
async def both() -> AsyncIterator[Deployment]:
    async with deployment(settings=SLOW) as opened:
        for name in ("old-1", "old-2"):
            await opened.start(name, known=older, about=Announcement(classes={"TwoVersionsVault": 1}))
        for name in ("new-1", "new-2"):
            await opened.start(name, about=Announcement(classes={"TwoVersionsVault": 2}))
        yield opened


async def test_a_newer_state_is_not_moved_to_older_code_and_an_older_one_is_upgraded_on_its_way() -> None:
    async with both() as opened:
        client = opened.client
        vault = await client.on("new-1").spawn(Vault, "v")
        with pytest.raises(cells.MigrationRefused, match="version"):
            await client.migrate(vault, to="old-1")
        assert await vault.add() == 1
        assert "v" in opened.nodes["new-1"].activations.live
        assert (await client.migrate(vault, to="new-2")).ok


async def test_after_a_death_a_newer_state_is_claimed_by_newer_code_alone() -> None:
    async with both() as opened:
        client = opened.client
        vaults = [await client.on("new-1").spawn(Vault, f"v{number}") for number in range(6)]
        assert await asyncio.gather(*(vault.add() for vault in vaults)) == [1] * 6
        opened.kill("new-1")
        with pytest.raises(StateTooNew, match="this code has version 1"):
            await client.claim("v0", to="old-1", force=True)

        members = await table.read_members(client.log)
        takers = [info for info in members.infos() if info.name != "new-1"]
        takeover = Takeover(client.log, client.wire, asyncio.get_running_loop().time)
        taken = await takeover.take({"new-1"}, members.members, takers, on_order=True)
        assert (taken.claimed, taken.failed) == (6, {})
        assert opened.nodes["new-2"].activations.live.keys() == {f"v{number}" for number in range(6)}
        assert await asyncio.gather(*(vault.add() for vault in vaults)) == [2] * 6


async def test_no_older_node_is_asked_to_claim_a_newer_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would load the whole state to find out that it cannot use it."""
    async with both() as opened:
        client, asked = opened.client, Counter[str]()
        for number in range(6):
            await client.on("new-1").spawn(Vault, f"v{number}")
            await client.on("new-1").spawn(Vault, f"w{number}")
            await client.get(Vault, f"w{number}").add()  # its log ends with a record that does not name its class
        opened.kill("new-1")
        request_of = client.wire.request

        async def request(subject: str, data: bytes, timeout: float) -> bytes:
            asked[subject] += isinstance(requests.decode_request(data), requests.Claims)
            return await request_of(subject, data, timeout)

        monkeypatch.setattr(client.wire, "request", request)
        members = await table.read_members(client.log)
        takers = [info for info in members.infos() if info.name != "new-1"]
        takeover = Takeover(client.log, client.wire, asyncio.get_running_loop().time)
        assert (await takeover.take({"new-1"}, members.members, takers, on_order=True)).claimed == 12
        assert {subject for subject, count in asked.items() if count} == {control_subject("new-2")}


async def test_a_newer_state_that_only_older_code_could_take_waits_for_newer_code() -> None:
    async with both() as opened:
        client = opened.client
        vault = await client.on("new-1").spawn(Vault, "v")
        assert await vault.add() == 1
        opened.kill("new-1")
        members = await table.read_members(client.log)
        takers = [info for info in members.infos() if info.name.startswith("old")]
        takeover = Takeover(client.log, client.wire, asyncio.get_running_loop().time)
        taken = await takeover.take({"new-1"}, members.members, takers, on_order=True)
        assert (taken.claimed, taken.owners) == (0, frozenset({"new-1"}))
        assert "Deploy the newer code" in taken.failed["v"]
        assert (await client.owner("v"))[0] == "new-1"  # no older node has written anything
        assert (await takeover.take({"new-1"}, members.members, members.infos(), on_order=True)).claimed == 1
        assert await vault.add() == 2
