"""Whatever is wrong with policies, sensors and what nodes say of themselves: it is named, and agents go on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from support.processes import Deployment, deployment

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.log.ids import MEMBERS
from mielin_cells.membership.members import Planned, decode_record
from mielin_cells.policies import MigrationPolicy, Policy, Thermal

APP = """
import threading

import mielin_cells as cells
from mielin_cells.sensors import sensor


class Guest(cells.Agent, name="BadPoliciesGuest"):
    n: int = 0

    @cells.handler
    async def add(self) -> int:
        self.n += 1
        return self.n


@sensor("temperature_c", every_s=0.1)
def raises():
    raise OSError("no thermometer")


@sensor("battery", every_s=0.1, timeout_s=0.2)
def hangs():
    threading.Event().wait()


@sensor("store_ms", every_s=0.1)
def talks():
    return "far"


@sensor("slots", every_s=0.1)
def lies():
    return 1_000_000
"""

CONFIG = """
[settings]
reconcile_s = 0.5
agents_max = 4

[[policies]]
match = { class = "BadPoliciesGuest", id = "torn" }
require = ["node.labels.zone == 'a'", "node.labels.zone == 'b'"]

[[policies]]
match = { id = "torn", class = "BadPoliciesGuest" }
immovable = true

[node.labels]
zone = "a"
"""
LIMIT_S = 60.0
ANXIOUS = MigrationPolicy(thermal=Thermal(sustained_s=0), cooldown_s=1)


class Guest(cells.Agent, name="BadPoliciesGuest"):
    n: int = 0

    @cells.handler
    async def add(self) -> int:
        self.n += 1
        return self.n


def under(*rules: str) -> Policy:
    return Policy(require=rules)


async def attack(running: Deployment, client: Client) -> None:
    anxious = await client.on("node-1").with_policy(Policy(migration=ANXIOUS)).spawn(Guest, "anxious")
    names = {"temperature_c", "battery", "store_ms"}
    async with asyncio.timeout(LIMIT_S):
        while any(info.facts.failing.keys() != names for info in await client.nodes()):
            await asyncio.sleep(0.05)
    failing = {info.name: info.facts.failing for info in await client.nodes()}
    for why in failing.values():
        assert "no thermometer" in why["temperature_c"]
        assert why["battery"] == "has not answered for 0.2 s"
        assert "returned str 'far'" in why["store_ms"]
    assert "temperature_c fails" in running.run("nodes").stdout
    assert "no thermometer" in running.run("show", "node-1").stdout

    with pytest.raises(cells.errors.NoNodeFits, match=r"zone == 'b'.*does not hold"):
        await client.spawn(Guest, "torn")
    with pytest.raises(cells.errors.NoNodeFits, match="is not known"):
        await client.with_policy(under("node.temperature_c < 50")).spawn(Guest, "cold")
    with pytest.raises(cells.errors.NoNodeFits, match="is not known"):
        await client.with_policy(under("node.sensors.nobody_has_it > 1")).spawn(Guest, "rare")
    with pytest.raises(cells.errors.NoNodeFits, match="steps"):
        await client.with_policy(under("+".join(["1"] * 999) + ">0")).spawn(Guest, "long")
    with pytest.raises(cells.UsageError, match="column 1"):
        client.with_policy(under("open('x')"))

    others = [await client.on("node-2").spawn(Guest, f"g{n}") for n in range(4)]
    with pytest.raises(cells.MigrationRefused, match="node-2 has 4 agents, and takes at most 4"):
        await client.migrate(anxious, to="node-2")
    assert await asyncio.gather(*(one.add() for one in (anxious, *others))) == [1] * 5
    records = [decode_record(entry.data, "members") for entry in await client.log.read(MEMBERS, 0, 10_000)]
    assert not [record for record in records if isinstance(record, Planned)], "what is not known triggers nothing"


def test_whatever_is_wrong_is_named_and_nothing_stops(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "mielin.toml").write_text(CONFIG)

    async def play(running: Deployment) -> None:
        address = json.loads((tmp_path / ".mielin" / "address.json").read_text())
        async with cells.connect(address["url"]) as client:
            assert isinstance(client, Client)
            await attack(running, client)

    with deployment(tmp_path, 2, "--config", "mielin.toml") as running:
        asyncio.run(play(running))
        said = "\n".join(running.err.all() + running.out.all())
        assert "[[policies]]: immovable: the entry for" in said or "[[policies]]: require: the entry for" in said, said
