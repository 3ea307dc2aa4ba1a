"""Priorities: each is an inbox of its own, and what waits in a higher one goes first, but never for long (rule T1)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nats_servers import nats_server, opened
from support.nodes import ONCE, Deployment, deployment

import mielin_cells as cells
from mielin_cells.agents.context import current
from mielin_cells.errors import UsageError
from mielin_cells.log.inboxes.choice import PASSED_MAX, Turns
from mielin_cells.log.inboxes.lines import PRIORITIES, Priority, end_of, line, priority_of
from mielin_cells.log.turns.batch import Batch
from mielin_cells.node.activation.inbox import Arrival
from mielin_cells.node.activation.priorities.inboxes import Inboxes
from mielin_cells.store.letters import read_letters
from mielin_cells.store.reader import load

SOON = cells.Settings(idle_s=0.05)
LEVELS: tuple[Priority, ...] = ("low", "normal", "high", "critical")

gates: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def fresh() -> None:
    gates.clear()


def gate(name: str) -> asyncio.Event:
    return gates.setdefault(name, asyncio.Event())


async def worked() -> None:
    pass


class Desk(cells.Agent, name="PriorityDesk"):
    said: list[str] = []

    @cells.handler
    async def say(self, what: str) -> int:
        self.said.append(what)
        return len(self.said)

    @cells.handler(tries=3)
    async def fuss(self, what: str) -> None:
        if not gate("calm").is_set():
            raise ValueError(what)
        self.said.append(what)

    @cells.handler
    async def hold(self) -> None:
        gate("in").set()
        await gate("out").wait()

    @cells.handler
    async def work(self) -> None:
        await cells.step("worked", worked)
        gate("in").set()
        await gate("out").wait()

    @cells.handler
    async def all(self) -> list[str]:
        return self.said


class Sender(cells.Agent, name="PrioritySender"):
    asked: list[int] = []

    @cells.handler
    async def tell_all(self, to: Desk, count: int) -> None:
        for n in range(count):
            for priority in LEVELS:
                await to.say.options(priority=priority).tell(f"{priority} {n}")

    @cells.handler
    async def ask_all(self, to: Desk) -> list[int]:
        self.asked = [await to.say.options(priority=priority)(priority) for priority in LEVELS]
        return self.asked

    @cells.handler
    async def ask_at_once(self, to: Desk) -> None:
        await asyncio.gather(*(to.say.options(priority=priority)(priority) for priority in LEVELS))


@asynccontextmanager
async def on_nats(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    """Two nodes on a real server."""
    async with (
        nats_server(tmp_path_factory.mktemp("nats")) as server,
        opened(server.url, deployment="urgent") as substrate,
    ):
        at = Deployment(substrate, None, ONCE)
        await at.client.open()
        token = current.set(at.client)
        try:
            for name in ("node-1", "node-2"):
                await at.start(name)
            yield at
        finally:
            current.reset(token)
            for node in at.nodes.values():
                await node.stop()
            await at.client.close()


async def held(desk: Desk) -> asyncio.Task[None]:
    """A turn that runs until `gate("out")` is set."""
    holding = asyncio.ensure_future(desk.hold())
    await gate("in").wait()
    return holding


async def until(desk: Desk, count: int) -> list[str]:
    async with asyncio.timeout(60):
        while len(said := await desk.all()) < count:
            await asyncio.sleep(0.01)
    return said


async def arrived(at: Deployment, agent: str, count: int) -> None:
    """So many messages wait."""
    async with asyncio.timeout(60):
        while at.nodes["node-1"].activations.live[agent].inbox.waiting_in_all < count:
            await asyncio.sleep(0.005)


async def story_of_what_waits(at: Deployment) -> None:
    desk = await at.client.on("node-1").spawn(Desk, "d")
    holding = await held(desk)
    for n in range(3):
        for priority in LEVELS:
            await desk.say.options(priority=priority).tell(f"{priority} {n}")
    await arrived(at, "d", 13)  # the turn that runs is one
    gate("out").set()
    await holding
    assert await until(desk, 12) == [f"{priority} {n}" for priority in reversed(LEVELS) for n in range(3)]


async def test_of_what_waits_the_highest_goes_first_and_each_priority_keeps_its_order() -> None:
    async with deployment("node-1") as at:
        await story_of_what_waits(at)


async def test_the_same_on_a_real_server_and_over_a_move(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with on_nats(tmp_path_factory) as at:
        await story_of_what_waits(at)
        desk = at.client.get(Desk, "d")
        await at.client.migrate("d", to="node-2")
        sender = await at.client.spawn(Sender, "s")
        await sender.tell_all(desk, 5)
        assert max(await until(desk, 32)) == "normal 4"
        at.kill("node-2")
        await at.client.claim("d", to="node-1")
        assert await sender.ask_all(desk) == [33, 34, 35, 36]


async def test_a_message_from_inside_a_turn_is_numbered_by_its_priority() -> None:
    async with deployment("node-1") as at:
        desk, sender = await at.client.spawn(Desk, "d"), await at.client.spawn(Sender, "s")
        await sender.tell_all(desk, 2)
        await until(desk, 8)
        assert await sender.ask_all(desk) == [9, 10, 11, 12]
        await sender.ask_at_once(desk)
        said = await desk.all()
        for priority in LEVELS:
            assert [one for one in said if one.startswith(f"{priority} ")] == [f"{priority} 0", f"{priority} 1"]
        ledger = (await load(at.substrate.log, "s")).ledger
        assert ledger.numbers == {line("d", priority): 4 for priority in LEVELS}


async def test_an_agent_that_gets_no_message_of_another_priority_has_one_inbox_and_its_commits_say_so() -> None:
    async with deployment("node-1") as at:
        desk = await at.client.spawn(Desk, "d")
        await desk.say("one")
        activation = at.nodes["node-1"].activations.live["d"]
        assert activation.inbox.others is None
        assert activation.fold.ledger.inboxes is None
        await desk.say.options(priority="normal")("two")
        assert activation.inbox.others is None
        assert [subject for subject, _ in await at.substrate.log.subjects("inbox.")] == ["inbox.d"]


async def test_a_new_owner_reads_every_inbox_that_is_in_use_from_its_own_cursor() -> None:
    async with deployment("node-1", "node-2") as at:
        desk = await at.client.on("node-1").spawn(Desk, "d")
        for priority in LEVELS:
            await desk.say.options(priority=priority)(f"{priority} first")
        at.kill("node-1")
        told = [desk.say.options(priority=priority).tell(f"{priority} then") for priority in LEVELS]
        await asyncio.gather(*told)
        await at.client.claim("d", to="node-2")
        assert sorted(await until(desk, 8)) == sorted(f"{p} {w}" for p in LEVELS for w in ("first", "then"))


async def opened_and_not_used(at: Deployment) -> tuple[Desk, tuple[str, bytes]]:
    """The opening is passed, then the owner dies; the message is still on its way."""
    desk = await at.client.on("node-1").spawn(Desk, "d")
    append, late = at.client.log.append, list[tuple[str, bytes]]()

    async def holds_back(subject: str, data: bytes, *rest: object) -> object:
        if subject == "inbox.d.high":
            late.append((subject, data))
            await asyncio.Event().wait()
        return await append(subject, data, *rest)  # type: ignore[arg-type]

    at.client.log.append = holds_back  # type: ignore[method-assign, assignment]
    telling = asyncio.ensure_future(desk.say.options(priority="high").tell("late"))
    async with asyncio.timeout(60):
        while not late:
            await asyncio.sleep(0.005)
    await desk.say("on time")  # its commit passes the opening
    at.kill("node-1")
    await at.client.claim("d", to="node-2")
    telling.cancel()
    at.client.log.append = append  # type: ignore[method-assign]
    return desk, late[0]


async def test_an_inbox_that_was_opened_and_not_used_when_its_owner_died_is_read_by_the_next() -> None:
    """T1d of the models."""
    async with deployment("node-1", "node-2") as at:
        desk, late = await opened_and_not_used(at)
        await at.client.log.append(*late)
        assert await until(desk, 2) == ["on time", "late"]


async def test_without_its_name_in_the_ledger_the_next_owner_does_not_read_an_opened_inbox(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guard of the story above, taken away."""

    def in_memory(self: Inboxes, arrival: Arrival, sender: str, batch: Batch) -> None:
        self.use(priority_of(sender))
        self.done(arrival, batch)

    monkeypatch.setattr(Inboxes, "pass_opening", in_memory)
    async with deployment("node-1", "node-2") as at:
        desk, _ = await opened_and_not_used(at)
        assert await desk.all() == ["on time"]
        assert at.nodes["node-2"].activations.live["d"].inbox.others is None


