"""An ask that is not answered says why: at once where nothing would come, and in its timeout where something may."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from support.bad_agents import QUICK, bad_class, good_class, having
from support.moving import nodes
from support.nodes import deployment
from support.virtual import virtually
from support.waiting import until

import mielin_cells as cells
from mielin_cells.cli import look
from mielin_cells.cli.show import Printer
from mielin_cells.client.client import Client
from mielin_cells.client.operator import Operator
from mielin_cells.errors import AgentInError, PermissionDenied
from mielin_cells.log.ids import inbox_subject, log_subject
from mielin_cells.testing.forwarded import ForwardedLog

SHORT_S = 0.4
LONG_S = 600.0
"""Nobody waits so long: what fails at once fails long before."""
WAIT_S = 60.0

moody: set[str] = set()
"""Agents whose `on_arrive` raises."""


@pytest.fixture(autouse=True)
def calm() -> None:
    moody.clear()


class Porter(cells.Agent):
    count: int = 0

    async def on_arrive(self) -> None:
        if cells.this().id == "hangs":
            await asyncio.Event().wait()
        if cells.this().id in moody:
            raise RuntimeError("no database")

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count

    @cells.handler
    async def sleeps(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("the past is over")
        await asyncio.sleep(seconds)

    @cells.handler
    async def asks(self, *, first: Porter, timeout: float = LONG_S) -> int:
        return await first.add.options(timeout=timeout)()

    @cells.handler
    async def asks_both(self, *, one: Porter, other: Porter) -> list[str]:
        asks = one.add.options(timeout=SHORT_S)(), other.add.options(timeout=SHORT_S)()
        return [str(each) for each in await asyncio.gather(*asks, return_exceptions=True)]

    @cells.handler
    async def round(self, way: list[cells.AgentId], tells: bool = False) -> int:
        """Asks the first of the way, which asks the next of it."""
        if not way:
            return await self.add()
        ref = cells.this().cluster.get(Porter, way[0])
        if tells:
            await ref.round.tell(way[1:])
            return 0
        return await ref.round(way[1:])


class Late(cells.Agent):
    started: int = 0

    async def on_start(self) -> None:
        if cells.this().id in moody:
            raise RuntimeError("no database")
        self.started += 1

    @cells.handler
    async def read(self) -> int:
        return self.started


@pytest.mark.parametrize("how", ["from its start", "after a resume that failed"])
async def test_an_ask_of_an_agent_in_error_fails_at_once_and_its_message_waits(how: str) -> None:
    async with cells.local(settings=cells.Settings(ask_timeout_s=LONG_S)) as cluster:
        if how == "from its start":
            moody.add("p")
        porter = await cluster.spawn(Porter, "p")
        if how != "from its start":
            await porter.add.options(timeout=WAIT_S)()
            await cluster.suspend(porter)
            moody.add("p")
            waiting = asyncio.create_task(porter.add())
            await asyncio.sleep(0)
            await cluster.resume(porter)
            with pytest.raises(cells.errors.AgentInError):
                await waiting
        before = (await cluster.show(porter)).waiting
        async with asyncio.timeout(WAIT_S):
            for _ in range(2):
                with pytest.raises(
                    cells.errors.AgentInError, match="'p' is in ERROR on node-1 .* no database"
                ) as raised:
                    await porter.add()
                assert (raised.value.agent, raised.value.node) == ("p", "node-1")
                assert raised.value.cause == "RuntimeError: no database"
            assert (await cluster.show(porter)).waiting == before + 2
            moody.clear()
            await cluster.resume(porter)
            assert await porter.add() >= 3, "what waited was taken"


@pytest.mark.parametrize("stop", ["suspend", "suspend, pause"])
@virtually
async def test_a_resume_of_an_agent_that_was_suspended_in_error_still_runs_on_start(stop: str) -> None:
    async with cells.local(settings=cells.Settings(ask_timeout_s=WAIT_S)) as cluster:
        moody.add("p")
        late = await cluster.spawn(Late, "p")
        for order in stop.split(", "):
            await getattr(cluster, order)(late)
        await cluster.resume(late)
        with pytest.raises((cells.errors.AgentInError, cells.AskTimeout)):  # who is paused stays so
            await late.read.options(timeout=SHORT_S)()
        await cluster.suspend(late)
        moody.clear()
        await cluster.resume(late)
        assert await late.read() == 1


async def test_an_agent_that_asks_one_in_error_gets_that_error_as_an_outcome() -> None:
    async with cells.local(nodes=2, settings=cells.Settings(ask_timeout_s=LONG_S)) as cluster:
        moody.add("p")
        porter, asker = await cluster.spawn(Porter, "p"), await cluster.on("node-2").spawn(Porter, "a")
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(cells.errors.AgentInError, match="'p' is in ERROR"):
                await asker.asks(first=porter)
            assert await asker.add() == 1


@pytest.mark.parametrize("is_first", [True, False])
@virtually
async def test_asks_of_one_turn_at_the_same_time_each_say_their_own_reason(is_first: bool) -> None:
    """They shared one, and the time-out of either told that of the ask that was looked after last."""
    async with cells.local(settings=cells.Settings(ask_repeat_s=SHORT_S / 8)) as cluster:
        asker, *others = [await cluster.spawn(Porter, name) for name in ("a", "paused", "stopped")]
        await cluster.pause("paused")
        await cluster.suspend("stopped")
        one, other = others if is_first else others[::-1]
        said = await asker.asks_both(one=one, other=other)
        for text, ref in zip(said, (one, other), strict=True):
            assert ("is suspended" in text, "is paused" in text) == (ref is others[1], ref is others[0]), text


@virtually
async def test_an_agent_that_has_ended_says_so_to_each_ask_and_no_later_one_waits_longer() -> None:
    async with cells.local(settings=cells.Settings(ask_timeout_s=LONG_S, ask_repeat_s=SHORT_S)) as cluster:
        porter = await cluster.spawn(Porter, "p")
        await porter.add()
        await cluster.terminate(porter)
        clock, took = asyncio.get_running_loop().time, list[float]()
        for _ in range(4):
            began = clock()
            with pytest.raises(cells.AgentTerminated):
                await porter.add()
            took.append(clock() - began)
        assert max(took[1:]) < took[0] + SHORT_S / 2, took


async def test_an_agent_in_error_repeats_answers_that_it_gave_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cells.local(settings=cells.Settings(ask_repeat_s=0.05)) as cluster:
        assert isinstance(cluster, Client)
        porter = await cluster.spawn(Porter, "p")
        session, lost = cluster.session("p"), list[dict[int, bytes]]()
        with monkeypatch.context() as patched:
            patched.setattr(session, "receive", lost.append)
            patched.setattr(session, "_repeat", _nothing)
            asking = asyncio.create_task(porter.add())
            await until(lambda: lost, limit_s=WAIT_S, pause_s=0)
            await cluster.suspend(porter)
            moody.add("p")
            await cluster.resume(porter)
            assert (await cluster.show(porter)).state == "Error"
        async with asyncio.timeout(WAIT_S):
            assert await asking == 1


async def _nothing(*_: object) -> None: ...


@pytest.mark.parametrize("state", ["suspended", "paused"])
@pytest.mark.parametrize("asker", ["a client", "an agent"])
@virtually
async def test_the_timeout_of_an_ask_of_an_agent_that_is_stopped_says_so(state: str, asker: str) -> None:
    async with cells.local(settings=cells.Settings(ask_repeat_s=0.1)) as cluster:
        porter, other = await cluster.spawn(Porter, "p"), await cluster.spawn(Porter, "o")
        await (cluster.suspend(porter) if state == "suspended" else cluster.pause(porter))
        said = f"it is {state}, and the message waits until it is resumed"
        if asker == "a client":
            with pytest.raises(cells.AskTimeout, match=said):
                await porter.add.options(timeout=SHORT_S)()
        else:
            with pytest.raises(cells.HandlerFailed, match=said):
                await other.asks(first=porter, timeout=SHORT_S)
        await cluster.resume(porter)
        assert await porter.add() == 2


@virtually
async def test_the_timeout_of_an_ask_whose_node_is_away_says_so() -> None:
    async with nodes("node-1", "node-2") as (client, running):
        porter = await client.on("node-2").spawn(Porter, "p")
        running["node-2"].kill()
        with pytest.raises(cells.AskTimeout, match="its node node-2 does not answer; the message waits"):
            await porter.add.options(timeout=SHORT_S)()
        await client.claim(porter, "node-1")
        assert await porter.add() == 2


@pytest.mark.parametrize("asker", ["a client", "an agent"])
@virtually
async def test_the_timeout_of_an_ask_whose_node_is_frozen_says_so_before_it_ends(
    asker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes("node-1", "node-2") as (client, running):
        porter = await client.on("node-1").spawn(Porter, "p")
        other = await client.on("node-2").spawn(Porter, "o")
        assert await porter.add() == 1
        server = running["node-1"].server
        monkeypatch.setattr(server, "handlers", dict.fromkeys(server.handlers, lambda _: asyncio.Event().wait()))
        running["node-1"].activations.live["p"].inbox.close()
        if asker == "a client":
            with pytest.raises(cells.AskTimeout, match="its node node-1 does not answer"):
                await porter.add.options(timeout=SHORT_S)()
        else:
            with pytest.raises(cells.HandlerFailed, match="its node node-1 does not answer"):
                await other.asks(first=porter, timeout=SHORT_S)


@virtually
async def test_the_timeout_of_an_ask_names_the_handler_that_runs_and_so_does_show(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with cells.local(settings=cells.Settings(pause_s=0.1)) as cluster:
        assert isinstance(cluster, Client)
        porter = await cluster.spawn(Porter, "p")
        long = asyncio.create_task(porter.sleeps(LONG_S))
        async with asyncio.timeout(WAIT_S):
            while not (await cluster.show(porter)).running:
                await asyncio.sleep(0.01)
        with pytest.raises(cells.AskTimeout, match=r"it is in Porter\.sleeps, for \d"):
            await porter.add.options(timeout=SHORT_S)()
        shown = await cluster.show(porter)
        assert shown.running == "sleeps"
        assert shown.running_s > 0
        await look.show.work(Operator(cluster), Printer(False), "p")
        assert "sleeps, for " in capsys.readouterr().out
        assert (await cluster.show(await cluster.spawn(Porter, "idle"))).running == ""
        long.cancel()


@virtually
async def test_the_timeout_of_an_ask_that_waits_for_what_failed_before_it_says_so() -> None:
    settings = cells.Settings(ask_repeat_s=0.1, retry_first_s=LONG_S)
    async with cells.local(settings=settings) as cluster:
        porter = await cluster.spawn(Porter, "p")
        await porter.sleeps.tell(-1)
        said = r"in 0\.4 s: its handler sleeps failed with ValueError: .*, and is run again; what the same sender has sent since waits"
        with pytest.raises(cells.AskTimeout, match=said):
            await porter.add.options(timeout=SHORT_S)()


@pytest.mark.parametrize("ends", ["the ask", "the turn"])
@virtually
async def test_an_agents_ask_that_cannot_be_stored_names_the_cause(ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = cells.Settings(ask_repeat_s=0.1, turn_deadline_s=SHORT_S if ends == "the turn" else LONG_S)
    async with nodes("node-1", settings=settings) as (client, running):
        porter, other = await client.spawn(Porter, "p"), await client.spawn(Porter, "o")
        log = running["node-1"].home.log
        append = log.append

        async def full(subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> object:
            if subject == inbox_subject("p"):
                raise cells.errors.StoreFull("The disk is full.")
            return await append(subject, data, expect, owner)

        monkeypatch.setattr(log, "append", full)
        error = cells.HandlerFailed if ends == "the ask" else cells.errors.TurnDeadlineExceeded
        with pytest.raises(error, match=r"p\.add.*: its inbox does not take it \(StoreFull: The disk is full\)"):
            await other.asks(first=porter, timeout=SHORT_S if ends == "the ask" else LONG_S)


@pytest.mark.parametrize(
    ("error", "of_orders"),
    [
        (cells.errors.StoreReadOnly, cells.errors.StateUnloadable),
        (cells.errors.StoreFull, cells.errors.StoreFull),
    ],
    ids=["read only", "full"],
)
async def test_an_ask_of_an_agent_whose_owner_cannot_write_fails_with_that_cause(
    error: type[cells.errors.CellError], of_orders: type[cells.errors.CellError], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes("node-1", settings=cells.Settings(ask_repeat_s=0.1)) as (client, running), asyncio.timeout(WAIT_S):
        porter = await client.spawn(Porter, "p")
        log = running["node-1"].home.log
        append = log.append

        async def refuses(subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> object:
            if subject == log_subject("p"):
                raise error("Nothing can be written.")
            return await append(subject, data, expect, owner)

        with monkeypatch.context() as patched:
            patched.setattr(log, "append", refuses)
            for _ in range(2):
                with pytest.raises(
                    error, match=r"Agent 'p' .*cannot answer: Nothing can be written.* Your message waits"
                ):
                    await porter.add.options(timeout=LONG_S)()
            with pytest.raises(of_orders, match="Nothing can be written"):
                await client.suspend(porter)
        await client.resume(porter)
        while running["node-1"].activations.live["p"].writer.waits_for is not None:  # it tries again after a while
            await asyncio.sleep(0.01)
        assert await porter.add() == 3, "what waited was taken"


async def test_an_ask_of_an_agent_whose_state_cannot_be_upgraded_fails_with_that_cause() -> None:
    async with deployment(settings=QUICK) as at, asyncio.timeout(WAIT_S):
        good = good_class()
        before = await at.start("node-1", known=having(good))
        agent = await at.client.on("node-1").spawn(good, "l")
        assert await agent.add() == 1  # type: ignore[attr-defined]
        before._close_all()
        before.kill()
        node = await at.start("node-1", known=having(bad_class("its upgrade raises")))
        while "l" not in node.activations.unloadable:
            await asyncio.sleep(0.01)
        with pytest.raises(cells.errors.StateUpgradeFailed, match=r"Agent 'l' cannot answer: .* Your message waits"):
            await agent.add.options(timeout=LONG_S)()  # type: ignore[attr-defined]


async def test_an_ask_of_an_agent_whose_node_does_not_know_its_class_fails_with_that_cause() -> None:
    async with deployment(settings=QUICK) as at, asyncio.timeout(WAIT_S):
        good = good_class()
        before = await at.start("node-1", known=having(good))
        agent = await at.client.on("node-1").spawn(good, "l")
        before._close_all()
        before.kill()
        node = await at.start("node-1", known=having(None))
        porter = await at.client.on("node-1").spawn(Porter, "p")
        while "l" not in node.activations.unloadable:
            await asyncio.sleep(0.01)
        said = r"node-1 does not know the agent class 'Bad'; import its module there\. Your message waits"
        for _ in range(2):
            with pytest.raises(cells.errors.UnknownClass, match=said):
                await agent.add.options(timeout=LONG_S)()  # type: ignore[attr-defined]
            with pytest.raises(cells.errors.UnknownClass, match=said):
                await porter.round([cells.AgentId("l")])


@virtually
async def test_a_hook_beyond_its_deadline_is_named_and_nothing_says_that_its_agent_goes_on() -> None:
    async with cells.local(settings=cells.Settings(turn_deadline_s=0.05)) as cluster:
        with contextlib.suppress(cells.errors.WireTimeout):  # it takes as long as the hook
            await cluster.spawn(Porter, "hangs")
        porter = cluster.get(Porter, "hangs")
        with pytest.raises(
            cells.errors.AgentInError, match=r"Porter\.on_arrive .* deadline of 0\.05 s; .* before the turn\. Your"
        ):
            await porter.add()


# ---- cycles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [["b", "a"], ["b", "c", "a"], ["b", "c", "b"]], ids=" ".join)
async def test_a_cycle_of_asks_is_refused_at_once_and_named(way: list[str]) -> None:
    async with cells.local(nodes=2, settings=cells.Settings(ask_timeout_s=LONG_S)) as cluster:
        a, _, c = [await cluster.spawn(Porter, name) for name in ("a", "b", "c")]
        round_ = ["a", *way]
        named = " -> ".join(round_[round_.index(round_[-1]) :])
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(cells.errors.AskCycle, match=named) as raised:
                await a.round([cells.AgentId(name) for name in way])
        assert raised.value.agents == named.split(" -> ")
        assert (await a.add(), await c.add()) == (1, 1), "all go on"


async def test_a_tell_begins_anew_and_the_same_agent_may_be_asked_twice() -> None:
    async with cells.local() as cluster:
        a, b = await cluster.spawn(Porter, "a"), await cluster.spawn(Porter, "b")
        assert await a.round([cells.AgentId("b")]) == 1
        assert await a.round([cells.AgentId("b")]) == 2
        await b.round([cells.AgentId("a"), cells.AgentId("b")], tells=True)
        async with asyncio.timeout(WAIT_S):
            while await b.add() < 4:
                await asyncio.sleep(0.01)


class DeniedLog(ForwardedLog):
    """Refuses every call once `is_denied`."""

    is_denied = False

    def called(self, what: str, subject: str) -> None:
        if self.is_denied:
            raise PermissionDenied(f"{what} of {subject!r} is denied.", subject=subject)


async def test_a_former_owner_that_the_store_refuses_does_not_answer_for_an_agent_that_runs_elsewhere() -> None:
    """It still reads the inbox, and remembers the agent as being in ERROR (seed 60011954)."""
    async with deployment("node-1", settings=QUICK) as opened:
        log = DeniedLog(opened.substrate.log)
        await opened.start("node-2", log=log)
        moody.add("p")
        await opened.client.on("node-2").spawn(Porter, "p")
        porter = opened.client.get(Porter, "p")
        with pytest.raises(AgentInError):
            await porter.add()
        moody.clear()
        log.is_denied = True
        await Operator(opened.client).claim("p", to="node-1", force=True)
        await opened.client.resume("p")
        for n in range(2, 12):
            assert await opened.client.get(Porter, "p").add() == n
