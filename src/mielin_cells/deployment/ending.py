"""How a node's process ends: why, by when, and by force if it takes longer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

from mielin_cells.deployment.codes import FAILED, INTERRUPTED

T = TypeVar("T")

logger = logging.getLogger("mielin_cells.process")

ORPHAN_S = 0.5
"""The time for turns to end when the parent has died, and most likely the server with it."""

GRACE_S = 1.5
"""Between the end of the turns' time and that of a clean stop, and again to the end of the process."""


class Ending:
    """Why the process is to end; the first reason counts.  Signal handlers and threads may call `end`."""

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._interrupts = 0
        self._until = 0.0
        self.reason = ""
        self.hurried = asyncio.Event()
        """Set by a second reason to end."""

    def end(self, reason: str, within_s: float) -> None:
        """Asks the process to end, and ends it by force if that takes longer than `within_s` and a grace."""
        if not self.reason:
            self.reason = reason
            self._until = time.monotonic() + within_s
            timer = threading.Timer(within_s + 2 * GRACE_S, self._by_force)
            timer.daemon = True
            timer.start()
        else:
            self._loop.call_soon_threadsafe(self.hurried.set)
        self._loop.call_soon_threadsafe(self._event.set)

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
        self.end(signal.Signals(number).name, self._drain_s)

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
