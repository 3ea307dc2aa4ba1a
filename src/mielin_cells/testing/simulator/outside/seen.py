"""One process's view of a stream that another system writes: reads come late, from a replica that is behind, or not at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from mielin_cells.log.topics.outside import Extent, Foreign
from mielin_cells.substrate.patterns import Watch
from mielin_cells.substrate.ports import Subscription
from mielin_cells.testing.checkers.outside.stream import ForeignStream
from mielin_cells.testing.simulator.engine import Engine

HEARD = "outside."
"""Before the subjects of such streams, among those that are watched."""

Look = Callable[[str, str, Callable[[], Any]], Awaitable[Any]]
"""A call that reads (`View._look`)."""


class Process(Protocol):
    """What is needed of the process that looks."""

    world: Engine

    @property
    def label(self) -> str: ...
    def watch(self, pattern: str, wake: Callable[[], None]) -> Watch: ...


class SeenStream:
    """`Outside` as one process has it."""

    def __init__(self, foreign: ForeignStream, process: Process, look: Look) -> None:
        self._foreign = foreign
        self._process = process
        self._look = look

    async def extent(self, stream: str) -> Extent:
        extent: Extent = await self._look("outside extent", stream, lambda: self._foreign.extent(stream))
        return extent

    async def read(
        self, stream: str, pattern: str, after: int, limit: int, *, is_settled: bool = False
    ) -> list[Foreign]:
        def found() -> list[Foreign]:
            world, seen = self._process.world, self._process.world.loop.time()
            if not is_settled and world.happens("read_stale"):
                seen -= world.faults.stale_s * world.rng.random()
            return self._foreign.read(stream, pattern, after, 1 if is_settled else limit, seen)

        messages: list[Foreign] = await self._look("outside read", stream, found)
        return messages

    async def find(self, stream: str, extent: Extent, at: float) -> int:
        position: int = await self._look("outside find", stream, lambda: self._foreign.find(at))
        return position

    async def watch(self, stream: str, pattern: str, wake: Callable[[], None]) -> Subscription | None:
        def heard() -> None:
            watch.close()
            wake()

        watch = self._process.watch(HEARD + pattern, heard)
        return watch
