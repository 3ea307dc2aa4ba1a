"""Edges of turns, hooks and orders: cancelled asks, hooks that fail at the worst moment, orders while an agent leaves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

import mielin_cells as cells
from mielin_cells.node.moves import source
from mielin_cells.store.reader import load

WAIT_S = 60.0


class Listener(cells.Agent):
    heard: list[str] = []

    @cells.handler
    async def hear(self, words: str) -> str:
        self.heard.append(words)
        return f"echo {words}"

    @cells.handler
    async def all(self) -> list[str]:
        return self.heard


class Racer(cells.Agent):
    count: int = 0

    @cells.handler
    async def race(self, first: Listener, second: Listener) -> str:
        asks = [asyncio.ensure_future(first.hear("race")), asyncio.ensure_future(second.hear("race"))]
        done, pending = await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
        for ask in pending:
            ask.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return done.pop().result()

    @cells.handler
    async def tell(self, to: Listener, words: str) -> None:
        await to.hear.tell(words)

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count

    @cells.handler
    async def slow(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @cells.handler
    async def full(self) -> None:
        runs.append(1)
        raise cells.InboxFull("downstream is full")


runs: list[int] = []


async def until_heard(listener: Listener, wanted: int) -> list[str]:
    async with asyncio.timeout(WAIT_S):
        while len(heard := await listener.all()) < wanted:
            await asyncio.sleep(0.01)
    return heard


async def test_an_ask_that_its_handler_cancels_is_delivered_and_no_number_is_missing() -> None:
    async with cells.local(nodes=2) as cluster:
        first, second = await cluster.spawn(Listener, "first"), await cluster.spawn(Listener, "second")
        racer = await cluster.spawn(Racer, "racer")
        assert await racer.race(first, second) == "echo race"
        for n in range(3):
            await racer.tell(first, f"tell {n}")
            await racer.tell(second, f"tell {n}")
        assert await until_heard(first, 4) == ["race", "tell 0", "tell 1", "tell 2"]
        assert await until_heard(second, 4) == ["race", "tell 0", "tell 1", "tell 2"]
        assert (await cluster.migrate(racer)).ok
        await racer.tell(second, "behind")
        assert await until_heard(second, 5) == ["race", "tell 0", "tell 1", "tell 2", "behind"]


async def test_a_move_that_is_cancelled_while_the_source_is_slowed_leaves_the_agent_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, real = asyncio.Event(), source.Move._slow_down

    async def slowed(move: source.Move) -> None:
        entered.set()
        await real(move)

    monkeypatch.setattr(source.Move, "_slow_down", slowed)
    monkeypatch.setattr(source, "SLOWED_S", WAIT_S)
    settings = cells.Settings(copy_rounds=2, copy_lag_records=1, copy_lag_bytes=1)
    async with cells.local(nodes=2, settings=settings) as cluster:
        racer = await cluster.spawn(Racer, "racer")
        going = True

        async def load_it() -> None:
            while going:
                await racer.add()

        loads = [asyncio.create_task(load_it()) for _ in range(20)]
        async with asyncio.timeout(WAIT_S):
            moving = asyncio.create_task(cluster.migrate(racer))
            slow = asyncio.create_task(entered.wait())
            while not entered.is_set():
                await asyncio.wait((moving, slow), return_when=asyncio.FIRST_COMPLETED)
                if moving.done() and not entered.is_set():  # it converged at once: again
                    moving = asyncio.create_task(cluster.migrate(racer))
            await slow
            await asyncio.sleep(0.02)
            await cluster.abort(racer)
            report = await moving
            assert (report.outcome, report.code) == ("rolled_back", "Cancelled")
            assert await racer.add() > 0
            going = False
            await asyncio.gather(*loads)


async def test_an_error_of_the_handlers_own_is_its_answer_also_if_it_means_retry() -> None:
    async with cells.local() as cluster:
        racer = await cluster.spawn(Racer, "racer")
        runs.clear()
        with pytest.raises(cells.HandlerFailed, match="InboxFull"):
            await racer.full()
        assert len(runs) == 1
        assert (await cluster.show(racer)).dead == 0
        assert await racer.add() == 1


async def test_suspend_waits_for_a_move_and_then_reaches_the_new_owner() -> None:
    async with cells.local(nodes=2) as cluster:
        racer = await cluster.spawn(Racer, "racer")
        busy = asyncio.create_task(racer.slow(0.2))
        async with asyncio.timeout(WAIT_S):
            while not (await cluster.show(racer)).waiting:
                await asyncio.sleep(0)
            moving = asyncio.create_task(cluster.migrate(racer, to="node-2"))
            while not (await cluster.show(racer)).migration:
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            await cluster.suspend(racer)
            await moving
            await busy
        shown = await cluster.show(racer)
        assert shown.state == "Suspended"


async def test_a_claim_of_nobody_says_so_at_once() -> None:
    async with cells.local(nodes=2) as cluster:
        with pytest.raises(cells.NoSuchAgent):
            await cluster.claim("nobody", to="node-2")


# ---- hooks ---------------------------------------------------------------------------------------------------


class Beginner(cells.Agent):
    begun: int = 0
    arrived: int = 0

    async def on_arrive(self) -> None:
        self.arrived += 1

    async def on_start(self) -> None:
        if os.environ.get("MIELIN_TEST_DIES"):
            await asyncio.sleep(0.05)
            os._exit(9)
        if trouble:
            raise ValueError(trouble[0])
        self.begun += 1

    async def on_depart(self) -> None:
        departed.append(cells.this().node)
        if trouble:
            raise ValueError(trouble[0])

    async def on_stop(self) -> None:
        if trouble:
            raise ValueError(trouble[0])

    @cells.handler
    async def get(self) -> int:
        return self.begun


trouble: list[str] = []
departed: list[str] = []


@pytest.fixture(autouse=True)
def _no_trouble() -> None:
    trouble.clear()
    departed.clear()


async def test_on_start_that_raised_is_run_again_by_resume_and_takes_effect_once() -> None:
    async with cells.local(nodes=2) as cluster:
        trouble.append("not yet")
        beginner = await cluster.spawn(Beginner, "b")
        assert (await cluster.show(beginner)).state == "Error"
        await cluster.resume(beginner)
        assert (await cluster.show(beginner)).state == "Error"
        trouble.clear()
        await cluster.resume(beginner)
        assert await beginner.get() == 1
        await cluster.claim(beginner, to="node-2")
        assert await beginner.get() == 1


def test_on_start_takes_effect_once_though_its_process_died_in_it(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\nimport mielin_cells as cells\nfrom test_edges import Beginner\n"
        "async def main():\n"
        "    async with cells.local(path=sys.argv[1]) as cluster:\n"
        "        print(await (await cluster.spawn(Beginner, 'b')).get())\n"
        "asyncio.run(main())\n"
    )
    for dies, wanted in (("1", (9, "")), ("", (0, "1\n")), ("", (0, "1\n"))):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "store.db")],
            env={**os.environ, "MIELIN_TEST_DIES": dies, "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{ROOT / 'tests'}"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == wanted, done.stderr


async def test_on_depart_that_raises_does_not_keep_nodes_from_stopping(tmp_path: Path) -> None:
    for wanted in (["node-1", "node-2"], ["node-1", "node-2"] * 2):
        trouble.clear()
        async with cells.local(nodes=2, path=tmp_path / "store.db") as cluster:
            await cluster.on("node-1").spawn(Beginner, "one")
            await cluster.on("node-2").spawn(Beginner, "two")
            trouble.append("no")
        assert sorted(departed) == sorted(wanted)


async def test_an_agent_whose_on_stop_raises_is_in_error_and_can_be_terminated() -> None:
    async with cells.local() as cluster:
        beginner = await cluster.spawn(Beginner, "b")
        trouble.append("no")
        with pytest.raises(cells.HandlerFailed, match="on_stop"):
            await cluster.terminate(beginner)
        assert (await cluster.show(beginner)).state == "Error"
        await cluster.terminate(beginner)
        assert (await load(cluster.log, "b")).phase.value == "terminated"  # type: ignore[attr-defined]


# ---- state that does not load --------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped_by", ["", "suspend", "pause"])
async def test_an_agent_whose_state_does_not_load_is_in_error_with_the_reason_and_resume_tries_again(
    tmp_path: Path, stopped_by: str
) -> None:
    path = tmp_path / "store.db"

    def made(kind: type) -> type[cells.Agent]:
        class Ledger(cells.Agent, name="EdgeLedger"):
            __annotations__ = {"total": kind}
            total = kind()

            @cells.handler
            async def get(self) -> str:
                return str(self.total)

        return Ledger

    async with cells.local(path=path) as cluster:
        assert await (await cluster.spawn(made(str), "l")).get() == ""  # type: ignore[attr-defined]
        if stopped_by:  # its log still says so when it loads again, and it is resumed all the same
            await getattr(cluster, stopped_by)("l")
    other = made(int)
    async with cells.local(path=path) as cluster:
        shown = await cluster.show("l")
        assert (shown.state, [info.id for info in await cluster.agents()]) == ("Error", ["l"])
        assert "total" in shown.error
        for order in (cluster.resume, cluster.suspend, cluster.terminate):
            with pytest.raises(cells.errors.StateUnloadable, match="total"):
                await order("l")
        mended = made(str)
        await cluster.resume("l")
        assert (await cluster.show("l")).state == "Running"
        assert await cluster.get(mended, "l").get() == ""  # type: ignore[attr-defined]
    del other


# ---- labels of calls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "5", True], ids=repr)
async def test_a_time_that_nobody_can_wait_is_refused_before_the_call(seconds: Any) -> None:
    async with cells.local() as cluster:
        racer = await cluster.spawn(Racer, "r")
        with pytest.raises(cells.UsageError, match="cannot be; give seconds above 0"):
            racer.add.options(timeout=seconds)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def _with_facts() -> cells.CellError:
    return cells.CellError("a fact", **{"\ud800": 1})


FAILURES: list[Callable[[], Exception]] = [lambda: ValueError("\ud800"), Unspeakable, _with_facts]
hooks: dict[str, Callable[[], Exception]] = {}


class Sullen(cells.Agent):
    count: int = 0

    async def on_arrive(self) -> None:
        if "on_arrive" in hooks:
            raise hooks["on_arrive"]()

    async def on_start(self) -> None:
        if "on_start" in hooks:
            raise hooks["on_start"]()

    @cells.handler(tries=1)
    async def fail(self, which: int) -> None:
        raise FAILURES[which]()

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count


@pytest.mark.parametrize("which", range(len(FAILURES)))
async def test_an_exception_that_no_record_takes_as_it_is_fails_as_any_other(which: int) -> None:
    async with cells.local() as cluster:
        moody = await cluster.spawn(Sullen, "m")
        with pytest.raises(cells.CellError):
            await moody.fail(which)
        assert await moody.add() == 1
        for hook in ("on_arrive", "on_start"):
            hooks[hook] = FAILURES[which]
            try:
                broken = await cluster.spawn(Sullen, hook)
                assert (await cluster.show(broken)).state == "Error"
            finally:
                hooks.clear()
            await cluster.resume(broken)
            assert await broken.add() == 1


class Labels(cells.Agent):
    @cells.handler(tries=1)
    async def call(self, other: Racer, label: int) -> int:
        return await other.add.options(id=LABELS[label])()


LABELS: list[Any] = ["", "\ud800", "x" * 129, "a\nb", 5]


async def test_a_label_that_no_log_takes_fails_its_turn_and_not_the_agent() -> None:
    async with cells.local() as cluster:
        racer, labels = await cluster.spawn(Racer, "r"), await cluster.spawn(Labels, "l")
        for label in range(len(LABELS)):
            with pytest.raises(cells.UsageError, match="a label that is not allowed"):
                await labels.call(racer, label)
            await labels.call.tell(racer, label)
            with pytest.raises(cells.UsageError, match="a label that is not allowed"):
                await labels.call(racer, label)
        causes = [letter.cause for letter in (await load(cluster.log, "l")).ledger.dead]  # type: ignore[attr-defined]
        assert [cause.startswith("UsageError") for cause in causes] == [True] * len(LABELS)
        assert await racer.add() == 1


class Caller(cells.Agent):
    @cells.handler(tries=1)
    async def call(self, other: Racer) -> None:
        await other.add.options(id="order 66")()
        raise ValueError("no")


async def test_the_label_of_a_call_is_in_its_errors() -> None:
    async with cells.local() as cluster:
        racer, caller = await cluster.spawn(Racer, "r"), await cluster.spawn(Caller, "c")
        await cluster.suspend(racer)
        with pytest.raises(cells.AskTimeout, match="order 66") as raised:
            await racer.add.options(timeout=0.05, id="order 66")()
        assert raised.value.facts["id"] == "order 66"
        await cluster.resume(racer)
        await caller.call.tell(racer)
        with pytest.raises(cells.HandlerFailed):
            await caller.call(racer)
        [letter] = (await load(cluster.log, "c")).ledger.dead  # type: ignore[attr-defined]
        assert letter.asks == ["r.add (order 66)"]
