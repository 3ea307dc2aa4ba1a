"""What bounds moves: places away from a node and to it, bytes in a second, and the pause that an agent's policy allows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from support.nodes import Deployment, deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells.log.policy import Policy
from mielin_cells.migration.admission import Facts, Offer, refusals
from mielin_cells.migration.failure import MigrationErrorType as Kind
from mielin_cells.migration.failure import Refused, classify
from mielin_cells.migration.refusal import PASSING, RefusalKind, refusal
from mielin_cells.node.moves.bounds.places import Flow, Gate
from mielin_cells.policies import Facts as Said
from mielin_cells.rpc.requests import Predict

# ---- the parts ---------------------------------------------------------------------------------------------------


def never() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def test_a_gate_lets_so_many_in_and_the_others_in_their_order() -> None:
    gate, inside, order = Gate(2), 0, list[int]()

    async def work(number: int) -> None:
        nonlocal inside
        assert await gate.enter(never())
        inside += 1
        assert inside <= 2
        order.append(number)
        await asyncio.sleep(0.001)
        inside -= 1
        gate.leave()

    await asyncio.gather(*(work(number) for number in range(20)))
    assert order == list(range(20))
    assert gate.waiting == 0


async def test_who_gives_up_or_is_cancelled_while_it_waits_takes_no_place() -> None:
    gate, stop = Gate(1), never()
    assert await gate.enter(never())
    waits, gives_up, cancelled = (asyncio.create_task(gate.enter(one)) for one in (never(), stop, never()))
    await asyncio.sleep(0)
    stop.set_result(None)
    assert not await gives_up
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    gate.leave()
    assert await waits
    gate.leave()
    assert await gate.enter(never())


async def test_a_place_that_was_just_given_is_passed_on_by_who_is_cancelled() -> None:
    gate = Gate(1)
    assert await gate.enter(never())
    first, second = (asyncio.create_task(gate.enter(never())) for _ in range(2))
    await asyncio.sleep(0)
    gate.leave()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert await second


def test_a_flow_is_bounded_on_average_and_lets_in_what_is_large_alone() -> None:
    times = [0.0]
    flow, let_in = Flow(1000, lambda: times[-1]), 0
    for tick in range(1000):
        times.append(tick / 10)
        if not flow.is_ahead:
            flow.let_in(700)
            let_in += 700
    assert 90_000 <= let_in <= 101_000  # in 100 s
    flow.let_in(50_000)
    waits = list[bool]()
    for later_s in (49.0, 2.0):
        times.append(times[-1] + later_s)
        waits.append(flow.is_ahead)
    assert waits == [True, False]
    endless = Flow(0, lambda: times[-1])
    endless.let_in(10**12)
    assert not endless.is_ahead


def test_a_node_that_has_no_place_says_so_and_may_be_asked_again() -> None:
    offer = Offer(cls="C", version=1, state_bytes=10)
    full = refusals(offer, Facts(name="n", version=1, moves=2, moves_max=2))
    fast = refusals(offer, Facts(name="n", version=1, moves=1, moves_max=2, bytes_s=1000, is_ahead=True))
    assert [one.kind for one in (*full, *fast)] == [RefusalKind.FULL, RefusalKind.FAST]
    assert {one.kind for one in (*full, *fast)} == PASSING
    assert str(full[0]) == "n takes 2 moves at a time, and has as many"
    assert str(fast[0]) == "n takes 1,000 bytes a second by moves, and has been given more than that"
    assert classify(Refused((*full, *fast))) is Kind.INSUFFICIENT_RESOURCES
    assert refusals(offer, Facts(name="n", version=1, moves=1, moves_max=2)) == ()


@pytest.mark.parametrize("kind", RefusalKind, ids=lambda kind: kind.value)
def test_every_reason_of_a_refusal_is_a_kind_of_failure(kind: RefusalKind) -> None:
    assert classify(Refused((refusal(kind),))) in Kind


# ---- nodes -------------------------------------------------------------------------------------------------------


class Hooked(cells.Agent, name="LimitsHooked"):
    n: int = 0
    rest_s: float = 0.0

    @cells.handler
    async def add(self) -> int:
        self.n += 1
        return self.n

    async def on_depart(self) -> None:
        await asyncio.sleep(self.rest_s)


class Brief(Hooked, name="LimitsBrief", policy=Policy(pause_ms=200.0)):
    pass


class Never(Hooked, name="LimitsNever", policy=Policy(pause_ms=1e-6)):
    pass


class Watched:
    """The most moves that were ever seen from and to nodes."""

    def __init__(self, opened: Deployment) -> None:
        self._opened = opened
        self.out = self.into = 0

    async def look(self) -> None:
        while True:
            for node in self._opened.nodes.values():
                running = [
                    move for move in node.migrations.attempts.moves.values() if move.machine.phase.value != "PLANNED"
                ]
                self.out, self.into = max(self.out, len(running)), max(self.into, len(node.copies.by_agent))
            await asyncio.sleep(0)


@asynccontextmanager
async def watched(settings: cells.Settings, *names: str) -> AsyncIterator[tuple[Deployment, Watched]]:
    async with deployment(*names, settings=settings) as opened:
        seen = Watched(opened)
        looking = asyncio.create_task(seen.look())
        try:
            yield opened, seen
        finally:
            looking.cancel()


async def spawned(opened: Deployment, count: int, rest_s: float = 0.0) -> list[Hooked]:
    return [await opened.client.on("node-1").spawn(Hooked, f"h{n}", rest_s=rest_s) for n in range(count)]


async def test_so_many_moves_leave_a_node_at_a_time_and_all_of_them_complete() -> None:
    async with watched(cells.Settings(moves_out=2), "node-1", "node-2") as (opened, seen):
        refs = await spawned(opened, 12, 0.01)
        reports = await asyncio.gather(*(opened.client.migrate(ref, to="node-2") for ref in refs))
        assert all(report.ok for report in reports)
        assert seen.out == 2
        assert await asyncio.gather(*(ref.add() for ref in refs)) == [1] * 12


async def test_so_many_moves_come_to_a_node_at_a_time_and_their_sources_wait() -> None:
    async with watched(cells.Settings(moves_in=2), "node-1", "node-2") as (opened, seen):
        refs = await spawned(opened, 6, 0.01)
        reports = await asyncio.gather(*(opened.client.migrate(ref, to="node-2") for ref in refs))
        assert [report.ok for report in reports] == [True] * 6
        assert 0 < seen.into <= 2


async def test_a_target_that_stays_full_is_named_and_the_agent_goes_on_where_it_is() -> None:
    async with watched(cells.Settings(moves_in=1, prepare_s=0.5), "node-1", "node-2") as (opened, _):
        slow, other = await spawned(opened, 1, 2.0), None
        other = await opened.client.on("node-1").spawn(Hooked, "other")
        moving = asyncio.create_task(opened.client.migrate(slow[0], to="node-2"))
        await until(lambda: bool(opened.nodes["node-2"].copies.by_agent))
        with pytest.raises(cells.MigrationRefused, match="node-2 takes 1 moves at a time, and has as many"):
            await opened.client.migrate(other, to="node-2")
        assert await other.add() == 1
        assert (await moving).ok


async def test_a_node_says_how_many_agents_it_still_takes_and_refuses_more_whatever_it_says() -> None:
    """Agents that others send all the same, because they read the table late, are not taken."""
    async with watched(cells.Settings(agents_max=3), "node-1", "node-2") as (opened, _):
        refs, other = await spawned(opened, 3), opened.nodes["node-2"]
        assert [node.facts.current().slots for node in opened.nodes.values()] == [0, 3]
        for ref in refs[:2]:
            assert (await opened.client.migrate(ref, to="node-2")).ok
        await opened.client.on("node-2").spawn(Hooked, "more")
        assert other.facts.current().slots == 0
        other.facts.current = lambda: Said(slots=99)  # type: ignore[method-assign]
        with pytest.raises(cells.MigrationRefused, match="node-2 has 3 agents, and takes at most 3"):
            await opened.client.migrate(refs[2], to="node-2")
        assert await refs[2].add() == 1


async def test_a_drain_keeps_to_the_limits_and_empties_the_node_all_the_same() -> None:
    settings = cells.Settings(moves_out=3, moves_in=2)
    async with watched(settings, "node-1", "node-2", "node-3") as (opened, seen):
        await spawned(opened, 20)
        report = await opened.client.drain("node-1", 30.0)
        assert (report.moved, report.left) == (20, 0)
        assert seen.out <= 3
        assert seen.into <= 2


async def test_a_move_that_waits_for_its_place_can_be_aborted_and_gives_none_up() -> None:
    async with watched(cells.Settings(moves_out=1), "node-1", "node-2") as (opened, _):
        first, second, third = await spawned(opened, 3, 0.5)
        one = asyncio.create_task(opened.client.migrate(first, to="node-2"))
        moves = opened.nodes["node-1"].migrations
        await until(lambda: "h0" in moves.attempts.moves)
        two = asyncio.create_task(opened.client.migrate(second, to="node-2"))
        await until(lambda: "h1" in moves.attempts.moves)
        await opened.client.abort("h1")
        assert (await two).code == "Cancelled"
        assert (await one).ok
        assert (await opened.client.migrate(third, to="node-2")).ok
        assert await second.add() == 1


async def test_bytes_a_second_are_bounded_over_several_moves() -> None:
    async with watched(cells.Settings(move_bytes_s=400), "node-1", "node-2") as (opened, _):
        refs = await spawned(opened, 4)
        size = sum(one.size_bytes for one in opened.nodes["node-1"].activations.owned())
        clock = asyncio.get_running_loop().time
        began = clock()
        reports = await asyncio.gather(*(opened.client.migrate(ref, to="node-2") for ref in refs))
        assert all(report.ok for report in reports)
        assert clock() - began >= size * 3 / 4 / 400 * 0.9  # the last one is let in whole


# ---- pauses ------------------------------------------------------------------------------------------------------


async def test_a_move_that_would_pause_an_agent_for_too_long_is_not_begun_and_says_so() -> None:
    async with deployment("node-1", "node-2") as opened:
        client = opened.client
        ref = await client.on("node-1").spawn(Brief, "h", rest_s=0.3)
        assert (await client.migrate(ref, to="node-2")).ok  # nobody knew of its hook
        for to in ("node-1", "node-2"):
            if to == "node-1":
                assert (await client.migrate(ref, to=to)).ok
                continue
            with pytest.raises(
                cells.MigrationRefused, match=r"not begun: it is predicted to pause for \d+\.\d ms \(its last move"
            ):
                await client.migrate(ref, to=to)
        assert opened.nodes["node-1"].migrations.open == {}
        assert await ref.add() == 1
        prediction = await client.request("node-1", Predict("h", "node-2"), 5.0)
        assert "its policy allows 200 ms" in prediction.reasons[0]


async def test_a_drain_that_waits_leaves_such_an_agent_and_a_node_that_stops_does_not() -> None:
    async with deployment("node-1", "node-2") as opened:
        client = opened.client
        ref = await client.on("node-1").spawn(Never, "h")
        report = await client.drain("node-1", 1.0)
        assert (report.moved, report.left) == (0, 1)
        node = opened.nodes["node-1"]
        await node.drains.new(10.0, is_patient=False).run()
        assert (await client.owner("h"))[0] == "node-2"
        assert await ref.add() == 1


@pytest.mark.parametrize("pause_ms", [0, -1.0, "short", True, float("nan")])
def test_a_pause_that_cannot_be_is_refused(pause_ms: object) -> None:
    with pytest.raises(cells.ConfigError, match="pause_ms"):
        Policy(pause_ms=pause_ms)  # type: ignore[arg-type]
