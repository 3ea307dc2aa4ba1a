"""Parents and children: spawning, failing, restarts, escalation, links, and what follows when a parent ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from support.nodes import Deployment, deployment

import mielin_cells as cells
from mielin_cells.errors import AgentInError, NameTaken, NotInTurn, StoreUnreachable
from mielin_cells.log.family.tree import Child
from mielin_cells.node.family.kinship import Kinship, kinship_of
from mielin_cells.settings import Settings
from mielin_cells.store.reader import load

SETTINGS = Settings(reconcile_s=0.2)


class Kid(cells.Agent, name="FamilyKid"):
    done: int = 0
    arrivals: int = 0
    broken: int = 0

    async def on_arrive(self) -> None:
        self.arrivals += 1
        if BROKEN.get(cells.this().id, 0) > 0:
            BROKEN[cells.this().id] -= 1
            raise ValueError("broken")

    @cells.handler
    async def work(self, n: int = 1) -> int:
        self.done += n
        return self.done

    @cells.handler(tries=1)
    async def fail(self) -> None:
        raise ValueError("no")

    @cells.handler
    async def seen(self) -> int:
        return self.arrivals

    @cells.handler
    async def link(self, to: cells.Agent) -> None:
        await cells.link(to)


BROKEN: dict[str, int] = {}
"""How often `on_arrive` of an agent raises from now on."""


class Boss(cells.Agent, name="FamilyBoss", supervision=cells.Supervision(max_restarts=2, within_s=60)):
    heard: list[cells.Down] = []
    runs: int = 0

    @cells.handler
    async def hire(self, name: str, how: dict[str, str | int] | None = None, work: bool = False) -> int:
        options: Any = how or {}
        kid = await cells.child(**options).spawn(Kid, name, done=10)
        return await kid.work() if work else 0

    @cells.handler(tries=1)
    async def hire_and_fail(self, name: str) -> None:
        await cells.spawn(Kid, name)
        raise ValueError("changed my mind")

    @cells.handler
    async def hire_two(self, first: str, second: str) -> None:
        await asyncio.gather(cells.spawn(Kid, first), cells.spawn(Kid, second))

    @cells.handler
    async def look_after(self, kid: Kid) -> None:
        await cells.monitor(kid, self.on_down)

    @cells.handler
    async def leave(self, kid: Kid) -> None:
        await cells.unmonitor(kid, self.on_down)

    @cells.handler
    async def on_down(self, down: cells.Down) -> None:
        self.heard.append(down)

    @cells.handler
    async def news(self) -> list[cells.Down]:
        return self.heard

    @cells.handler
    async def odd(self, kid: Kid) -> None:
        await cells.monitor(kid, self.news)


class Hasty(cells.Agent, name="FamilyHasty"):
    async def on_start(self) -> None:
        await cells.spawn(Kid, "early")


class AllBoss(Boss, name="FamilyAllBoss", supervision=cells.Supervision(strategy="one_for_all", max_restarts=5)):
    pass


class RestBoss(Boss, name="FamilyRestBoss", supervision=cells.Supervision(strategy="rest_for_one", max_restarts=5)):
    pass


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await holds():
            await asyncio.sleep(0.01)


class Outage:
    """A store that does not answer about children, so many times: more often than a step is tried."""

    def __init__(self, at: Deployment, where: str, times: int = 9) -> None:
        self.left = times
        node = at.nodes["node-1"]
        self._owner: Any = node.home.log if where == "last" else node.home.cluster
        self._where, self._real = where, getattr(self._owner, where)
        setattr(self._owner, where, self._call)

    async def _call(self, what: Any, *more: Any, **options: Any) -> Any:
        named = what if isinstance(what, str) else what.agent
        if self.left and named.endswith("kid"):
            self.left -= 1
            raise StoreUnreachable("The store is away.")
        return await self._real(what, *more, **options)

    def end(self) -> None:
        setattr(self._owner, self._where, self._real)


@pytest.mark.parametrize("where", ["last", "make"])
@pytest.mark.parametrize("handler", ["hire", "hire_two"])
async def test_a_store_that_is_away_while_a_child_is_made_is_no_outcome_and_the_turn_runs_until_it_is_there(
    where: str, handler: str
) -> None:
    async with deployment("node-1", settings=SETTINGS) as at:
        boss = await at.client.spawn(Boss, "boss")
        outage = Outage(at, where)
        if handler == "hire":
            assert await boss.hire("kid", work=True) == 11
        else:
            await boss.hire_two("kid", "second-kid")
        assert outage.left == 0
        outage.end()
        assert await at.client.get(Kid, "kid").work() == (12 if handler == "hire" else 1)


async def children(opened: Deployment, boss: str) -> dict[str, Child]:
    family = (await load(opened.substrate.log, boss)).ledger.family
    return family.children if family is not None else {}


async def state(opened: Deployment, agent: str) -> str:
    return (await load(opened.substrate.log, agent)).status.value


async def breaks(opened: Deployment, agent: str, times: int = 1) -> None:
    """The agent arrives anew, as after a move, and its hook raises so often."""
    BROKEN[agent] = times
    await opened.client.suspend(agent)
    await opened.client.resume(agent)


async def test_a_child_is_made_once_and_can_be_asked_in_the_same_turn() -> None:
    async with deployment("a", "b", settings=SETTINGS) as opened:
        boss = await opened.client.spawn(Boss, "boss")
        assert await boss.hire("kid", None, True) == 11
        child = (await children(opened, "boss"))["kid"]
        assert (child.cls, child.status, child.make) == ("FamilyKid", "running", None)
        family = (await load(opened.substrate.log, "kid")).ledger.family
        assert family is not None
        assert family.parent is not None
        assert family.parent.agent == "boss"
        await boss.hire_two("x", "y")
        assert list(await children(opened, "boss")) == ["kid", "x", "y"]


async def test_a_name_that_is_taken_is_a_named_error_and_makes_no_child() -> None:
    async with deployment("a", settings=SETTINGS) as opened:
        boss, other = await opened.client.spawn(Boss, "boss"), await opened.client.spawn(Boss, "other")
        await opened.client.spawn(Kid, "alone")
        await other.hire("theirs")
        await boss.hire("mine")
        for taken in ("alone", "theirs", "mine", "boss"):
            with pytest.raises(NameTaken, match=f"cannot spawn '{taken}'"):
                await boss.hire(taken)
        assert list(await children(opened, "boss")) == ["mine"]
        with pytest.raises(NotInTurn):
            await cells.spawn(Kid, "outside")


async def test_a_hook_spawns_nothing_and_says_so() -> None:
    async with deployment("a", settings=SETTINGS) as opened:
        await opened.client.spawn(Hasty, "hasty")
        info = await opened.client.show("hasty")
        assert "A hook of agent 'hasty' cannot spawn 'early'" in info.error
        with pytest.raises(cells.NoSuchAgent):
            await opened.client.show("early")


async def test_a_child_that_no_node_can_make_yet_is_made_when_one_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn gives up, and the parent's owner does not."""
    async with deployment("a", settings=Settings(reconcile_s=0.2, step_timeout_s=0.2)) as opened:
        boss = await opened.client.spawn(Boss, "boss")

        async def nobody(*_: object) -> bool:
            raise cells.errors.UnknownClass("No node knows this class.", name="FamilyKid")

        with monkeypatch.context() as away:
            away.setattr(opened.client, "make", nobody)
            with pytest.raises(cells.StepFailed, match="Step 'spawn kid' of agent 'boss' raised UnknownClass"):
                await boss.hire("kid")
            assert (await children(opened, "boss"))["kid"].status == "making"
            with pytest.raises(
                NameTaken, match="earlier call is to make it"
            ):  # another call would make it under another key
                await boss.hire("kid")
        await until(lambda: _status(opened, "boss", "kid", "running"))
        assert await opened.client.get(Kid, "kid").work() == 11


