"""Orders of a turn about its own agent: `this().terminate()` and its kin, and the same through the cluster, which is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.agent_log import (
    after,
    commit,
    committed,
    paused,
    resumed,
    snapshot,
    stepped,
    suspended,
    taken,
    terminated,
)

import mielin_cells as cells
from mielin_cells.log.commit import Wish
from mielin_cells.log.fold import Fold
from mielin_cells.node.orders import Orders

QUICK = cells.Settings(ask_timeout_s=5, tries=1, retry_first_s=0)

obey = Orders.obey


class Hermit(cells.Agent):
    count: int = 0

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count

    @cells.handler
    async def order(self, what: str, fails: bool = False) -> int:
        self.count += 10
        getattr(cells.this(), what)()
        if fails:
            raise ValueError("on second thoughts")
        return self.count

    @cells.handler
    async def through_the_cluster(self, what: str, how: str) -> None:
        cluster: Any = cells.this().cluster
        calls: dict[str, Any] = {
            "claim": lambda: cluster.claim(self, "node-1"),
            "migrate": lambda: cluster.migrate(self),
            "migrate by id": lambda: cluster.migrate(cells.this().id, to="node-2"),
            "drain": lambda: cluster.drain(cells.this().node),
        }
        call: Any = calls.get(what, lambda: getattr(cluster, what)(self))
        if how == "a task":
            await asyncio.create_task(_awaited(call()))
        elif how == "a group":
            await asyncio.gather(call(), asyncio.sleep(0))
        else:
            await call()

    @cells.handler
    async def end(self, other: Hermit) -> str:
        cluster = cells.this().cluster
        await cluster.suspend(other)
        return (await cluster.show(self)).state


async def _awaited(call: Any) -> Any:
    return await call


async def state_of(cluster: cells.Cluster, agent: str, wanted: str) -> None:
    while (await cluster.show(agent)).state != wanted:
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(("order", "state"), [("suspend", "Suspended"), ("pause", "Paused")])
async def test_an_agent_stops_itself_behind_its_turn_and_before_any_other(order: str, state: str) -> None:
    async with cells.local(settings=QUICK) as cluster:
        hermit = await cluster.spawn(Hermit, "h")
        asked = asyncio.gather(hermit.add(), hermit.order(order), hermit.add(), hermit.add())
        await state_of(cluster, "h", state)
        assert not asked.done()
        await cluster.resume(hermit)
        assert list(await asked) == [1, 11, 12, 13]
        assert (await cluster.show("h")).state == "Running"


async def test_an_agent_ends_itself_and_its_caller_gets_the_answer() -> None:
    async with cells.local(settings=QUICK) as cluster:
        hermit = await cluster.spawn(Hermit, "h")
        assert await hermit.order("terminate") == 10
        with pytest.raises(cells.AgentTerminated):
            while True:
                await hermit.add()


@pytest.mark.parametrize("order", ["terminate", "suspend", "pause", "migrate"])
async def test_a_turn_that_fails_orders_nothing(order: str) -> None:
    async with cells.local(nodes=2, settings=QUICK) as cluster:
        hermit = await cluster.spawn(Hermit, "h")
        with pytest.raises(cells.HandlerFailed, match="on second thoughts"):
            await hermit.order(order, fails=True)
        assert await hermit.add() == 1
        info = await cluster.show("h")
        assert (info.state, info.node) == ("Running", "node-1")


ORDERS = ["terminate", "suspend", "pause", "resume", "migrate", "migrate by id", "claim", "standby", "drain"]


@pytest.mark.parametrize("how", ["the turn", "a task", "a group"])
@pytest.mark.parametrize("order", ORDERS)
async def test_an_order_about_oneself_through_the_cluster_is_refused_at_once(order: str, how: str) -> None:
    async with cells.local(nodes=2, settings=QUICK) as cluster, asyncio.timeout(30):
        hermit = await cluster.spawn(Hermit, "h")
        name = order.split(maxsplit=1)[0]
        says = rf"this\(\)\.{name}\(\)" if name in ("terminate", "suspend", "pause", "migrate") else "from outside"
        with pytest.raises(cells.UsageError, match=f"wait for itself to end: .*{says}.*Nothing was done"):
            await hermit.through_the_cluster(order, how)
        info = await cluster.show("h")
        assert (info.state, info.node, await hermit.add()) == ("Running", "node-1", 1)


async def test_a_turn_may_order_about_others_and_look_at_itself() -> None:
    async with cells.local(settings=QUICK) as cluster:
        hermit, other = await cluster.spawn(Hermit, "h"), await cluster.spawn(Hermit, "o")
        assert await hermit.end(other) == "Running"
        await state_of(cluster, "o", "Suspended")


class Restless(cells.Agent):
    order: str

    async def on_arrive(self) -> None:
        getattr(cells.this(), self.order)()


@pytest.mark.parametrize("order", ["terminate", "suspend", "pause", "migrate"])
async def test_a_hook_cannot_order_and_says_so(order: str) -> None:
    async with cells.local(settings=QUICK) as cluster:
        await cluster.spawn(Restless, "r", order=order)
        info = await cluster.show("r")
        assert (info.state, info.code) == ("Error", "UsageError")
        assert f"(on_arrive) cannot {order} it" in info.error


# ---- between the commit and the effect -------------------------------------------------------------------------


class Held:
    """Keeps node-1 from carrying out orders, as if it died first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.came = asyncio.Event()

        async def held(orders: Orders, agent: str, order: str, reason: str) -> str:
            self.came.set()
            if orders._activations.name == "node-1":
                await asyncio.Event().wait()
            return await obey(orders, agent, order, reason)

        monkeypatch.setattr(Orders, "obey", held)


