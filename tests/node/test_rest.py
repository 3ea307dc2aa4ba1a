"""A node at rest: while nothing is written anywhere, its rounds cost the same whatever the logs hold."""

from __future__ import annotations

from dataclasses import replace

from support.logs import SLOW, HeldLog, Score
from support.moving import nodes

from mielin_cells.node.node import Node
from mielin_cells.node.ownership.rounds import CALM_ROUNDS
from mielin_cells.substrate.ports import Log


class CountingLog(HeldLog):
    def __init__(self, inner: Log) -> None:
        super().__init__(inner)
        self.go.set()
        self.lists = 0

    def called(self, what: str, subject: str) -> None:
        self.lists += what == "owned"


async def lists_in(node: Node, rounds: int) -> int:
    """How many of the rounds listed the node's agents."""
    counting = node.home.log = CountingLog(node.home.log)
    for _ in range(rounds):
        await node.rounds.round()
    node.home.log = counting.log
    return counting.lists


async def test_logs_are_listed_only_after_something_was_written() -> None:
    async with nodes("node-1", "node-2", settings=SLOW) as (client, running):
        second = running["node-2"]
        score = await client.on("node-1").spawn(Score, "s")
        assert 1 <= await lists_in(second, 10) <= CALM_ROUNDS + 2
        assert await lists_in(second, 10) == 0
        assert await score.add() == 1
        assert await lists_in(second, 10) >= CALM_ROUNDS
        assert await lists_in(second, 10) == 0


async def test_an_agent_that_is_missing_is_looked_for_although_nothing_was_written() -> None:
    async with nodes("node-1", settings=SLOW) as (client, running):
        node = running["node-1"]
        score = await client.spawn(Score, "s")
        assert await score.add() == 1
        await lists_in(node, 10)
        assert await lists_in(node, 10) == 0
        node.activations.drop(node.activations.live["s"])
        await lists_in(node, 1)
        assert node.activations.live["s"].fold.owner == "node-1"


async def test_what_a_node_runs_is_compared_with_the_logs_now_and_then() -> None:
    async with nodes("node-1", settings=replace(SLOW, compare_s=60.0)) as (client, running):
        node = running["node-1"]
        await client.spawn(Score, "s")
        await lists_in(node, 10)
        assert await lists_in(node, 10) == 0
        now, node.activations.clock = node.activations.clock(), lambda: now + 60.0
        assert await lists_in(node, 10) == 1


async def test_logs_that_stand_where_they_were_compared_twice_are_not_compared_again() -> None:
    async with nodes("node-1", settings=replace(SLOW, compare_s=60.0)) as (client, running):
        node, clock = running["node-1"], running["node-1"].activations.clock
        score, later_s = await client.spawn(Score, "s"), [0.0]
        node.activations.clock = lambda: clock() + later_s[0]
        await lists_in(node, 10)
        counts = list[int]()
        for later_s[0] in (60.0, 120.0, 180.0):
            counts.append(await lists_in(node, 10))
        assert counts == [1, 0, 0]
        assert await score.add() == 1
        later_s[0] = 240.0
        assert await lists_in(node, 10) > 0
        node.activations.drop(
            node.activations.live["s"]
        )  # nothing was written, but this may have to be found by the logs
        await lists_in(node, 10)
        later_s[0] = 300.0
        assert await lists_in(node, 10) == 1
