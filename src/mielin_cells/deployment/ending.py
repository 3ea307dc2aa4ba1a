"""How a node's process ends: why, by when, and by force if it takes longer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TypeVar

from mielin_cells.deployment.codes import FAILED, INTERRUPTED

T = TypeVar("T")

logger = logging.getLogger("mielin_cells.process")

ORPHAN_S = 0.5
"""The time for turns to end when the parent has died, and most likely the server with it."""

GRACE_S = 1.5
"""Between the end of the turns' time and that of a clean stop, and again to the end of the process."""


LESS_S = 1.0
"""A notice that is repeated says the same time within this."""


class Ending:
    """Why the process is to end; the first reason counts.  Signal handlers and threads may call `end`."""

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._interrupts = 0
        self._until = 0.0
        self.reason = ""
        self.drains = False
        """The node is to move its agents away first."""
        self._is_announced = False
        """The reason was a notice or a file, behind which a signal is expected."""
        self.hurried = asyncio.Event()
        """Set by a second reason to end."""
        self.shortened = asyncio.Event()
        """Set when there is less time than was said first."""

    def end(self, reason: str, within_s: float, *, drains: bool = False) -> None:
        """Asks the process to end, and ends it by force if that takes longer than `within_s` and a grace."""
        if not self.reason:
            self.reason, self.drains = reason, drains
            self._until = time.monotonic() + within_s
            self._force_after(within_s)
        else:
            self._soon(self.hurried.set)
        self._soon(self._event.set)

    def _soon(self, done: Callable[[], None]) -> None:
        """Once the loop is closed the process ends anyway: a signal that comes then must not raise in the middle of that."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(done)

    def announce(self, why: str, within_s: float | None) -> None:
        """The machine goes away: the node drains within so many seconds (None: the setting `drain_s`), unless it ends already.

        A SIGTERM that follows, or another notice, may leave less time, and does not hurry the drain otherwise.
        """
        within_s = self._drain_s if within_s is None else max(ORPHAN_S, within_s)
        if not self.reason:
            self._is_announced = True
            self.end(why, within_s, drains=True)
        elif self.drains:
            self._shorten(within_s)

    def _shorten(self, within_s: float) -> None:
        until = time.monotonic() + within_s
        if until < self._until - LESS_S:
            self._until = until
            self._force_after(within_s)
            self._soon(self.shortened.set)

    def _force_after(self, within_s: float) -> None:
        timer = threading.Timer(within_s + 2 * GRACE_S, self._by_force)
        timer.daemon = True
        timer.start()

    @property
    def left_s(self) -> float:
        return max(ORPHAN_S, self._until - time.monotonic())

    def _by_force(self) -> None:
        logger.critical(
            "the node did not stop in time: killing the process; uncommitted turns will run again elsewhere"
        )
        os._exit(FAILED)

    async def wait(self) -> None:
        await self._event.wait()

    def on_signal(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                os._exit(INTERRUPTED)
        if number == signal.SIGTERM and self._is_announced:
            self._is_announced = False
            self._shorten(self._drain_s)
        else:
            self.end(signal.Signals(number).name, self._drain_s, drains=number == signal.SIGTERM)

    def follow_stdin(self) -> None:
        """Ends the process when standard input ends."""

        def read() -> None:
            while True:
                try:
                    if not os.read(0, 4096):
                        break
                except OSError:
                    break
            self.end("its parent has died", ORPHAN_S)

        threading.Thread(target=read, name="parent", daemon=True).start()

    async def unless(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` returns; None if the process is to end first."""
        task, wait = asyncio.ensure_future(work), asyncio.ensure_future(self.wait())
        try:
            await asyncio.wait((task, wait), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for pending in (task, wait):
                pending.cancel()
            await asyncio.gather(task, wait, return_exceptions=True)
