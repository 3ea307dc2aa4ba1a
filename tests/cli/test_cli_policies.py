"""`mielin why`, `why-not` and `place --dry-run`: what they say is what placement decides."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from support.nodes import Deployment, deployment

import mielin_cells as cells
from mielin_cells.agents.reference import classes, policies_of, versions_of
from mielin_cells.cli.policies import commands
from mielin_cells.cli.show import Printer
from mielin_cells.client.operator import Operator
from mielin_cells.deployment.codes import DONE, REFUSED
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.members import Loads
from mielin_cells.policies import Facts, Policy, Preference


class WhyVault(
    cells.Agent, policy=Policy(require=("node.labels.zone != 'c'", "node.cpu < 80"), prefer=(Preference("node.mains"),))
):
    @cells.handler
    async def where(self) -> str:
        return cells.this().node


class WhyCart(cells.Agent):
    pass


NODES = {
    "n1": ("a", Facts(cpu=20.0, mains=False)), "n2": ("b", Facts(cpu=30.0, mains=True)), "n3": ("b", Facts(cpu=95.0)),
    "n4": ("c", Facts(cpu=1.0)), "n5": ("a", Facts()),
}  # fmt: skip


@pytest.fixture
async def made() -> AsyncIterator[Deployment]:
    async with deployment() as opened:
        for name, (zone, facts) in NODES.items():
            known = {cls.__mielin_name__: cls for cls in (WhyVault, WhyCart)}
            about = Announcement(labels={"zone": zone}, classes=versions_of(known), policies=policies_of(known))
            node = await opened.start(name, about=about)
            await tell_facts(opened, node.home.incarnation, name, facts)
        yield opened


async def tell_facts(made: Deployment, incarnation: int, name: str, facts: Facts) -> None:
    """As the node's own record of its facts."""
    members = made.nodes[name].members
    await members.read_to_end()
    await members.append(lambda table: Loads(name, incarnation, 0, {}, {name: facts}))


async def test_why_says_which_rules_decided_and_with_which_values(
    made: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classes["WhyVault"] is WhyVault
    vault = await made.client.spawn(WhyVault, "v")
    assert await vault.where() == "n2"
    operator = Operator(made.client)
    assert await commands.why.work(operator, Printer(False), "v") == DONE
    said = capsys.readouterr().out
    assert "there: it would be placed there now" in said
    assert "on n4, node.labels.zone != 'c' does not hold: node.labels.zone is \"c\"" in said
    assert "on n3, node.cpu < 80 does not hold: node.cpu is 95.0" in said
    assert "on n5, node.cpu < 80 is not known: node.cpu is not known" in said
    assert "n2 has 1 points more" in said
    assert await commands.why.work(operator, Printer(True), "v") == DONE
    value = json.loads(capsys.readouterr().out)
    assert (value["node"], value["placement"]["node"]) == ("n2", "n2")
    found = {one["node"]: one for one in value["placement"]["verdicts"]}
    assert found["n3"]["findings"][2] == {
        "rule": "require", "text": "node.cpu < 80", "holds": False, "is_required": True, "values": {"node.cpu": 95.0},
    }  # fmt: skip


async def test_why_not_says_what_keeps_an_agent_from_a_node(
    made: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    await made.client.spawn(WhyVault, "v")
    operator = Operator(made.client)

    async def said(node: str) -> str:
        assert await commands.why_not.work(operator, Printer(False), "v", node) == DONE
        return capsys.readouterr().out

    assert (await said("n4")).startswith("v may not run on n4: on n4, node.labels.zone != 'c' does not hold")
    assert (await said("n1")).startswith("v may run on n1, and is not placed there: n2 has 1 points more")
    assert (await said("n2")).startswith("v runs on n2")
    await made.client.cordon("n1")
    assert "n1 is cordoned" in await said("n1")
    with pytest.raises(cells.errors.UnknownNode):
        await said("n9")
    with pytest.raises(cells.NoSuchAgent):
        await commands.why.work(operator, Printer(False), "nobody")


async def test_place_tries_without_making_anything(made: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    operator = Operator(made.client)
    assert await commands.place.work(operator, Printer(True), "WhyVault", dry_run=True, count=3) == DONE
    assert json.loads(capsys.readouterr().out)["nodes"] == {"n1": 1, "n2": 2}
    assert await commands.place.work(operator, Printer(False), "WhyCart", dry_run=True) == DONE
    assert "n1" in capsys.readouterr().out
    with pytest.raises(cells.UsageError, match="--dry-run"):
        await commands.place.work(operator, Printer(False), "WhyCart")
    with pytest.raises(cells.errors.UnknownClass, match="WhyCart, WhyVault"):
        await commands.place.work(operator, Printer(False), "Nothing", dry_run=True)
    assert await made.client.agents() == []
    for node in ("n1", "n2"):
        await made.client.cordon(node)
    assert await commands.place.work(operator, Printer(False), "WhyVault", dry_run=True) == REFUSED
    assert "is cordoned" in capsys.readouterr().out
