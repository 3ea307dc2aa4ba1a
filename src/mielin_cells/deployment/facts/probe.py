"""A function that is called again and again on a thread of its own: one that raises, blocks or never returns harms nothing else."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from mielin_cells.errors import described

T = TypeVar("T")

logger = logging.getLogger("mielin_cells.facts")

COST_SHARE = 2000
"""A probe rests for so many times the processor time that it took: it costs at most one part in so many of a core."""


class Probe(Generic[T]):
    """`start`, then `state` from any thread; `stop` does not wait for a call that hangs."""

    def __init__(self, name: str, read: Callable[[], Any], every_s: float, timeout_s: float) -> None:
        self.name = name
        self._read = read
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._state: tuple[T | None, str, float] = None, "", 0.0
        """What was read last, or why nothing was, and when that began; 0: never."""
        self._began: float | None = None
        """When the call that is out was made."""
        self._said = ""
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"facts-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ends.set()

    def state(self) -> tuple[T | None, str]:
        """What was read last, or None and why: it raised, or has not answered for too long."""
        began, (value, why, _) = self._began, self._state
        if began is not None and time.monotonic() - began > self._timeout_s:
            return None, f"has not answered for {self._timeout_s:g} s"
        return value, why

    # ---- on the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ends.is_set():
            self._began = began = time.monotonic()
            before = time.thread_time()
            value, why = self._call()
            cost_s = time.thread_time() - before
            if (took_s := time.monotonic() - began) > self._timeout_s:
                value, why = None, f"took {took_s:.1f} s; it may take {self._timeout_s:g} s"
            self._state, self._began = (value, why, began), None
            self._say(why)
            self._ends.wait(max(self._every_s, COST_SHARE * cost_s))

    def _call(self) -> tuple[T | None, str]:
        try:
            value = self._read()
            if inspect.isawaitable(value):
                value = asyncio.run(_awaited(value))
            return value, ""
        except BaseException as error:  # noqa: BLE001 - whatever a user's sensor raises, also SystemExit, is its own failure
            return None, f"raised {described(error)}"

    def _say(self, why: str) -> None:
        """Logs once that the probe fails, and once that it works again."""
        if why and not self._said:
            logger.warning("%s %s: what it says is absent until it works again", self.name, why)
        elif self._said and not why:
            logger.info("%s works again", self.name)
        self._said = why


async def _awaited(value: Any) -> Any:
    return await value