async def test_two_parents_that_spawn_one_name_at_once_have_one_child() -> None:
    async with deployment("a", "b", settings=SETTINGS) as opened:
        bosses = [await opened.client.spawn(Boss, f"boss-{n}") for n in range(4)]
        results = await asyncio.gather(*(boss.hire("kid") for boss in bosses), return_exceptions=True)
        assert sorted(map(type, results), key=str) == sorted([int, NameTaken, NameTaken, NameTaken], key=str)
        have = [name for n in range(4) for name in await children(opened, f"boss-{n}")]
        assert have == ["kid"]


async def test_a_child_of_a_turn_that_fails_is_a_child() -> None:
    async with deployment("a", settings=SETTINGS) as opened:
        boss = await opened.client.spawn(Boss, "boss")
        with pytest.raises(cells.HandlerFailed):
            await boss.hire_and_fail("kid")
        assert (await children(opened, "boss"))["kid"].status == "running"


async def test_a_child_in_error_is_restarted_from_its_last_state() -> None:
    async with deployment("a", "b", settings=SETTINGS) as opened:
        boss = await opened.client.spawn(Boss, "boss")
        await boss.hire("kid", None, True)
        await breaks(opened, "kid")
        await until(lambda: _is(opened, "kid", "Running"))
        assert await opened.client.get(Kid, "kid").work() == 12
        await until(lambda: _restarts(opened, "boss", "kid", 1))


