"""A message whose deadline passes before its turn begins does not run, and its sender is told (rule T2)."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from support.nodes import deployment
from support.virtual import virtually
from support.waiting import until

import mielin_cells as cells
from mielin_cells.agents.reference import make_ref
from mielin_cells.errors import Expired
from mielin_cells.log.commit import ReplayInput
from mielin_cells.log.ledger import Ledger
from mielin_cells.log.message import Mail, Message, Terms
from mielin_cells.log.undo import _Past
from mielin_cells.settings import DEAD_LETTERS_MAX
from mielin_cells.store.clock import StoreClock
from mielin_cells.store.mail import store_mail
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Log
from mielin_cells.testing.forwarded import ForwardedLog

SOON_S = 0.2
YEAR_S = 365 * 86400.0

gates: dict[str, asyncio.Event] = {}
tries: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    gates.clear()
    tries.clear()


def gate(name: str) -> asyncio.Event:
    return gates.setdefault(name, asyncio.Event())


class Booth(cells.Agent, name="DeadlineBooth"):
    said: list[str] = []

    @cells.handler
    async def say(self, what: str) -> int:
        self.said.append(what)
        return len(self.said)

    @cells.handler
    async def hold(self, what: str) -> None:
        gate(f"in {what}").set()
        await gate(what).wait()
        self.said.append(what)

    @cells.handler
    async def fail(self, what: str) -> None:
        tries.append(what)
        raise OSError(what)

    @cells.handler
    async def pass_on(self, other: Booth, what: str, asks: bool) -> str:
        call = other.say.options(deadline=SOON_S)
        if not asks:
            await call.tell(what)
            return "told"
        try:
            return str(await call(what))
        except Expired as error:
            return error.code

    @cells.handler
    async def insist(self, other: Booth, what: str) -> int:
        return await other.say.options(deadline=SOON_S)(what)

    @cells.handler
    async def all(self) -> list[str]:
        return self.said


async def dead(c: cells.Cluster, agent: str) -> list[tuple[str, str]]:
    fold = await load(c.log, agent)  # type: ignore[attr-defined]
    return [(letter.handler, letter.cause.partition(":")[0]) for letter in fold.ledger.dead]


@asynccontextmanager
async def held(booth: Booth, name: str = "b") -> AsyncIterator[None]:
    """Inside it a turn of the agent runs, and everything else waits."""
    holding = asyncio.create_task(_hold(booth, name))
    await gate(f"in {name}").wait()
    try:
        yield
    finally:
        gate(name).set()
        await holding


async def _hold(booth: Booth, name: str) -> None:
    await booth.hold(name)


async def waiting(c: cells.Cluster, booth: Booth, count: int) -> None:
    """Returns once so many messages wait in the inbox."""
    while (await c.show(booth)).waiting < count:
        await asyncio.sleep(0.005)


async def passed(seconds: float = 2 * SOON_S) -> None:
    """Time passes: this is what the test is about."""
    await asyncio.sleep(seconds)


async def test_an_ask_whose_deadline_passes_while_another_turn_runs_raises_expired_and_is_a_dead_letter() -> None:
    async with cells.local() as c:
        booth = await c.spawn(Booth, "b")
        async with held(booth):
            late = asyncio.create_task(_ask(booth, "late"))
            in_time = asyncio.create_task(_ask(booth, "in time", 60.0))
            await waiting(c, booth, 2)
            await passed()
        with pytest.raises(Expired) as raised:
            await late
        assert raised.value.facts == {"agent": "b", "handler": "say"}
        assert await in_time == 2
        assert await booth.all() == ["b", "in time"]
        assert await dead(c, "b") == [("say", "Expired")]


async def _ask(booth: Booth, what: str, deadline: float = SOON_S) -> int:
    return await booth.say.options(deadline=deadline)(what)


@virtually
async def test_a_turn_that_has_begun_goes_on_beyond_its_deadline() -> None:
    async with cells.local() as c:
        booth = await c.spawn(Booth, "b")
        running = asyncio.create_task(_hold_late(booth))
        await gate("in slow").wait()
        await passed()
        gate("slow").set()
        await running
        assert await booth.all() == ["slow"]


async def _hold_late(booth: Booth) -> None:
    await booth.hold.options(deadline=SOON_S)("slow")


@pytest.mark.parametrize("asks", [True, False])
async def test_a_message_between_agents_expires_like_one_of_a_client(asks: bool) -> None:
    async with cells.local() as c:
        booth, sender = await c.spawn(Booth, "b"), await c.spawn(Booth, "s")
        async with held(booth):
            passing = asyncio.create_task(_pass_on(sender, booth, asks))
            await waiting(c, booth, 1)
            await passed()
        assert await passing == ("Expired" if asks else "told")
        assert await booth.say("after") == 2
        assert await booth.all() == ["b", "after"]
        assert await dead(c, "b") == [("say", "Expired")]


async def test_a_handler_that_does_not_catch_the_lapse_of_its_own_ask_has_failed_and_its_asker_is_not_misled() -> None:
    async with cells.local() as c:
        booth, sender = await c.spawn(Booth, "b"), await c.spawn(Booth, "s")
        async with held(booth):
            insisting = asyncio.create_task(_insist(sender, booth))
            await waiting(c, booth, 1)
            await passed()
        with pytest.raises(cells.HandlerFailed, match="raised Expired") as raised:
            await insisting
        assert raised.value.facts["kind"] == "Expired"


async def _insist(sender: Booth, booth: Booth) -> int:
    return await sender.insist(booth, "late")


async def _pass_on(sender: Booth, booth: Booth, asks: bool) -> str:
    return await sender.pass_on(booth, "late", asks)


@virtually
async def test_a_failed_tell_does_not_run_again_after_its_deadline() -> None:
    settings = cells.Settings(retry_first_s=2 * SOON_S, tries=100)
    async with cells.local(settings=settings) as c:
        booth = await c.spawn(Booth, "b")
        await booth.fail.options(deadline=SOON_S).tell("x")
        await until(lambda: tries == ["x"])

        while not await dead(c, "b"):
            await asyncio.sleep(0.005)
        assert await dead(c, "b") == [("fail", "Expired")]
        assert tries == ["x"]


async def test_a_message_that_waits_moves_with_its_agent_and_expires_there() -> None:
    async with cells.local(nodes=2) as c:
        booth = await c.on("node-1").spawn(Booth, "b")
        await c.suspend(booth)
        late = asyncio.create_task(_ask(booth, "late"))
        in_time = asyncio.create_task(_ask(booth, "in time", 60.0))
        await waiting(c, booth, 2)
        await passed()
        await c.migrate(booth, to="node-2")
        await c.resume(booth)
        with pytest.raises(Expired):
            await late
        assert await in_time == 1


@pytest.mark.parametrize("is_marked", [True, False], ids=["", "guard taken away"])
async def test_after_an_undo_what_ran_runs_however_late_and_what_expired_does_not(
    is_marked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = _Past.replay

    def unmarked(self: _Past, sender: str, n: int) -> ReplayInput:
        return msgspec.structs.replace(replay(self, sender, n), unrun="")

    if not is_marked:
        monkeypatch.setattr(_Past, "replay", unmarked)
    async with cells.local(nodes=2) as c:
        booth = await c.on("node-1").spawn(Booth, "b")
        move = await c.migrate(booth, to="node-2")
        await c.suspend(booth)
        late = asyncio.create_task(_ask(booth, "late"))
        await booth.say.options(deadline=SOON_S).tell("told")
        await waiting(c, booth, 2)
        await passed()
        await c.resume(booth)
        with pytest.raises(Expired):
            await late
        assert await _ask(booth, "in time", 1.5) == 1
        expired = [("say", "Expired")] * 2
        assert await dead(c, "b") == expired
        await passed(1.6)

        report = await c.rollback(move.migration)

        assert (report.ok, report.replayed) == (True, 3)
        if is_marked:
            assert await booth.all() == ["in time"]
            assert await dead(c, "b") == expired
        else:
            assert sorted(await booth.all()) == ["in time", "late", "told"], "the harm that the mark keeps away"


async def test_wall_clocks_that_are_set_by_years_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cells.local() as c:
        booth = await c.spawn(Booth, "b")
        wall = time.time
        for ahead_s in (YEAR_S, -YEAR_S):
            monkeypatch.setattr(time, "time", lambda ahead_s=ahead_s: wall() + ahead_s)
            assert await _ask(booth, "x", 60.0) > 0


class Away(ForwardedLog):
    """The store does not tell its time until it is back."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.is_back = asyncio.Event()

    async def now(self) -> float:
        await self.is_back.wait()
        return await self.log.now()


