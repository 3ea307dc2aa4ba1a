"""Handlers that every agent has: what other agents' nodes send to supervise it, each a turn like any other."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any

from mielin_cells.agents.context import this
from mielin_cells.agents.handler import Handler
from mielin_cells.agents.signature import HandlerSpec, signature_of
from mielin_cells.log.family.notices import DOWN, LINKED, PARENT_ENDED, UNWATCH, WATCH
from mielin_cells.log.family.tree import Down

PREFIX = "cells."
TRIES = 1_000_000
"""A decision of a supervisor is not given up."""


async def down(self: Any, down: Down) -> None:
    """A child has failed or ended."""
    running: Any = this()
    await running.take_down(down)


async def linked(self: Any, down: Down) -> None:
    """A linked agent has failed."""
    running: Any = this()
    running.take_link(down)


async def watch(self: Any, handler: str, parameter: str) -> None:
    running: Any = this()
    running.take_watch(handler, parameter)


async def unwatch(self: Any, handler: str) -> None:
    running: Any = this()
    running.take_unwatch(handler)


async def parent_ended(self: Any, key: bytes) -> None:
    running: Any = this()
    running.take_parent_end(key)


_FUNCTIONS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    DOWN: down, LINKED: linked, WATCH: watch, UNWATCH: unwatch, PARENT_ENDED: parent_ended,
}  # fmt: skip
_HINTS: dict[str, Any] = {"down": Down, "handler": str, "parameter": str, "key": bytes, "return": type(None)}


@cache
def system_handler(name: str) -> HandlerSpec | None:
    """The handler of this name that agents of all classes have; None if there is none."""
    fn = _FUNCTIONS.get(name)
    if fn is None:
        return None
    made: Handler[Any, Any] = Handler(fn, False, TRIES, ())
    made.name = name
    return signature_of(made, name, _HINTS, None)