async def test_more_failures_than_allowed_put_the_parent_in_error_and_its_resume_restarts_the_child() -> None:
    async with deployment("a", settings=SETTINGS) as opened:
        boss = await opened.client.spawn(Boss, "boss")
        await boss.hire("kid")
        await breaks(opened, "kid", 3)
        await until(lambda: _is(opened, "boss", "Error"))
        assert await state(opened, "kid") == "Error"
        with pytest.raises(AgentInError, match="children were restarted 2 times within 60 s"):
            await boss.news()
        await opened.client.resume("boss")
        await until(lambda: _is(opened, "kid", "Running"))
        assert (await children(opened, "boss"))["kid"].status == "running"


async def test_an_error_goes_up_through_a_tree() -> None:
    async with deployment("a", settings=SETTINGS) as opened:
        top = await opened.client.spawn(Top, "top")
        await top.build()
        await breaks(opened, "leaf", 1)
        await until(lambda: _restarted(opened, "top", "middle"))
        await until(lambda: _is(opened, "leaf", "Running"))
        assert await state(opened, "middle") == "Running"


class Top(cells.Agent, name="FamilyTop"):
    @cells.handler
    async def build(self) -> None:
        middle = await cells.spawn(Boss, "middle")
        await middle.hire("leaf", {"on_failure": "escalate"})


async def _is(opened: Deployment, agent: str, wanted: str) -> bool:
    return await state(opened, agent) == wanted


async def _restarted(opened: Deployment, boss: str, kid: str) -> bool:
    return (await children(opened, boss))[kid].restarts == 1


async def test_a_child_that_is_to_stop_stays_in_error() -> None:
    async with deployment("a", settings=SETTINGS) as opened:
        boss = await opened.client.spawn(Boss, "boss")
        await boss.hire("kid", {"on_failure": "stop", "dead_letters": 2})
        kid = opened.client.get(Kid, "kid")
        await breaks(opened, "kid")
        await until(lambda: _status(opened, "boss", "kid", "stopped"))
        assert await state(opened, "kid") == "Error"
        await opened.client.resume("kid")
        for _ in range(2):
            await kid.fail.tell()
        await until(lambda: _is(opened, "kid", "Suspended"))


async def _status(opened: Deployment, boss: str, kid: str, wanted: str) -> bool:
    return (await children(opened, boss))[kid].status == wanted


async def test_dead_letters_of_a_child_have_it_loaded_again() -> None:
    async with deployment("a", settings=SETTINGS) as opened:
        boss = await opened.client.spawn(Boss, "boss")
        await boss.hire("kid", {"dead_letters": 2})
        kid = opened.client.get(Kid, "kid")
        before = await kid.seen()
        for _ in range(4):
            await kid.fail.tell()
        await until(lambda: _restarts(opened, "boss", "kid", 2))
        await until(lambda: _seen(kid, before + 1))


async def _restarts(opened: Deployment, boss: str, kid: str, wanted: int) -> bool:
    child = (await children(opened, boss))[kid]
    return child.restarts == wanted and not child.order


async def _seen(kid: Kid, wanted: int) -> bool:
    return await kid.seen() >= wanted


@pytest.mark.parametrize(("cls", "reloaded"), [(AllBoss, {"first", "third"}), (RestBoss, {"third"})])
async def test_siblings_are_loaded_again_as_the_strategy_says(cls: type[Boss], reloaded: set[str]) -> None:
    async with deployment("a", settings=SETTINGS) as opened:
        boss = await opened.client.spawn(cls, "boss")
        for name in ("first", "second", "third"):
            await boss.hire(name)
        await breaks(opened, "second")
        await until(lambda: _restarts(opened, "boss", "second", 1))
        assert {name for name, one in (await children(opened, "boss")).items() if one.restarts} == reloaded | {"second"}
        for name in reloaded:
            kid = opened.client.get(Kid, name)
            await until(lambda kid=kid: _seen(kid, 2))  # type: ignore[misc]