async def test_a_message_that_failed_waits_aside_in_its_own_inbox() -> None:
    async with deployment("node-1", settings=cells.Settings(retry_first_s=0.05)) as at:
        desk = await at.client.spawn(Desk, "d")
        await desk.fuss.options(priority="high").tell("high")
        await desk.say("meanwhile")
        gate("calm").set()
        assert await until(desk, 2) == ["meanwhile", "high"]
        await desk.say("end")  # its commit holds what was taken
        places = (await load(at.substrate.log, "d")).ledger.inboxes
        assert places is not None
        assert not places["high"].held


async def test_what_waits_aside_in_one_inbox_stays_before_what_comes_when_a_turn_of_another_inbox_is_open() -> None:
    """A new owner looked for the open turn's message in each inbox, and put what had waited behind what came (seed 69)."""
    async with deployment("node-1", "node-2", settings=cells.Settings(retry_first_s=300.0)) as at:
        desk = await at.client.on("node-1").spawn(Desk, "d")
        await desk.fuss.tell("first")
        await desk.say.tell("second")
        inbox = at.nodes["node-1"].activations.live["d"].inbox
        async with asyncio.timeout(60):
            while inbox.aside < 2:
                await asyncio.sleep(0.005)
        working = asyncio.ensure_future(desk.work.options(priority="critical")())
        await gate("in").wait()
        at.kill("node-1")
        await desk.say.tell("third")
        gate("calm").set()
        gate("out").set()
        await at.client.claim("d", to="node-2")
        await working
        assert await until(desk, 3) == ["first", "second", "third"]


