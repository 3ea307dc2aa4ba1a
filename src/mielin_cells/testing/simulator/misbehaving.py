"""Agents of a simulated world that do what no agent should: they raise, hang, ignore cancellations and leave tasks behind.

And what few do: they hold tables, buffers and more state than a record takes, set timers that repeat, and end themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from random import Random
from typing import cast

import mielin_cells as cells
from mielin_cells.agents.reference import classes

BLOB_BYTES = 80 * 1024
"""More than a snapshot holds in itself: the rest is in parts."""

NAP_S = 3.0
TICK_S = 2.0

CALLS = {
    "mark": 3.0, "refuse": 2.0, "stubborn": 1.0, "litter": 1.0, "grow": 0.3, "begin": 0.7, "end": 0.7, "rest": 0.3, "stop": 0.3,
    "hang": 0.3, "quit": 0.1,
}  # fmt: skip
"""What clients call, and how often."""

_moods: dict[asyncio.AbstractEventLoop, Moods] = {}
"""One for each simulated world."""


class Refused(Exception):
    """What a handler of these raises."""


class Moods:
    """Of a world: how its hooks behave."""

    def __init__(self, rng: Random, raises: float, slow_s: float, children: float = 0.0) -> None:
        self.children = children
        """How likely the hook of a child raises."""
        self.raises = raises
        """How likely a hook raises."""
        self.slow_s = slow_s
        """How long one takes at most."""
        self.raised = 0
        """How often one has raised."""
        self._rng = rng
        _moods[asyncio.get_running_loop()] = self

    def calm(self) -> None:
        self.raises = self.children = self.slow_s = 0.0

    async def arrive(self, is_child: bool = False) -> None:
        if self.slow_s:
            await asyncio.sleep(self.slow_s * self._rng.random())
        if self._rng.random() < (self.children if is_child else self.raises):
            self.raised += 1
            raise Refused("this hook raises now and then")


async def arrive(is_child: bool = False) -> None:
    await _moods[asyncio.get_running_loop()].arrive(is_child)


def close() -> None:
    """Lets the world go."""
    _moods.pop(asyncio.get_running_loop(), None)


class OddBefore(cells.Agent, name="SimOdd"):
    """As nodes have it that run the older code."""

    heard: list[tuple[str, int]] = []  # noqa: RUF012 - a mutable default is copied for each agent
    marks: cells.Table[str, int]
    """By sender, the number heard last."""
    book: cells.Buffer
    """A line for each message heard."""
    blob: cells.Buffer
    ticks: int = 0
    stray: int = 0
    """Changed by nobody but a task that was left behind, whose change must have no effect."""

    async def on_arrive(self) -> None:
        await _moods[asyncio.get_running_loop()].arrive()

    def _heard(self, sender: str, n: int) -> int:
        self.heard.append((sender, n))
        self.marks[sender] = n
        self.book.append(line(sender, n))
        return len(self.heard)

    @cells.handler
    async def mark(self, sender: str, n: int) -> int:
        return self._heard(sender, n)

    @cells.handler(tries=3)
    async def refuse(self, sender: str, n: int) -> int:
        """Changes everything, sets a timer, and raises."""
        self._heard(sender, n)
        self.blob.append(b"refused")
        cells.after(0.1, id=f"{sender} {n}").tick()
        raise Refused("as it always does")

    @cells.handler
    async def hang(self, sender: str, n: int) -> int:
        self._heard(sender, n)
        await asyncio.get_running_loop().create_future()
        return 0

    @cells.handler
    async def stubborn(self, sender: str, n: int) -> int:
        """Goes on when it is cancelled, for a while."""
        until = asyncio.get_running_loop().time() + NAP_S
        while (left := until - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                continue
        return self._heard(sender, n)

    @cells.handler
    async def litter(self, sender: str, n: int) -> int:
        """Leaves a task behind that changes the agent after the turn."""
        _tasks.add(task := asyncio.get_running_loop().create_task(self._stray()))
        task.add_done_callback(_swept)
        return self._heard(sender, n)

    async def _stray(self) -> None:
        await asyncio.sleep(0.5)
        self.stray += 1

    @cells.handler
    async def grow(self, sender: str, n: int) -> int:
        self.blob.append((b"%d " % n * BLOB_BYTES)[:BLOB_BYTES])
        return self._heard(sender, n)

    @cells.handler
    async def begin(self, sender: str, n: int) -> int:
        cells.every(TICK_S, id="tick").tick()
        return self._heard(sender, n)

    @cells.handler
    async def end(self, sender: str, n: int) -> int:
        cells.cancel("tick")
        return self._heard(sender, n)

    @cells.handler
    async def hush(self) -> None:
        """It is to come to rest."""
        cells.cancel("tick")

    @cells.handler
    async def tick(self) -> None:
        self.ticks += 1

    @cells.handler
    async def rest(self, sender: str, n: int) -> int:
        cells.this().suspend("it is tired")
        return self._heard(sender, n)

    @cells.handler
    async def stop(self, sender: str, n: int) -> int:
        cells.this().pause("it is tired")
        return self._heard(sender, n)

    @cells.handler
    async def quit(self, sender: str, n: int) -> int:
        cells.this().terminate()
        return self._heard(sender, n)

    @cells.handler
    async def show(self) -> tuple[list[tuple[str, int]], dict[str, int], bytes, int, int]:
        return self.heard, dict(self.marks.items()), bytes(self.book), len(self.blob), self.stray


_ = classes.pop(
    "SimOdd"
)  # by this name there is one class in a process; a world has nodes with the one, and with the other


class Odd(OddBefore, name="SimOdd", version=2):
    """As nodes have it that run the newer code, and as clients do."""

    level: int = 0

    @cells.upgrade(from_version=1)
    def to_2(self, old: dict[str, object]) -> dict[str, object]:
        return {**old, "level": len(cast("list[object]", old["heard"]))}


def classes_of(is_old: bool) -> Callable[[str], type[cells.Agent] | None]:
    """What a node knows by name."""
    return (lambda name: OddBefore if name == "SimOdd" else classes.get(name)) if is_old else classes.get


def versions_of(is_old: bool, told: Collection[type[cells.Agent]]) -> dict[str, int]:
    """What such a node says of the classes that it knows: of those that are `told`, or of all that this process has."""
    known = classes_of(is_old)
    names = sorted({cls.__mielin_name__ for cls in told} or classes)
    return {name: cls.__mielin_version__ for name in names if (cls := known(name)) is not None}


_tasks: set[asyncio.Task[None]] = set()


def _swept(task: asyncio.Task[None]) -> None:
    _tasks.discard(task)
    if not task.cancelled():
        task.exception()  # it was refused, as it should be


def line(sender: str, n: int) -> bytes:
    """Of the book."""
    return f"{sender} {n}\n".encode()
