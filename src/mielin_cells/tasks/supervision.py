"""Loops that run as long as their node, and waits between tries: every error has an owner, and no wait grows without bound."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from mielin_cells.errors import CellError, described
from mielin_cells.settings import RETRY_S_MAX, RETRY_S_MIN

logger = logging.getLogger("mielin_cells.supervision")

T = TypeVar("T")
Errors: TypeAlias = type[Exception] | tuple[type[Exception], ...]

STEADY_S = 30.0
"""A loop that has run for this long has recovered: its next failure is logged again, and the wait is short again."""


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


async def persist(
    work: Callable[[], Awaitable[T]], on: Errors = Exception, failed: Callable[[Exception], object] | None = None
) -> T:
    """Calls `work` until it returns, with a back-off after each error of the kind `on`; `failed` is given it, and may raise."""
    backoff = Backoff()
    while True:
        try:
            return await work()
        except on as error:
            if failed is not None:
                failed(error)
        await backoff.wait()


class Duties:
    """What a loop does in each of its rounds.

    A duty that fails is counted, and logged once until it succeeds again; the others are done all the same.
    """

    def __init__(self, node: str, failures: Counter[str]) -> None:
        self._node = node
        self._failures = failures
        self._logged: dict[str, str] = {}
        """By duty that fails, the kind of error that was logged last."""

    async def do(self, name: str, work: Callable[[], Coroutine[Any, Any, None] | None]) -> None:
        try:
            waits = work()
            if waits is not None:
                await waits
        except Exception as error:  # of the store, or a bug: the other duties are needed all the more
            self._failures[name] += 1
            kind = type(error).__name__
            if self._logged.get(name) != kind:
                self._logged[name] = kind
                trace = None if isinstance(error, CellError) else error
                logger.error(
                    "node %s: %s failed and is tried again: %s", self._node, name, described(error), exc_info=trace
                )
        else:
            if self._logged.pop(name, None) is not None:
                logger.warning("node %s: %s works again", self._node, name)


async def supervised(
    name: str,
    loop: Callable[[], Coroutine[Any, Any, None]],
    *,
    failures: Counter[str] | None = None,
    cap_s: float = 10.0,
) -> None:
    """Runs `loop` until it returns.  After an error, which is counted in `failures` and logged, it is started again with a back-off.

    Errors of one kind are logged once, with a traceback, and again only after the loop has run for `STEADY_S`.
    """
    backoff, logged, clock = Backoff(cap_s=cap_s), set[str](), asyncio.get_running_loop().time
    while True:
        began = clock()
        try:
            await loop()
            return
        except Exception as error:  # whatever it is: a loop must not end silently
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
