"""What every peer's program is: it reads orders from standard input, one JSON object a line, and answers each with one.

`{"do": "pipelined", "count": 1000}` calls `pipelined(count=1000)`.  Standard output is kept for answers; what the peer itself
prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any


def orders() -> Callable[[], dict[str, Any] | None]:
    """Reads the next order; None when there are no more."""

    def read() -> dict[str, Any] | None:
        line = sys.stdin.readline()
        if not line:
            return None
        order: dict[str, Any] = json.loads(line)
        return order

    return read


def answers() -> Callable[[Any], None]:
    """Writes an answer where orders came from."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def write(answer: Any) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    return write


def serve(does: dict[str, Callable[..., Any]], about: dict[str, Any]) -> None:
    """Answers orders until there are no more; the first answer is `about`."""
    read, write = orders(), answers()
    write(about)
    while (order := read()) is not None:
        write(does[order.pop("do")](**order))


async def serve_async(does: dict[str, Callable[..., Awaitable[Any]]], about: dict[str, Any]) -> None:
    """The same with coroutines.  The loop rests while it waits for an order, as its peer's caller would."""
    import asyncio

    read, write = orders(), answers()
    write(about)
    while (order := await asyncio.to_thread(read)) is not None:
        write(await does[order.pop("do")](**order))
