"""Cancels: a call that nobody waits for any more, or that an operator cancels, has no effect unless it has had one (rule T4)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from support.nats_servers import nats_server, opened
from support.nodes import ONCE, Deployment, deployment

import mielin_cells as cells
from mielin_cells.agents.context import current
from mielin_cells.client.stream import CallName
from mielin_cells.errors import Cancelled, UsageError
from mielin_cells.log.commit import Input
from mielin_cells.log.inboxes.cancels import CANCELLED
from mielin_cells.log.records import Committed, decode_record
from mielin_cells.store.reader import load

gates: dict[str, asyncio.Event] = {}
seen: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    gates.clear()
    seen.clear()


def gate(name: str) -> asyncio.Event:
    return gates.setdefault(name, asyncio.Event())


async def paid(name: str) -> str:
    """A step's call: it is under way until its gate is open."""
    gate(f"{name} began").set()
    await gate(name).wait()
    seen.append(name)
    return name


async def refused() -> None:
    seen.append("tried")
    gate("tried").set()
    raise OSError("no")


class Job(cells.Agent, name="CancelJob"):
    done: list[str] = []

    @cells.handler
    async def say(self, what: str) -> int:
        self.done.append(what)
        return len(self.done)

    @cells.handler
    async def hang(self, what: str) -> None:
        self.done.append(what)
        gate(what).set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(f"{what} cancelled")
            raise

    @cells.handler
    async def stubborn(self, what: str) -> str:
        """Catches its cancellation, and returns."""
        self.done.append(what)
        gate(what).set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return what

    @cells.handler
    async def pay_twice(self) -> None:
        self.done.append("paying")
        await cells.step("first", paid, "first")
        seen.append("went on")
        await cells.step("second", paid, "second")

    @cells.handler
    async def pay_both(self) -> None:
        await asyncio.gather(cells.step("first", paid, "first"), cells.step("second", paid, "second"))
        await cells.step("third", paid, "third")

    @cells.handler
    async def pay_in_vain(self) -> None:
        await cells.step("in vain", refused, retry=cells.Retry(tries=9, first_s=300.0))

    @cells.handler
    async def pass_on(self, to: Job, what: str) -> None:
        self.done.append("passing on")
        await to.hang(what)

    @cells.handler
    async def pass_on_for(self, to: Job, what: str, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await to.hang(what)
        self.done.append("went on")

    @cells.handler(tries=50)
    async def fuss(self) -> None:
        gate("fussed").set()
        raise ValueError("no")

    @cells.handler
    async def all(self) -> list[str]:
        return self.done


async def begun(call: Awaitable[object], name: str) -> asyncio.Task[object]:
    """The call, once its handler has opened the gate."""
    task = asyncio.ensure_future(call)
    await gate(name).wait()
    return task


async def cancelled(task: asyncio.Task[object]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_true():
            await asyncio.sleep(0.005)


async def inputs(at: Deployment, agent: str) -> list[Input]:
    records = [decode_record(entry.data, "a log") for entry in await at.client.log.read(f"log.{agent}")]
    return [one for record in records if isinstance(record, Committed) for one in record.commit.inputs]


async def unrun(at: Deployment, agent: str) -> list[str]:
    return [one.unrun for one in await inputs(at, agent) if one.unrun]


async def story_of_a_cancelled_task(at: Deployment) -> None:
    job = await at.client.spawn(Job, "j")
    await cancelled(await begun(job.hang("a"), "a"))
    await until(lambda: seen == ["a cancelled"])
    assert await job.all() == []
    assert await unrun(at, "j") == [CANCELLED]


async def test_cancelling_the_task_that_awaits_an_ask_reaches_the_handler_and_its_turn_has_no_effect() -> None:
    async with deployment("node-1") as at:
        await story_of_a_cancelled_task(at)


async def test_the_same_on_a_real_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("nats")
    async with nats_server(folder) as server, opened(server.url, deployment="cancelled") as substrate:
        at = Deployment(substrate, None, ONCE)
        await at.client.open()
        token = current.set(at.client)
        try:
            await at.start("node-1")
            await story_of_a_cancelled_task(at)
            other, job = await at.client.spawn(Job, "o"), at.client.get(Job, "j")
            await cancelled(await begun(job.pass_on(other, "n"), "n"))
            await until(lambda: "n cancelled" in seen)
            assert await other.all() == await job.all() == []
        finally:
            current.reset(token)
            for node in at.nodes.values():
                await node.stop()
            await at.client.close()


async def test_leaving_a_timeout_cancels_the_ask() -> None:
    async with deployment("node-1") as at:
        job = await at.client.spawn(Job, "j")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await job.hang("a")
        await job.say("b")
        assert await job.all() == ["b"]


async def test_a_message_that_waits_does_not_run() -> None:
    async with deployment("node-1") as at:
        job = await at.client.spawn(Job, "j")
        first = await begun(job.hang("a"), "a")
        waits = asyncio.ensure_future(job.say("waits"))
        await until(lambda: at.nodes["node-1"].activations.live["j"].inbox.waiting == 2)
        await cancelled(waits)
        await until(lambda: at.nodes["node-1"].activations.live["j"].inbox.waiting_in_all == 3)
        await cancelled(first)
        assert await job.say("later") == 1
        assert await unrun(at, "j") == [CANCELLED, CANCELLED]


async def test_a_cancel_that_comes_before_its_message_is_kept_until_that_comes() -> None:
    """T4a of the models."""
    async with deployment("node-1", "node-2") as at:
        job = await at.client.on("node-1").spawn(Job, "j")
        await job.say("known")
        sender = at.client.session("j").sender
        await at.client.cancel("j", str(CallName(sender, 2)))
        activation = at.nodes["node-1"].activations.live["j"]
        await until(lambda: activation.fold.ledger.cancels is not None and activation.is_idle)
        at.kill("node-1")
        await at.client.claim("j", to="node-2")  # the ledger has it
        with pytest.raises(Cancelled, match=r"CancelJob\.say of agent 'j' was cancelled"):
            await job.say("cancelled")
        assert await job.say("third") == 2
        assert (await load(at.client.log, "j")).ledger.cancels.kept == {}  # type: ignore[union-attr]


async def test_a_cancel_of_what_has_taken_effect_changes_nothing() -> None:
    async with deployment("node-1") as at:
        job = await at.client.spawn(Job, "j")
        await job.say("a")
        sender = at.client.session("j").sender
        for _ in range(3):
            await at.client.cancel(job, str(CallName(sender, 1)))
        assert await job.say("b") == 2
        ledger = (await load(at.client.log, "j")).ledger
        assert ledger.cancels is None
        assert await unrun(at, "j") == []


async def test_an_operator_cancels_a_call_of_somebody_else_who_is_told() -> None:
    async with deployment("node-1") as at:
        job = await at.client.spawn(Job, "j")
        task = await begun(job.hang("a"), "a")
        await at.client.cancel("j", str(CallName(at.client.session("j").sender, 1)))
        with pytest.raises(Cancelled):
            await task
        with pytest.raises(UsageError, match="is no id of a call"):
            await at.client.cancel("j", "nonsense")


async def test_what_a_cancelled_handler_returns_is_ignored() -> None:
    async with deployment("node-1") as at:
        job = await at.client.spawn(Job, "j")
        task = await begun(job.stubborn("a"), "a")
        await at.client.cancel("j", str(CallName(at.client.session("j").sender, 1)))
        with pytest.raises(Cancelled):
            await task
        assert await job.all() == []


@pytest.mark.parametrize("handler", ["pay_twice", "pay_both"])
async def test_a_call_of_a_step_that_is_under_way_ends_and_is_recorded_and_no_further_one_is_made(handler: str) -> None:
    async with deployment("node-1") as at:
        job = await at.client.spawn(Job, "j")
        task = await begun(getattr(job, handler)(), "first began")
        runner = at.nodes["node-1"].activations.live["j"].runner
        await cancelled(task)
        await until(lambda: runner.turn is not None and runner.turn.cancels is not None)
        gate("first").set()
        gate("second").set()
        assert await job.say("next") == 1
        assert seen == (["first"] if handler == "pay_twice" else ["first", "second"])
        steps = [decode_record(entry.data, "a log") for entry in await at.client.log.read("log.j")]
        assert [type(record).__name__ for record in steps].count("Stepped") >= 1
        assert await unrun(at, "j") == [CANCELLED]


async def test_a_wait_between_two_calls_of_a_step_ends() -> None:
    async with deployment("node-1") as at:
        job = await at.client.spawn(Job, "j")
        await cancelled(await begun(job.pay_in_vain(), "tried"))
        assert await job.say("next") == 1
        assert seen == ["tried"]


async def test_a_message_that_waits_to_be_run_again_is_taken_at_once() -> None:
    async with deployment("node-1", settings=cells.Settings(retry_first_s=300.0)) as at:
        job = await at.client.spawn(Job, "j")
        task = await begun(job.fuss(), "fussed")
        delays = at.nodes["node-1"].activations.live["j"].intake.delays
        await until(lambda: bool(delays.senders))
        await cancelled(task)
        await until(lambda: not delays.senders)
        assert await job.say("next") == 1


async def test_asks_of_a_cancelled_turn_are_cancelled_by_its_commit() -> None:
    async with deployment("node-1") as at:
        first, second, third = [await at.client.spawn(Job, name) for name in "abc"]
        await cancelled(await begun(first.pass_on(second, "x"), "x"))
        await until(lambda: seen == ["x cancelled"])
        assert await third.say("c") == 1
        assert await first.all() == await second.all() == []
        assert await unrun(at, "b") == [CANCELLED]


async def test_the_next_owner_cancels_the_asks_that_the_log_shows() -> None:
    """T4c of the models: the owner that asked is dead, and the next one takes the message without a run."""
    async with deployment("node-1", "node-2") as at:
        first, second = await at.client.on("node-1").spawn(Job, "a"), await at.client.on("node-2").spawn(Job, "b")
        task = await begun(first.pass_on(second, "x"), "x")
        at.kill("node-1")
        await cancelled(task)
        await until(lambda: not at.client._tasks)
        await at.client.claim("a", to="node-2")
        await until(lambda: seen == ["x cancelled"])
        assert await first.say("next") == 1


async def test_an_ask_inside_a_turn_that_is_not_waited_for_is_cancelled_by_the_turns_commit() -> None:
    async with deployment("node-1") as at:
        first, second = await at.client.spawn(Job, "a"), await at.client.spawn(Job, "b")
        await first.pass_on_for(second, "x", 0.05)
        await until(lambda: seen == ["x cancelled"])
        assert await first.all() == ["went on"]
        assert await second.all() == []


async def test_after_an_undo_what_ran_runs_again_and_what_was_cancelled_does_not() -> None:
    async with deployment("node-1", "node-2") as at:
        job = await at.client.on("node-1").spawn(Job, "j")
        report = await at.client.migrate("j", to="node-2")
        await job.say("ran")
        await cancelled(await begun(job.hang("a"), "a"))
        await until(lambda: seen == ["a cancelled"])
        await job.say("ran too")
        sender = at.client.session("j").sender
        await at.client.cancel("j", str(CallName(sender, 1)))
        assert await job.all() == ["ran", "ran too"]
        await at.client.rollback(report.migration)
        assert await job.all() == ["ran", "ran too"]
        assert seen == ["a cancelled"]
