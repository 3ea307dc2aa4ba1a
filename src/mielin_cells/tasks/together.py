"""Several pieces of work at the same time, none of which outlives the call."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Returns the results in order.  The first error cancels the others, which `asyncio.gather` would leave behind, and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(piece) for piece in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def prompt(work: Iterable[Coroutine[Any, Any, T | None]], patience_s: float) -> list[T]:
    """Returns the results that are not None, until none has come for `patience_s`.  The first is waited for without a limit.

    The first error is raised.  Pieces that have not ended are cancelled.
    """
    results, waits = list[T](), {asyncio.ensure_future(piece) for piece in work}
    try:
        while waits:
            done, waits = await asyncio.wait(
                waits, timeout=patience_s if results else None, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            results += [result for task in done if (result := task.result()) is not None]
    finally:
        for task in waits:
            task.cancel()
        if waits:
            await asyncio.wait(waits)
    return results