async def test_a_watcher_is_told_once_of_each_failure_and_of_the_end() -> None:
    async with deployment("a", "b", settings=SETTINGS) as opened:
        boss, kid = await opened.client.spawn(Boss, "boss"), await opened.client.spawn(Kid, "kid")
        for _ in range(2):
            await boss.look_after(kid)
        await breaks(opened, "kid")
        await until(lambda: _heard(boss, 1))
        await opened.client.resume("kid")
        await opened.client.migrate("kid")
        await breaks(opened, "kid")
        await until(lambda: _heard(boss, 2))
        await opened.client.terminate("kid")
        await until(lambda: _heard(boss, 3))
        heard = await boss.news()
        assert [(down.agent, down.kind, down.n) for down in heard] == [
            ("kid", "failed", 1), ("kid", "failed", 2), ("kid", "terminated", 3),
        ]  # fmt: skip
        assert "broken" in heard[0].cause
        with pytest.raises(cells.AgentTerminated):
            await boss.look_after(kid)
        with pytest.raises(cells.UsageError, match=r"cells\.Down"):
            await boss.odd(kid)


async def _heard(boss: Boss, count: int) -> bool:
    return len(await boss.news()) >= count


async def test_who_has_left_is_not_told() -> None:
    async with deployment("a", settings=SETTINGS) as opened:
        boss, kid = await opened.client.spawn(Boss, "boss"), await opened.client.spawn(Kid, "kid")
        await boss.look_after(kid)
        await boss.leave(kid)
        await kid.work()
        await opened.client.terminate("kid")
        assert await boss.news() == []


async def test_linked_agents_fail_together_and_once() -> None:
    async with deployment("a", "b", settings=SETTINGS) as opened:
        one, two, three = [await opened.client.spawn(Kid, name) for name in ("one", "two", "three")]
        await one.link(two)
        await two.link(three)
        await three.link(one)
        await breaks(opened, "two")
        for name in ("one", "three"):
            await until(lambda name=name: _is(opened, name, "Error"))  # type: ignore[misc]
        for name in ("one", "two", "three"):
            await opened.client.resume(name)
        for kid in (one, two, three):
            assert await kid.work() == 1
            assert await kid.work() == 2
        await opened.client.terminate("one")
        assert await two.work() == 3
        assert await state(opened, "two") == "Running"


@pytest.mark.parametrize(
    ("when", "after"), [("terminate", "Terminated"), ("suspend", "Suspended"), ("keep", "Running")]
)
async def test_children_of_a_parent_that_ends_do_what_was_declared(when: str, after: str) -> None:
    async with deployment("a", "b", settings=SETTINGS) as opened:
        boss = await opened.client.spawn(Boss, "boss")
        await boss.hire("kid", {"when_parent_ends": when})
        await opened.client.terminate("boss")
        await until(lambda: _orphan(opened, "kid"))
        await until(lambda: _is(opened, "kid", after))


async def _orphan(opened: Deployment, kid: str) -> bool:
    family = (await load(opened.substrate.log, kid)).ledger.family
    return family is not None and family.parent is None


async def test_a_child_that_ends_is_no_child_any_more() -> None:
    async with deployment("a", settings=SETTINGS) as opened:
        boss = await opened.client.spawn(Boss, "boss")
        await boss.hire("kid")
        await opened.client.terminate("kid")
        await until(lambda: _no_child(opened, "boss"))
        with pytest.raises(NameTaken):
            await boss.hire("kid")


async def _no_child(opened: Deployment, boss: str) -> bool:
    return not await children(opened, boss)


async def test_a_family_moves_and_outlives_the_nodes() -> None:
    async with deployment("a", "b", settings=SETTINGS) as opened:
        boss = await opened.client.on("a").spawn(Boss, "boss")
        await boss.hire("kid", {"node": "b"})
        await opened.client.migrate("boss", to="b")
        opened.kill("b")
        await opened.start("b")
        await breaks(opened, "kid")
        await until(lambda: _is(opened, "kid", "Running"))
        assert await opened.client.get(Kid, "kid").work() == 11
        await until(lambda: _restarts(opened, "boss", "kid", 1))


async def test_a_failure_is_told_by_the_next_owner_if_the_node_died_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async with deployment("a", "b", settings=SETTINGS) as opened:
        boss = await opened.client.on("b").spawn(Boss, "boss")
        await boss.hire("kid", {"node": "a"})
        with monkeypatch.context() as silent:
            silent.setattr(Kinship, "tell", lambda self: None)
            await breaks(opened, "kid")
            assert await state(opened, "kid") == "Error"
            opened.kill("a")
        await opened.start("a")
        await until(lambda: _restarts(opened, "boss", "kid", 1))
        await until(lambda: _is(opened, "kid", "Running"))


