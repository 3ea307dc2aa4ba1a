"""A handler's coroutine whose first step has been taken already."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable, Generator
from typing import Any


class Waiting:
    """A coroutine whose first step was taken by hand, and that waits: awaiting this awaits the rest of it.

    Most handlers never wait; taking their first step by hand spares them a timer and the loop a task.
    """

    __slots__ = ("_coroutine", "_first", "is_closed", "is_left", "went_on")

    def __init__(self, coroutine: Any, first: Any) -> None:
        self._coroutine = coroutine
        self._first = first
        self.is_closed = False
        """Whoever awaited this is closed: a `GeneratorExit` then is not the handler's own."""
        self.is_left = False
        """The next cancellation is this awaiting's own: the coroutine, which has kept others to itself, is run no further."""
        self.went_on: Callable[[], None] | None = None
        """Called when the coroutine was cancelled and waits again."""

    def __await__(self) -> Generator[Any, Any, Any]:
        waits_for = self._first
        while True:
            try:
                sent = yield waits_for
            except GeneratorExit:
                self.is_closed = True
                self._coroutine.close()
                raise
            except BaseException as error:
                is_cancelled = isinstance(error, asyncio.CancelledError)
                if is_cancelled and self.is_left:
                    # Kept for ever: to be freed it would be closed, which it catches as well, and without a loop it then never waits.
                    ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._coroutine))
                    if (task := asyncio.current_task()) is not None:
                        task.uncancel()  # what had been asked for before is what counts
                    raise
                try:
                    waits_for = self._coroutine.throw(error)
                except StopIteration as stop:
                    return stop.value
                if is_cancelled and self.went_on is not None:
                    self.went_on()
            else:
                try:
                    waits_for = self._coroutine.send(sent)
                except StopIteration as stop:
                    return stop.value
