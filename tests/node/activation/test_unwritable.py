"""What a turn leaves and the log does not take: it comes late, or the agent says that it is in ERROR.  Never is half of it kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from support.moving import nodes

import mielin_cells as cells
from mielin_cells.agents.reference import classes
from mielin_cells.errors import AgentInError
from mielin_cells.node.node import Node
from mielin_cells.settings import RECORD_BYTES_MAX
from mielin_cells.store.reader import load
from mielin_cells.testing.faults import Fault, Faults, FaultyLog, Kind


class Hoarder(cells.Agent):
    pages: cells.Buffer = cells.Buffer()
    count: int = 0

    @cells.handler
    async def keep(self, size: int) -> int:
        self.pages.append(b"x" * size)
        return len(self.pages)

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count


@pytest.mark.parametrize("refused", [1, 3])
async def test_a_large_commit_whose_parts_are_refused_at_first_is_written_when_they_are_taken(refused: int) -> None:
    async with nodes("node-2") as (cluster, running):
        faults = Faults(1, Fault("part", Kind.REFUSE, most=refused))
        log = FaultyLog(cluster.log, faults, "node-1")
        node = running["node-1"] = Node("node-1", log, cluster.wire, classes.get, rng=Random(1), wall=time.time)
        await node.start()
        hoarder = await cluster.on("node-1").spawn(Hoarder, "h")

        large, small = await asyncio.gather(hoarder.keep(2 * RECORD_BYTES_MAX), hoarder.add())

        assert (large, small, await hoarder.add()) == (2 * RECORD_BYTES_MAX, 1, 2)
        assert faults.counts["part", "refuse"] == refused
        (await load(cluster.log, "h")).verify()
        assert (await cluster.migrate(hoarder, to="node-2")).ok
        assert await hoarder.keep(0) == 2 * RECORD_BYTES_MAX


class Odd(str):
    """Text that has no encoding, as nothing should be that comes to a commit."""

    __slots__ = ()


spoils: list[str] = []
"""What the next run of `Brittle.spoil` slips past all checks."""


class Brittle(cells.Agent):
    count: int = 0

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count

    @cells.handler
    async def spoil(self, other: Hoarder) -> int:
        turn: Any = cells.this()
        self.count += 10
        what = spoils.pop() if spoils else ""
        if what == "commit":
            turn._core.batch.forgot.append(Odd())
        elif what:
            turn.sender = Odd(turn.sender)
        if what == "ask":
            await other.add()
        elif what == "step":
            await cells.step("one", int)
        return self.count


@pytest.mark.parametrize("what", ["commit", "ask", "step"])
async def test_a_record_that_cannot_be_encoded_puts_its_agent_into_error_and_a_resume_runs_the_message_again(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes("node-1", "node-2") as (cluster, running):
        brittle = await cluster.on("node-1").spawn(Brittle, "b")
        hoarder = await cluster.on("node-2").spawn(Hoarder, "h")
        assert await brittle.add() == 1
        spoils.append(what)

        spoiled = asyncio.create_task(brittle.spoil(hoarder))
        async with asyncio.timeout(30):
            while (info := await cluster.show(brittle)).state != "Error" or "b" not in running[
                "node-1"
            ].activations.live:
                await asyncio.sleep(0)

        assert info.code == "InternalError"
        assert "cannot be stored: TypeError: Encoding objects of type Odd is unsupported" in info.error
        assert caplog.text.count("agent b is in ERROR") == 1
        with pytest.raises(AgentInError, match="cannot be stored"):  # who asked is not kept waiting; the message is
            await spoiled
        await cluster.resume(brittle)
        assert await brittle.add() == 12
        assert await hoarder.add() == 1  # a number that was not sent is no hole
        fold = await load(cluster.log, "b")
        fold.verify()
        assert not fold.ledger.dead


class Formless(cells.CellError):
    """Its author has forgotten that the base has an `__init__`."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Numbered(cells.CellError):
    code = 5  # type: ignore[assignment]  # of an author who checks no types


class Unlisted(cells.UsageError):
    def to_wire(self) -> tuple[str, str, dict[str, Any]]:
        return "Unlisted", "x", {"facts": {1: [object()]}}


class Undecoded(cells.UsageError):
    def to_wire(self) -> tuple[str, str, dict[str, Any]]:
        return "Undecoded", "x", {"facts": {1: 2}}


class Mumbled(str):
    __slots__ = ()

    def __format__(self, spec: str) -> str:
        raise RuntimeError("no format")


class Mumbling(Exception):
    def __str__(self) -> str:
        return Mumbled("hm")


ERRORS: list[Callable[[], Exception]] = [
    lambda: Formless("why"),
    lambda: Numbered("x"),
    lambda: Unlisted("x"),
    lambda: Undecoded("x"),
    lambda: cells.CellError("x", fact=["y" * 4000] * 200),
    Mumbling,
]


class Raiser(cells.Agent):
    count: int = 0

    @cells.handler(tries=1)
    async def fail(self, which: int) -> None:
        self.count += 100
        raise ERRORS[which]()

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count


@pytest.mark.parametrize("which", range(len(ERRORS)))
async def test_an_error_that_cannot_be_sent_as_its_class_says_is_told_as_a_handlers_failure(which: int) -> None:
    async with cells.local() as cluster:
        raiser = await cluster.spawn(Raiser, "r")

        with pytest.raises(cells.HandlerFailed, match=type(ERRORS[which]()).__name__):
            await raiser.fail.options(timeout=10)(which)
        await raiser.fail.tell(which)

        assert await raiser.add() == 1
        assert len((await load(cluster.log, "r")).ledger.dead) == 1  # type: ignore[attr-defined]


class Word(str):
    """Text of a class of the user's: equal to what it says, and of no type that a record takes."""

    __slots__ = ()


ORDERS: list[Callable[[], object]] = [
    lambda: cells.this().migrate(5),  # type: ignore[arg-type]  # here and below: of authors who check no types
    lambda: cells.this().migrate("\ud800"),
    lambda: cells.this().migrate(Word("node-9")),
    lambda: cells.every(1000, id="e", catch_up=Word("all")).add(),  # type: ignore[call-overload]
]


class Worded(cells.Agent, name=Word("Wording")):
    count: int = 0

    @cells.handler(tries=1)
    async def order(self, which: int) -> None:
        self.count += 10
        ORDERS[which]()

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count


@pytest.mark.parametrize(("which", "refused"), [(0, True), (1, True), (2, False), (3, False)])
async def test_an_order_of_an_odd_type_is_refused_in_its_turn_or_taken_as_what_it_says(
    which: int, refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes("node-1") as (cluster, _):
        worded = await cluster.spawn(Worded, "w")
        if refused:
            with pytest.raises(cells.UsageError, match="not a valid node name"):
                await worded.order(which)
        else:
            await worded.order(which)

        assert await worded.add() == (1 if refused else 11)
        timers = (await load(cluster.log, "w")).ledger.timers
        assert [type(timer.catch_up) for timer in timers.values()] == ([str] if which == 3 else [])
    assert "a task failed" not in caplog.text


@pytest.mark.parametrize("tries", [0, -1, 2.5, "3", True, float("nan")])
def test_a_number_of_tries_that_cannot_be_is_refused_with_the_class(tries: Any) -> None:
    with pytest.raises(cells.FieldRefused, match=r"Retrying\.add: tries = .* is not a whole number from 1"):

        class Retrying(cells.Agent):
            @cells.handler(tries=tries)
            async def add(self) -> None: ...
