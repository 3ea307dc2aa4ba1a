"""Rebalancing on real nodes: what they do is measured, and agents are spread by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from support.failing import QUICK, die, leader_of, nodes, watching
from support.nodes import deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.client.plans.rebalance import rebalance, stop_plans
from mielin_cells.log.ids import MEMBERS
from mielin_cells.membership.members import Planned, decode_record
from mielin_cells.node.plans import rebalancing
from mielin_cells.policy.planning.plan import Limits
from mielin_cells.policy.planning.planner import Wished
from mielin_cells.policy.rebalance.proposal import SLICE_MOVES, WITHIN, proposing, unevenness
from mielin_cells.policy.rebalance.values import AgentLoad, Proposal, Suggested
from mielin_cells.rpc import plans
from mielin_cells.rpc.call import call
from mielin_cells.substrate.ports import Wire
from mielin_cells.testing.simulator.loop import run


class Clerk(cells.Agent, name="PlanClerk"):
    count: int = 0

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count

    @cells.handler
    async def pass_on(self, to: str) -> None:
        await cells.this().cluster.get(Clerk, to).add.tell()


class Porter(cells.Agent, name="PlanPorter", policy=cells.Policy(immovable=True)):
    @cells.handler
    async def add(self) -> int:
        return 1


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are counted for a shorter time, and who was moved may be moved again."""
    monkeypatch.setattr(rebalancing, "WINDOW_S", 0.4)


async def count_agents(client: Client) -> dict[str, int]:
    found = dict[str, int]()
    for info in await client.agents():
        found[info.node] = found.get(info.node, 0) + 1
    return found


@asynccontextmanager
async def busy(clerks: list[Any]) -> AsyncIterator[list[int]]:
    """The first of them get most messages; yields the answers' number, and no call may fail."""
    answered = [0]

    async def work(clerk: Any, rest_s: float) -> None:
        while True:
            await clerk.add()
            answered[0] += 1
            await asyncio.sleep(rest_s)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(clerk, 0.01 * (1 + place))) for place, clerk in enumerate(clerks)]
        yield answered
        for task in tasks:
            task.cancel()


async def test_agents_of_one_node_are_spread_by_their_load_while_they_work() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, _running, _, _air):
        await leader_of(client)
        clerks = [await client.on("node-1").spawn(Clerk, f"c{n}") for n in range(24)]
        async with busy(clerks) as answered:
            plan = await rebalance(client, is_dry=True)
            assert await count_agents(client) == {"node-1": 24}, "a dry run moves nothing"
            assert unevenness(plan.proposal.after) <= WITHIN < unevenness(plan.proposal.before)
            report = await rebalance(client)
            assert report.state in (plans.DONE, plans.STALLED)  # what is measured for so short a time is rough
            assert report.moved >= 2
            assert report.failed == []
            before = answered[0]
            await until(lambda: answered[0] > before + 20)
        assert len(await count_agents(client)) == 3
        assert all(move.why for move in plan.proposal.moves)


async def test_agents_without_messages_are_spread_by_number_and_then_nothing_is_planned() -> None:
    async with nodes("node-1", "node-2", "node-3") as (client, _running, _, _air):
        await leader_of(client)
        for n in range(12):
            await client.on("node-1").spawn(Clerk, f"c{n}")
        report = await rebalance(client)
        assert (report.state, report.moved) == (plans.DONE, 8)
        assert await count_agents(client) == {"node-1": 4, "node-2": 4, "node-3": 4}
        again = await rebalance(client)
        assert (again.state, again.moved, again.proposal.moves) == (plans.EVEN, 0, [])
        records = [decode_record(entry.data, "members") for entry in await client.log.read(MEMBERS, 0, 10_000)]
        moves = [move for record in records if isinstance(record, Planned) for move in record.moves]
        assert len({move.agent for move in moves}) == len(moves) == 8, "no agent was moved twice"


async def test_an_agent_that_moved_while_it_was_measured_is_wished_as_its_new_node_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the old epoch its move would not begin, and its target would count as one that has refused it."""
    told = {
        "node-1": [AgentLoad("moved", 100.0, epoch=2), AgentLoad("heavy", 150.0, epoch=1)],
        "node-2": [AgentLoad("moved", 100.0, epoch=1)],
        "node-3": [AgentLoad("other", 150.0, epoch=1)],
    }
    order = ["node-3", "node-1", "node-2"]

    async def answer(_wire: Wire, node: str, _request: plans.ListLoads, _timeout_s: float) -> list[AgentLoad]:
        await asyncio.sleep(0.01 * order.index(node))
        return list(told[node])

    async with nodes("node-1", "node-2", "node-3") as (client, running, _, _air):
        leader = await leader_of(client)
        monkeypatch.setattr(rebalancing, "call", answer)
        proposal, loads = await running[leader].plans.rebalancing._propose(0.0, is_first=True)
        assert [(move.agent, move.source, move.target) for move in proposal.moves] == [("moved", "node-1", "node-2")]
        assert loads["moved"].epoch == 2


async def test_others_run_while_moves_of_many_agents_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that is silent for some heartbeats is suspected."""
    turns, seen = [0], list[int]()

    async def answer(_wire: Wire, node: str, _request: plans.ListLoads, _timeout_s: float) -> list[AgentLoad]:
        return [AgentLoad(f"a{n}", 0.0) for n in range(1000)] if node == "node-1" else []

    async def turn() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    def noted(*given: Any, **of: Any) -> Iterator[Proposal | None]:
        for found in proposing(*given, **of):
            seen.append(turns[0])
            yield found

    async with nodes("node-1", "node-2") as (client, running, _, _air):
        leader = await leader_of(client)
        monkeypatch.setattr(rebalancing, "call", answer)
        monkeypatch.setattr(rebalancing, "proposing", noted)
        other = asyncio.create_task(turn())
        proposal, _ = await running[leader].plans.rebalancing._propose(0.0, is_first=True)
        other.cancel()
    assert 400 < len(proposal.moves) <= 500
    assert len(set(seen)) == len(seen) > 400 // SLICE_MOVES