async def test_an_agent_that_left_memory_is_woken_by_a_message_of_any_priority() -> None:
    async with deployment("node-1", settings=SOON) as at:
        desk, activations = await at.client.spawn(Desk, "d"), at.nodes["node-1"].activations
        for n, priority in enumerate((*LEVELS, *reversed(LEVELS)), 1):
            assert await desk.say.options(priority=priority)("x") == n
            async with asyncio.timeout(60):
                while "d" not in activations.asleep:
                    await asyncio.sleep(0.01)


async def test_each_inbox_has_a_bound_of_its_own() -> None:
    async with deployment("node-1", settings=cells.Settings(inbox_max=5)) as at:
        desk = await at.client.spawn(Desk, "d")
        holding = await held(desk)
        with pytest.raises(cells.InboxFull):
            for n in range(30):
                await desk.say.tell(f"{n}")
        await desk.say.options(priority="critical").tell("critical")
        gate("out").set()
        await holding
        assert (await until(desk, 2))[0] == "critical"


async def test_what_an_ended_agent_never_took_is_listed_from_all_of_its_inboxes() -> None:
    async with deployment("node-1") as at:
        desk = await at.client.spawn(Desk, "d")
        await desk.say.options(priority="low")("x")
        await at.client.suspend(desk)
        for priority in LEVELS:
            await desk.say.options(priority=priority).tell(priority)
        await at.client.terminate(desk)
        _, letters = await read_letters(at.substrate.log, "d")
        assert sorted(priority_of(letter.sender) for letter in letters) == sorted(PRIORITIES)


async def test_a_priority_that_is_none_is_refused() -> None:
    async with deployment("node-1") as at:
        desk = await at.client.spawn(Desk, "d")
        with pytest.raises(UsageError, match="priority='urgent'; it is one of low, normal, high, critical"):
            await desk.say.options(priority="urgent")("x")  # type: ignore[arg-type]


# ---- the choice -----------------------------------------------------------------------------------------------


@given(st.lists(st.sets(st.sampled_from(PRIORITIES)), max_size=200))
def test_no_inbox_that_waits_is_passed_by_more_than_20_messages(comes: list[set[str]]) -> None:
    turns, waiting, passed = Turns(), set[str](), dict.fromkeys(PRIORITIES, 0)
    for come in comes:
        waiting |= come
        if not waiting:
            continue
        chosen = turns.choose(waiting)
        for one in waiting - {chosen}:
            passed[one] += 1
        passed[chosen] = 0
        assert max(passed[one] for one in waiting) <= PASSED_MAX + len(PRIORITIES)
        if Random(len(waiting)).random() < 0.5:
            waiting.discard(chosen)
        turns.took(chosen, waiting)


def test_with_all_inboxes_full_all_the_time_each_gets_its_turn_and_the_highest_most() -> None:
    turns, taken = Turns(), list[str]()
    for _ in range(400):
        taken.append(turns.choose(PRIORITIES))
        turns.took(taken[-1], PRIORITIES)
    for priority in PRIORITIES:
        places = [place for place, one in enumerate(taken) if one == priority]
        assert max(after - before for before, after in pairwise(places)) <= PASSED_MAX + len(PRIORITIES) + 1
    assert taken.count("critical") > 300


@given(st.text(min_size=1).filter(lambda name: "\x03" not in name), st.sampled_from(PRIORITIES))
def test_a_line_is_named_after_its_end_and_its_priority(name: str, priority: str) -> None:
    assert (end_of(line(name, priority)), priority_of(line(name, priority))) == (name, priority)
