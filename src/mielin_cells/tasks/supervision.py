"""Loops that run as long as their node, and waits between tries: every error has an owner, and no wait grows without bound."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from mielin_cells.errors import CellError, described
from mielin_cells.settings import RETRY_S_MAX, RETRY_S_MIN

logger = logging.getLogger("mielin_cells.supervision")

STEADY_S = 30.0
"""A loop that ran for so long has recovered: its next failure is logged again and waits only briefly."""


class Backoff:
    """The wait between two tries: `first_s`, doubled each time up to `cap_s`.  `wake` ends a wait at once.

    There is no jitter: the callers wait for one log each, and the simulator replays them.
    """

    __slots__ = ("_cap_s", "_delay_s", "_first_s", "_waker")

    def __init__(self, first_s: float = RETRY_S_MIN, cap_s: float = RETRY_S_MAX) -> None:
        self._first_s = self._delay_s = min(first_s, cap_s)
        self._cap_s = cap_s
        self._waker: asyncio.Future[None] | None = None

    @property
    def delay_s(self) -> float:
        """What the next `wait` will wait."""
        return self._delay_s

    async def wait(self) -> None:
        """Waits, unless `wake` is called meanwhile.  The next wait is twice as long, up to the cap."""
        delay, self._delay_s = self._delay_s, min(self._delay_s * 2, self._cap_s)
        self._waker = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait((self._waker,), timeout=delay)
        finally:
            self._waker = None

    def wake(self) -> None:
        """Ends the current wait.  Does nothing if nobody waits."""
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    def reset(self) -> None:
        """After a success: the next wait is the first again."""
        self._delay_s = self._first_s


class Duties:
    """What a loop does in each of its rounds: one that fails is counted, and said once until it succeeds, and the next is done."""

    def __init__(self, node: str, failures: Counter[str]) -> None:
        self._node = node
        self._failures = failures
        self._said: dict[str, str] = {}

    async def do(self, name: str, work: Callable[[], Coroutine[Any, Any, None] | None]) -> None:
        try:
            waits = work()
            if waits is not None:
                await waits
        except Exception as error:  # of the store, or a bug: the next round is needed all the more
            self._failures[name] += 1
            is_new, self._said[name] = self._said.get(name) != type(error).__name__, type(error).__name__
            if is_new:
                trace = None if isinstance(error, CellError) else error
                logger.error(
                    "node %s: %s failed and is tried again: %s", self._node, name, described(error), exc_info=trace
                )
        else:
            if self._said.pop(name, None) is not None:
                logger.warning("node %s: %s works again", self._node, name)


async def supervised(
    name: str,
    loop: Callable[[], Coroutine[Any, Any, None]],
    *,
    failures: Counter[str] | None = None,
    cap_s: float = 10.0,
) -> None:
    """Runs `loop` until it returns.  If it raises, the error is counted and logged, and the loop is started again after a back-off.

    An error of the same kind is logged with its traceback once, and again only after the loop has run for `STEADY_S`.
    A cancellation ends it.  `failures` counts by `name`.
    """
    backoff, logged, clock = Backoff(cap_s=cap_s), set[str](), asyncio.get_running_loop().time
    while True:
        began = clock()
        try:
            await loop()
            return
        except Exception as error:  # whatever it is: a loop that ends silently takes its whole duty with it
            if clock() - began >= STEADY_S:
                backoff.reset()
                logged.clear()
            if failures is not None:
                failures[name] += 1
            kind = type(error).__name__
            if kind not in logged:
                logged.add(kind)
                logger.error("%s failed and is started again in %g s: %r", name, backoff.delay_s, error, exc_info=error)
        await backoff.wait()