@pytest.mark.parametrize(("order", "state"), [("suspend", "Suspended"), ("terminate", "Terminated")])
async def test_an_order_whose_node_dies_first_is_carried_out_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, state: str
) -> None:
    held = Held(monkeypatch)
    async with cells.local(path=tmp_path / "store.db", settings=QUICK) as cluster:
        hermit = await cluster.spawn(Hermit, "h")
        assert await hermit.order(order) == 10
        await held.came.wait()
        await hermit.add.tell()
        with pytest.raises(cells.AskTimeout):
            await hermit.add.options(timeout=0.1)()  # no turn runs meanwhile
        assert (await cluster.show("h")).state == "Running"
    monkeypatch.undo()
    async with cells.local(path=tmp_path / "store.db", settings=QUICK) as cluster:
        if state == "Terminated":
            with pytest.raises(cells.AgentTerminated):
                while True:
                    await cluster.show("h")
        else:
            await state_of(cluster, "h", state)
            await cluster.resume("h")
            assert await cluster.get(Hermit, "h").add() == 13


async def test_an_order_that_waits_moves_with_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    async with cells.local(nodes=2, settings=QUICK) as cluster:
        hermit = await cluster.spawn(Hermit, "h")
        assert await hermit.order("pause") == 10
        await held.came.wait()
        assert (await cluster.migrate(hermit, to="node-2")).ok
        await state_of(cluster, "h", "Paused")
        await cluster.resume("h")
        assert await hermit.add() == 11


class Proud(Hermit):
    async def on_stop(self) -> None:
        if self.count < 20:
            raise ValueError("not yet")


async def test_an_end_that_on_stop_refuses_is_left_to_the_operator_and_comes_after_a_resume() -> None:
    async with cells.local(settings=QUICK) as cluster:
        proud = await cluster.spawn(Proud, "p")
        await proud.order("terminate")
        await state_of(cluster, "p", "Error")
        assert "not yet" in (await cluster.show("p")).error
        await cluster.resume("p")
        await state_of(cluster, "p", "Error")  # it was to end, and still is
        await cluster.terminate("p")
        with pytest.raises(cells.AgentTerminated):
            await proud.add()


# ---- what the log says of it -----------------------------------------------------------------------------------


def wished(fold: Fold, order: str = "suspend") -> object:
    return committed(fold, commit(taken(), wish=Wish(order)))


def ends(fold: Fold) -> object:
    return wished(fold, "terminate")


def test_the_log_holds_an_order_until_it_has_taken_effect_and_no_turn_before_that() -> None:
    fold = after(wished)
    assert fold.wish == Wish("suspend")
    for turn in (committed(fold, commit(taken(2))), stepped(fold)):
        with pytest.raises(cells.errors.RecordInvalid, match="a turn behind one that ordered the agent's own suspend"):
            fold.apply(fold.seq + 1, turn)
    assert after(wished, committed).wish is not None  # a commit without a turn may come between
    assert after(wished, suspended).wish is None
    assert after(wished, paused).wish is None
    assert after(ends, suspended, resumed).wish == Wish("terminate")  # which is still to come
    assert after(ends, terminated).wish is None


def test_a_snapshot_keeps_the_order() -> None:
    fold = after(ends)
    assert Fold.of_snapshot(3, snapshot(fold), fold.state).wish == Wish("terminate")
