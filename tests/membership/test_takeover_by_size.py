"""A policy that looks at the size of its agent's state is obeyed by takeovers, which read no states."""

from __future__ import annotations

import asyncio

import pytest
from support.failing import QUICK, Air, die, enter
from support.nodes import deployment

import mielin_cells as cells
from mielin_cells.log.policy import Policy
from mielin_cells.membership.announcement import Announcement
from mielin_cells.policy.selectors import Selector

SMALL = Policy(require=("agent.bytes < 1000000 and node.labels.region == 'eu'",))


class Sized(cells.Agent, name="TakenBySize"):
    @cells.handler
    async def add(self) -> int:
        return 1


@pytest.mark.parametrize("is_own", [True, False], ids=["its own policy", "an entry"])
async def test_an_agent_whose_policy_looks_at_its_size_is_taken_over(is_own: bool) -> None:
    entry = Selector(match={"class": "TakenBySize"}, policy=SMALL)
    async with deployment(settings=QUICK) as opened, asyncio.timeout(60):
        air, client = Air(), opened.client
        await enter(opened, air, "first", about=Announcement(labels={"region": "us"}))
        own = Policy(require=(f"not known(agent.bytes) or {SMALL.require[0]}",)) if is_own else Policy()
        ref = await client.with_policy(own).spawn(Sized, "s")
        for name, region in (("n1", "us"), ("n2", "us"), ("n3", "us"), ("n4", "eu")):
            about = Announcement(labels={"region": region}, selectors=() if is_own else (entry,))
            await enter(opened, air, name, about=about)
        die(opened.nodes.pop("first"), air)
        assert await ref.add() == 1
        assert (await client.owner("s"))[0] == "n4"