async def test_agents_that_are_immovable_stay_and_the_report_says_that_it_is_not_even() -> None:
    async with nodes("node-1", "node-2") as (client, _running, _, _air):
        await leader_of(client)
        for n in range(8):
            await client.on("node-1").spawn(Porter, f"p{n}")
        report = await rebalance(client)
        assert (report.state, report.moved) == (plans.STALLED, 0)
        assert report.why == "no move that is possible now would make it more even"


async def test_the_leader_dies_while_it_rebalances_and_the_next_one_goes_on() -> None:
    async with watching("node-1", "node-2", "node-3", "node-4", settings=replace(QUICK, plan_moves=2)) as (
        opened,
        _,
        air,
    ):
        client = opened.client
        leader = await leader_of(client)
        first = next(name for name in opened.nodes if name != leader)
        for n in range(16):
            await client.on(first).spawn(Clerk, f"c{n}")
        work = asyncio.create_task(rebalance(client))
        await until(lambda: opened.nodes[first].activations.count < 16)
        die(opened.nodes.pop(leader), air)
        report = await work
        assert report.state in (plans.DONE, plans.EVEN)
        counts = await count_agents(client)
        assert sum(counts.values()) == 16
        assert max(counts.values()) - min(counts.values()) <= 1


async def test_a_rebalancing_that_is_stopped_plans_nothing_more() -> None:
    async with nodes("node-1", "node-2", settings=replace(QUICK, plan_moves=1)) as (client, running, _, _air):
        leader = await leader_of(client)
        for n in range(20):
            await client.on("node-1").spawn(Clerk, f"c{n}")
        work = asyncio.create_task(rebalance(client))
        await until(lambda: running["node-2"].activations.count >= 2)
        while not await stop_plans(client):
            assert not work.done()
        report = await work
        assert report.state == plans.STOPPED
        await until(lambda: not running[leader].members.table.plans.open)
        assert running["node-1"].activations.count > 10


def test_wishes_that_get_nowhere_stay_until_they_were_looked_at_and_then_others_have_their_turn() -> None:
    """The leader plans now and then only: wishes that are replaced at once may never be seen."""
    taken = list[tuple[float, str, tuple[str, ...]]]()

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        table = SimpleNamespace(plans=SimpleNamespace(open={}, stopped={}))
        home = SimpleNamespace(clock=SimpleNamespace(now=clock))
        activations: Any = SimpleNamespace(home=home, clock=clock, members=SimpleNamespace(table=table))

        def take(event: Wished) -> None:
            taken.append((clock(), event.node, tuple(wish.agent for wish in event.wishes)))

        leading: Any = SimpleNamespace(is_leader=True, limits=Limits(moves_out=1), take=take)
        moves = [Suggested(f"{node}.{n}", node, "n3", 1.0, "") for node in ("n1", "n2") for n in range(12)]
        loads = {move.agent: AgentLoad(move.agent, 1.0) for move in moves}
        await rebalancing.Rebalancing(activations, leading)._move_all(rebalancing.Run("r"), moves, loads)

    run(main())
    for node in ("n1", "n2"):
        told = [(at, agents) for at, name, agents in taken if name == node and agents]
        began = [at for place, (at, agents) in enumerate(told) if not place or agents != told[place - 1][1]]
        assert all(later - at > rebalancing.STUCK_S for at, later in pairwise(began))
        assert {agent for _, agents in told for agent in agents} == {f"{node}.{n}" for n in range(12)}, (
            "each has its turn"
        )
    assert {agents for at, _, agents in taken if at == taken[-1][0]} == {()}, "at the end nothing is wished any more"


async def test_automatic_rebalancing_measures_only_if_the_table_says_that_it_is_uneven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = list[str]()
    propose = rebalancing.Rebalancing._propose

    async def counted(self: rebalancing.Rebalancing, *window: Any, **of: Any) -> Any:
        measured.append("")
        return await propose(self, *window, **of)

    monkeypatch.setattr(rebalancing.Rebalancing, "_propose", counted)
    async with nodes("node-1", "node-2", settings=replace(QUICK, rebalance_s=0.2)) as (client, running, _, _air):
        await leader_of(client)
        await asyncio.sleep(0.8)
        assert measured == []
        for n in range(20):
            await client.on("node-1").spawn(Clerk, f"c{n}")
        await until(lambda: running["node-2"].activations.count == 10)


async def test_two_agents_that_talk_are_seen_to_talk() -> None:
    async with nodes("node-1") as (client, _running, _, _air):
        await leader_of(client)
        one, other = await client.spawn(Clerk, "one"), await client.spawn(Clerk, "other")
        asking = asyncio.create_task(call(client.wire, "node-1", plans.ListLoads(0.5), 5.0))
        for _ in range(5):
            await asyncio.sleep(0.05)
            await one.pass_on("other")
        loads = {load.agent: load for load in await asking}
        assert loads["one"].talks.keys() == {"other"}
        assert loads["other"].rate > 0
        assert await other.add() == 6


async def test_in_one_process_nobody_leads_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mielin_cells.client.plans.rebalance.NOBODY_S", 0.1)
    async with deployment("node-1", "node-2") as opened:
        with pytest.raises(cells.UsageError, match="No node leads"):
            await rebalance(opened.client)