async def test_a_call_that_could_not_be_sent_in_time_is_never_sent() -> None:
    async with deployment("node-1") as d:
        booth = await d.client.spawn(Booth, "b")
        away = Away(d.substrate.log)
        d.client.clock = StoreClock(away)
        late, told = asyncio.create_task(_ask(booth, "late")), asyncio.create_task(_tell(booth, "told"))
        behind = asyncio.create_task(_say(booth, "behind"))
        await passed()
        away.is_back.set()
        for one in (late, told):
            with pytest.raises(Expired, match="was not called"):
                await one
        assert await behind == 1
        assert (await load(d.substrate.log, "b")).ledger.dead == []


async def _tell(booth: Booth, what: str) -> None:
    await booth.say.options(deadline=SOON_S).tell(what)


async def _say(booth: Booth, what: str) -> int:
    return await booth.say(what)


async def test_many_expired_messages_leave_few_dead_letters_and_lines_and_the_agent_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "mielin_cells.intake")
    count = 20 * DEAD_LETTERS_MAX
    async with deployment("node-1", settings=cells.Settings(inbox_max=2 * count)) as d:
        booth, log = await d.client.spawn(Booth, "b"), d.substrate.log
        session = d.client.session("b", "many")
        sender, terms = "flood", Terms(1.0)
        for first in range(1, count, 1000):
            messages = [Message(n, "say", b"\x81\xa4what\xa1x", terms=terms) for n in range(first, first + 1000)]
            await store_mail(log, Mail("b", "DeadlineBooth", sender, 0, first, "", messages))
        assert await booth.say("after") == 1
        fold = await load(log, "b")
        assert len(fold.ledger.dead) == DEAD_LETTERS_MAX
        assert {letter.cause.partition(":")[0] for letter in fold.ledger.dead} == {"Expired"}
        assert fold.ledger.size_bytes < 1 << 20
        session.close()
    lines = [record.getMessage() for record in caplog.records if "did not run" in record.getMessage()]
    assert 0 < len(lines) < count // 100, "one a second, not one a message"


@pytest.mark.parametrize("deadline", [0, -1, -0.5, float("nan"), float("inf"), "1", True, 1e10])
async def test_a_deadline_that_cannot_be_is_refused_before_anything_is_sent(deadline: object) -> None:
    with pytest.raises(cells.UsageError, match="deadline="):
        make_ref(Booth, "b").say.options(deadline=deadline)  # type: ignore[arg-type]


def test_options_are_part_of_what_a_handler_of_a_reference_is() -> None:
    ref = make_ref(Booth, "b")
    one = ref.say.options(deadline=5)
    assert one == ref.say.options(deadline=5.0) != ref.say
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301


@pytest.mark.parametrize(("now", "has_begun", "unrun"), [(9.9, False, ""), (10.0, False, "expired"), (99.0, True, "")])
def test_the_stores_time_decides_and_a_turn_that_has_begun_does_not_expire(
    now: float, has_begun: bool, unrun: str
) -> None:
    assert Ledger().why_unrun("a", Message(1, "say", b"", terms=Terms(10.0)), now, has_begun, False) == unrun
    assert Ledger().why_unrun("a", Message(1, "say", b"", terms=Terms()), now, has_begun, False) == ""
