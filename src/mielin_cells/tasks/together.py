"""Several pieces of work at the same time, none of which outlives the call."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order.  The first error cancels the others, and is raised as itself; `asyncio.gather` would leave them behind."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(piece) for piece in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def prompt(work: Iterable[Coroutine[Any, Any, T | None]], patience_s: float) -> list[T]:
    """What is not None of the results that come within `patience_s` of the one before; the first of them is waited for.

    The first error is raised.  Whatever has not come by then is cancelled.
    """
    found, waits = list[T](), {asyncio.ensure_future(piece) for piece in work}
    try:
        while waits:
            done, waits = await asyncio.wait(
                waits, timeout=patience_s if found else None, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            found += [result for task in done if (result := task.result()) is not None]
    finally:
        for task in waits:
            task.cancel()
        if waits:
            await asyncio.wait(waits)
    return found
