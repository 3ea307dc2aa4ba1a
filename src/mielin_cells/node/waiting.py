"""A handler's coroutine whose first step has been taken already."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any


class Waiting:
    """A coroutine whose first step was taken by hand, and that waits: awaiting this awaits the rest of it.

    Most handlers never wait; taking their first step by hand spares them a timer and the loop a task.
    """

    __slots__ = ("_coroutine", "_first", "is_closed")

    def __init__(self, coroutine: Any, first: Any) -> None:
        self._coroutine = coroutine
        self._first = first
        self.is_closed = False
        """Whoever awaited this is closed: a `GeneratorExit` then is not the handler's own."""

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
                try:
                    waits_for = self._coroutine.throw(error)
                except StopIteration as stop:
                    return stop.value
            else:
                try:
                    waits_for = self._coroutine.send(sent)
                except StopIteration as stop:
                    return stop.value
