"""Where an agent may run depends on its attributes, and they cannot be read: nobody acts as if it had none, and all say why."""

from __future__ import annotations

import asyncio

import pytest
from support.failing import QUICK, Air, die, enter
from support.nodes import Deployment, deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells.client.policies.why import why
from mielin_cells.errors import StoreUnreachable
from mielin_cells.log.policy import Policy
from mielin_cells.membership import whereabouts
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.selection import UNREAD
from mielin_cells.policy.selectors import Selector
from mielin_cells.store.directory import Directory

GOLD = Selector(match={"tier": "gold"}, policy=Policy(require=("node.labels.region == 'eu'",)))


class Golden(cells.Agent, name="UnreadGolden"):
    @cells.handler
    async def tag(self) -> None:
        cells.attributes(tier="gold")

    @cells.handler
    async def add(self) -> int:
        return 1


CHOOSY = Policy(require=("not known(agent.attributes.tier) or agent.attributes.tier == node.labels.tier",))
"""A policy of an agent's own that looks at its attributes; it has none yet when it is made."""


class Broken:
    """The directory of attributes, which can be read or not."""

    is_broken = False


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    state, refresh = Broken(), Directory.refresh

    async def refreshed(self: Directory) -> object:
        if state.is_broken:
            raise StoreUnreachable("The directory is away.")
        return await refresh(self)

    monkeypatch.setattr(Directory, "refresh", refreshed)
    monkeypatch.setattr(whereabouts, "FRESH_S", 0.0)
    return state


async def tagged(opened: Deployment, on: str, policy: Policy | None = None) -> Golden:
    there = opened.client.on(on)
    ref = await (there if policy is None else there.with_policy(policy)).spawn(Golden, "g")
    await ref.tag()
    async with asyncio.timeout(30):
        while not [one async for one in opened.client.find(Golden, where='tier == "gold"')]:
            await asyncio.sleep(0.01)
    return ref


async def test_moves_and_drains_wait_and_say_so(broken: Broken) -> None:
    async with deployment(settings=QUICK) as opened:
        client = opened.client
        await opened.start("n1", about=Announcement(labels={"region": "eu"}, selectors=(GOLD,)))
        ref = await tagged(opened, "n1")
        await opened.start("n2", about=Announcement(labels={"region": "us"}, selectors=(GOLD,)))
        broken.is_broken = True
        for to in ("", "n2"):
            with pytest.raises(cells.errors.NoNodeFits, match=f"is not moved: {UNREAD}. It runs on where it is"):
                await client.migrate("g", to=to or None)
        assert UNREAD in (await why(client, "g")).source
        planned = await opened.nodes["n1"].drains.planned()
        assert [row.blocker for row in planned.rows] == [UNREAD]
        report = await client.drain("n1", deadline_s=0.5)
        assert (report.moved, dict(report.blocked)) == (0, {"g": UNREAD})
        assert (await client.owner("g"))[0] == "n1"
        await opened.start("n3", about=Announcement(labels={"region": "eu"}, selectors=(GOLD,)))
        broken.is_broken = False
        assert (await client.drain("n1", deadline_s=20.0)).moved == 1
        assert (await client.owner("g"))[0] == "n3"
        assert await ref.add() == 1


@pytest.mark.parametrize("own", [None, CHOOSY], ids=["an entry", "its own policy"])
async def test_a_takeover_waits_and_says_so_and_then_obeys(
    own: Policy | None, broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    async with deployment(settings=QUICK) as opened, asyncio.timeout(60):
        air, client = Air(), opened.client
        for name, region in (("n1", "us"), ("n2", "eu"), ("n3", "us"), ("n4", "eu")):
            labels = {"region": region, "tier": "gold" if region == "eu" else "base"}
            about = Announcement(labels=labels, selectors=(GOLD,) if own is None else ())
            await enter(opened, air, name, about=about)
        ref = await tagged(opened, "n2", own)
        broken.is_broken = True
        die(opened.nodes.pop("n2"), air)
        await until(lambda: f"g: {UNREAD}" in caplog.text)
        assert all("g" not in node.activations.live for node in opened.nodes.values())
        broken.is_broken = False
        assert await ref.add() == 1
        assert (await client.owner("g"))[0] == "n4"
