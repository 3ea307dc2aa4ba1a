"""A node's metrics: each says what has happened, over the wire, and counters never fall."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

import mielin_cells as cells
from mielin_cells.agents.cluster import Cluster
from mielin_cells.client.client import Client
from mielin_cells.client.status import read_metrics
from mielin_cells.metrics.families import FAMILIES, SHOWN, Sample, bounds
from mielin_cells.node.metrics import _of_facts, cumulative
from mielin_cells.policy.deploys.health import Turns
from mielin_cells.policy.facts import Facts

NOT_EVERYWHERE = {
    "mielin_agents_free", "mielin_machine_battery_ratio", "mielin_machine_on_mains", "mielin_machine_temperature_celsius",
    "mielin_node_cost_per_hour", "mielin_sensor", "mielin_sensor_failing", "mielin_loop_failures",
}  # fmt: skip
"""Families of which a node that lacks the thing has no sample."""


class MetricTill(cells.Agent):
    cents: int = 0

    @cells.handler
    async def sell(self, cents: int) -> int:
        if cents < 0:
            raise ValueError("no")
        self.cents += cents
        return self.cents

    @cells.handler
    async def wait(self) -> None:
        await asyncio.sleep(0.01)

    @cells.handler
    async def rest(self) -> None:
        cells.this().pause()


async def taken(cluster: Cluster) -> dict[tuple[str, ...], Sample]:
    """By node, family and labels."""
    found = await read_metrics(cast("Client", cluster))
    listed = [((node, one.family, *one.labels), one) for node, samples in found.items() for one in samples]
    assert len(dict(listed)) == len(listed), "a family has each combination of labels once"
    return dict(listed)


async def value(cluster: Cluster, *key: str) -> float:
    return (await taken(cluster))[key].value


async def test_turns_failures_and_dead_letters_are_counted_by_class() -> None:
    async with cells.local(nodes=1, settings=cells.Settings(tries=2, retry_first_s=0)) as cluster:
        till = await cluster.spawn(MetricTill, "till")
        for _ in range(3):
            await till.sell(5)
        await till.wait()
        await till.sell.tell(-1)
        async with asyncio.timeout(20):
            while await value(cluster, "node-1", "mielin_dead_letters") == 0:
                await asyncio.sleep(0.02)
        found = await taken(cluster)
        assert found["node-1", "mielin_turns", "MetricTill"].value == 6
        assert found["node-1", "mielin_turns_failed", "MetricTill"].value == 2
        assert found["node-1", "mielin_dead_letters_made", "MetricTill"].value == 1
        assert found["node-1", "mielin_agents", "MetricTill", "Running"].value == 1
        took = found["node-1", "mielin_turn_duration_seconds", "MetricTill"].buckets
        assert took[-1] == 6
        assert list(took) == sorted(took)
        assert took[bounds().index(0.008192)] < 6, "one turn has slept for 10 ms"


async def test_moves_are_counted_by_outcome_and_appends_stay_counted_when_an_agent_leaves() -> None:
    async with cells.local(nodes=2) as cluster:
        till = await cluster.on("node-1").spawn(MetricTill, "till")
        await till.sell(5)
        before = await value(cluster, "node-1", "mielin_log_appends")
        size = await value(cluster, "node-1", "mielin_log_appended_bytes")
        assert before >= 2
        assert (await cluster.migrate(till, to="node-2")).ok
        await till.sell(5)
        found = await taken(cluster)
        assert found["node-1", "mielin_migrations", "completed"].value == 1
        assert found["node-1", "mielin_migrations", "rolled_back"].value == 0
        assert found["node-2", "mielin_migrations", "completed"].value == 0
        assert found["node-1", "mielin_log_appends"].value > before, "the handover is its own append"
        assert found["node-1", "mielin_log_appended_bytes"].value > size
        assert found["node-2", "mielin_log_appends"].value >= 1
        assert ("node-1", "mielin_agents", "MetricTill", "Running") not in found
        assert found["node-2", "mielin_agents", "MetricTill", "Running"].value == 1
        assert found["node-1", "mielin_members", "serving"].value == 2


async def test_agents_are_counted_by_state_also_those_that_have_left_memory() -> None:
    async with cells.local(nodes=1, settings=cells.Settings(idle_s=0.2, reconcile_s=0.05)) as cluster:
        await cluster.spawn(MetricTill, "idle")
        paused = await cluster.spawn(MetricTill, "paused")
        await paused.rest()
        async with asyncio.timeout(20):
            while await value(cluster, "node-1", "mielin_agents_idle") == 0:
                await asyncio.sleep(0.05)
        found = await taken(cluster)
        assert found["node-1", "mielin_agents", "MetricTill", "Running"].value == 1
        assert found["node-1", "mielin_agents", "MetricTill", "Paused"].value == 1


async def test_a_node_has_every_metric_but_those_of_things_that_it_lacks() -> None:
    async with cells.local(nodes=1, settings=cells.Settings(reconcile_s=0.05)) as cluster:
        till = await cluster.spawn(MetricTill, "till")
        await till.sell(1)
        async with asyncio.timeout(20):
            while True:
                names = {key[1] for key in await taken(cluster)}
                if FAMILIES.keys() - names <= NOT_EVERYWHERE:
                    break
                await asyncio.sleep(0.05)
        assert names <= FAMILIES.keys()


def test_what_a_node_may_lack_has_a_sample_where_it_is_there() -> None:
    facts = Facts(
        slots=3, battery=50.0, mains=True, temperature_c=40.0, cost_per_hour=0.5, sensors={"fan": 2, "door": True, "rack": "b"},
        failing={"gpu": "raised"},
    )  # fmt: skip
    found = {(one.family, *one.labels): one.value for one in _of_facts(facts)}
    assert found == {
        ("mielin_agents_free",): 3, ("mielin_machine_battery_ratio",): 0.5, ("mielin_machine_on_mains",): 1,
        ("mielin_machine_temperature_celsius",): 40, ("mielin_node_cost_per_hour",): 0.5, ("mielin_sensor", "fan"): 2,
        ("mielin_sensor", "door"): 1, ("mielin_sensor_failing", "gpu"): 1,
    }  # fmt: skip


@pytest.mark.parametrize(("seconds", "bound"), [(0.0001, 0.000128), (0.0005, 0.000512), (1.0, 2.097152), (60.0, None)])
def test_a_turn_is_in_the_first_bucket_whose_bound_it_does_not_reach(seconds: float, bound: float | None) -> None:
    turns = Turns()
    turns.count(seconds)
    place = bounds().index(bound) if bound is not None else len(SHOWN)
    assert list(cumulative(turns)) == [int(n >= place) for n in range(len(SHOWN) + 1)]