async def test_an_order_is_carried_out_by_the_next_owner_if_the_node_died_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with deployment("a", "b", settings=SETTINGS) as opened:
        boss = await opened.client.on("b").spawn(Boss, "boss")
        await boss.hire("kid", {"node": "a"})
        with monkeypatch.context() as idle:
            idle.setattr(Kinship, "kick", lambda self: None)
            await breaks(opened, "kid")
            await until(lambda: _ordered(opened, "boss", "kid"))
            opened.kill("b")
        assert await state(opened, "kid") == "Error"
        await opened.start("b")
        await until(lambda: _restarts(opened, "boss", "kid", 1))
        assert await state(opened, "kid") == "Running"


async def test_each_order_to_a_child_waits_until_it_is_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 51000443: the log was flushed once for all, so one that came while another was carried out went ahead of its record."""
    async with deployment("a", settings=SETTINGS) as opened:
        boss = await opened.client.spawn(Boss, "boss")
        kids, seen = ["kid1", "kid2"], list[str]()
        with monkeypatch.context() as idle:
            idle.setattr(Kinship, "kick", lambda self: None)
            for kid in kids:
                await boss.hire(kid)
                await breaks(opened, kid)
            for kid in kids:
                await until(partial(_ordered, opened, "boss", kid))
        activation = opened.nodes["a"].activations.live["boss"]
        cluster: Any = activation.home.cluster
        flush, order = type(activation).flush, type(cluster).order

        async def flushed(self: Any, **how: bool) -> None:
            if self is activation:
                seen.append("flush")
            await flush(self, **how)

        async def ordered(self: Any, agent: str, what: str, reason: str) -> None:
            seen.append(agent)
            await order(self, agent, what, reason)

        monkeypatch.setattr(type(activation), "flush", flushed)
        monkeypatch.setattr(type(cluster), "order", ordered)
        kinship_of(activation).kick()
        for kid in kids:
            await until(partial(_restarts, opened, "boss", kid, 1))
        assert [seen[seen.index(kid) - 1] for kid in kids] == ["flush", "flush"]


async def _ordered(opened: Deployment, boss: str, kid: str) -> bool:
    return (await children(opened, boss))[kid].order == "restart"


async def test_a_late_or_repeated_restart_does_nothing() -> None:
    async with deployment("a", settings=SETTINGS) as opened:
        boss = await opened.client.spawn(Boss, "boss")
        await boss.hire("kid", {"on_failure": "stop"})
        for failure in (1, 2):
            await breaks(opened, "kid")
            await until(lambda n=failure: _seen_by(opened, n))  # type: ignore[misc]
            await opened.client.order("kid", "restart", str(failure - 1))
            assert await state(opened, "kid") == "Error"
            await opened.client.order("kid", "restart", str(failure))
            await opened.client.order("kid", "restart", str(failure))
            assert await state(opened, "kid") == "Running"


async def _seen_by(opened: Deployment, failure: int) -> bool:
    return (await children(opened, "boss"))["kid"].failure == failure


async def test_an_undo_of_the_parent_keeps_the_child_and_takes_no_notice_twice() -> None:
    async with deployment("a", "b", settings=SETTINGS) as opened:
        boss = await opened.client.on("a").spawn(Boss, "boss")
        moved = await opened.client.migrate("boss", to="b")
        await boss.hire("kid", {"dead_letters": 1})
        await opened.client.get(Kid, "kid").fail.tell()
        await until(lambda: _restarts(opened, "boss", "kid", 1))
        await opened.client.rollback(moved.migration, to="a")
        child = (await children(opened, "boss"))["kid"]
        assert (child.status, child.restarts, child.seen, child.order) == ("running", 1, 1, "")
        with pytest.raises(NameTaken):
            await boss.hire("kid")


@pytest.mark.parametrize(
    "wrong",
    [
        {"strategy": "all"}, {"max_restarts": -1}, {"max_restarts": True}, {"within_s": 0}, {"within_s": "x"},
    ],
)  # fmt: skip
def test_a_supervision_that_cannot_be_is_refused_with_the_class(wrong: Any) -> None:
    with pytest.raises(cells.FieldRefused, match="supervision"):

        class FamilyWrong(cells.Agent, supervision=cells.Supervision(**wrong)):
            pass


async def test_options_of_a_child_that_cannot_be_are_refused() -> None:
    for wrong in ({"on_failure": "x"}, {"when_parent_ends": ""}, {"dead_letters": -1}, {"node": ""}):
        with pytest.raises(cells.UsageError):
            cells.child(**wrong)
