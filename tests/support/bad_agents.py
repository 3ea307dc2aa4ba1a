"""Agents that cannot run."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import mielin_cells as cells
from mielin_cells.agents.reference import classes

QUICK = cells.Settings(reconcile_s=0.2, ask_repeat_s=0.1, pause_s=0.3, turn_deadline_s=20.0)


def bad_class(what: str) -> type[cells.Agent] | None:
    """The class that a node has after its restart, for the agents that were made of another of that name."""
    if what == "its class is gone":
        return None

    class Bad(cells.Agent, version=2):
        count: int = 0

        @cells.upgrade(from_version=1)
        def _v1(cls, old: dict[str, Any]) -> dict[str, Any]:
            if what == "its upgrade raises":
                raise ValueError("no such field")
            if what == "its upgrade ends the process":
                sys.exit("not in my process")
            return old

        async def on_arrive(self) -> None:
            if what == "its hook raises":
                raise ValueError("no way in")
            if what == "its hook ends the process":
                sys.exit("not in my process")
            if what == "its hook is cancelled":
                raise asyncio.CancelledError
            if what == "its hook hangs":
                await asyncio.Event().wait()

        async def on_depart(self) -> None:
            if what == "its farewell ends the process":
                sys.exit("not in my process")

        @cells.handler
        async def add(self) -> int:
            self.count += 1
            return self.count

    return Bad


def good_class() -> type[cells.Agent]:
    class Bad(cells.Agent):
        count: int = 0

        @cells.handler
        async def add(self) -> int:
            self.count += 1
            return self.count

    return Bad


def having(bad: type[cells.Agent] | None) -> Callable[[str], type[cells.Agent] | None]:
    """What a node knows on which the class `Bad` is this one, or none."""
    return {**classes, "Bad": bad}.get
