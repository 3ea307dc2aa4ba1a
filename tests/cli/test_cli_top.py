"""`mielin top` and the facts of nodes as text: what is not known is not shown, and is no zero."""

from __future__ import annotations

import asyncio
import json
from typing import cast

import msgspec
import pytest

import mielin_cells as cells
from mielin_cells.agents.reports import NodeInfo
from mielin_cells.cli.nodes.facts import facts_text
from mielin_cells.cli.nodes.top import Look, look_text, take_look, top
from mielin_cells.cli.show import Printer
from mielin_cells.client.client import Client
from mielin_cells.client.operator import Operator
from mielin_cells.policy.facts import UNKNOWN, Facts


class TopTally(cells.Agent):
    n: int = 0

    @cells.handler
    async def add(self) -> int:
        self.n += 1
        return self.n


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (UNKNOWN, ""),
        (Facts(cpu=12.4, memory=34.0), "cpu 12%, memory 34%"),
        (Facts(battery=14.0, mains=False, temperature_c=70.5), "battery 14%, on battery, 70°C"),
        (Facts(cpu=0.0, waiting=0, oldest_s=0.0), "cpu 0%"),
        (Facts(waiting=1200, cost_per_hour=0.5), "waiting 1,200, cost 0.5/h"),
        (Facts(sensors={"fan": 3.50, "door": True, "rack": "b"}, failing={"gpu": "x"}), "fan=3.5, door=yes, rack=b, gpu fails"),
    ],
)  # fmt: skip
def test_facts_are_told_in_a_line_that_does_not_mention_what_is_absent(facts: Facts, text: str) -> None:
    assert facts_text(facts) == text


def look_of(*nodes: NodeInfo, **fields: object) -> Look:
    given: dict[str, object] = {
        "at": 0.0, "leader": "b", "nodes": list(nodes), "agents": 7, "waiting": None, "messages_s": None, "moves": 0,
        "moves_s": None, **fields,
    }  # fmt: skip
    return msgspec.convert(given, Look)


def test_a_look_is_a_head_a_line_for_each_node_and_the_open_moves() -> None:
    hot = Facts(cpu=91.0, temperature_c=86.0, sensors={"fan": 3}, failing={"gpu": "raised"})
    text = look_text(
        look_of(
            NodeInfo(name="a", incarnation=1, agents=7, facts=hot, labels={"zone": "eu"}, moves_out=12, moves=["x to b, copying"]),
            NodeInfo(name="b", incarnation=1, agents=0), NodeInfo(name="c", incarnation=1, agents=0, state="silent"),
            waiting=3, messages_s=1500.0, moves=12, moves_s=2.5,
        )
    )  # fmt: skip
    head, _, first, second, third, *rest = text.splitlines()
    assert "2 of 3 nodes alive, 7 agents, 1,500 messages/s, 3 waiting, 12 moves open, 2.5/s" in head
    assert first.split() == [
        "a", "alive", "7", "12", "91%", "86°C", "zone=eu,", "fan=3,", "gpu", "fails"
    ]  # fmt: skip
    assert second.split() == ["b", "alive", "leads", "0"]
    assert third.split() == ["c", "silent"]
    assert rest == ["a: x to b, copying"]


def test_a_deployment_without_nodes_can_be_looked_at() -> None:
    assert "no nodes" in look_text(look_of(leader=""))


async def test_every_node_says_what_it_does_and_rates_are_between_two_looks() -> None:
    async with cells.local(nodes=2, settings=cells.Settings(reconcile_s=0.1)) as cluster:
        operator = Operator(cast("Client", cluster))
        ref = await cluster.spawn(TopTally, "t")
        first = await take_look(operator)
        assert (first.agents, first.moves_s, [node.state for node in first.nodes]) == (1, None, ["alive", "alive"])
        assert (await cluster.migrate(ref)).ok
        second = await take_look(operator, first)
        assert (second.agents, sum(node.moved for node in second.nodes)) == (1, 1)
        assert second.moves_s is not None
        assert second.moves_s > 0
        async with asyncio.timeout(60):
            while not (look := await take_look(operator, second)).messages_s:
                await ref.add()
                await asyncio.sleep(0.01)
        assert look.waiting is not None


async def test_top_prints_one_look_behind_the_other_and_ends_after_as_many_as_are_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with cells.local(nodes=1) as cluster:
        operator = Operator(cast("Client", cluster))
        assert await top.work(operator, Printer(as_json=True), every=0.2, count=2) == 0
        looks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [len(look["nodes"]) for look in looks] == [1, 1]
        assert await top.work(operator, Printer(as_json=False), every=0.2, count=1) == 0
        assert "1 of 1 node alive, 0 agents" in capsys.readouterr().out
