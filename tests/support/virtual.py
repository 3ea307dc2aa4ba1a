"""Tests in virtual time: a short deadline of theirs is judged by a clock that does not move while the machine is busy."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec
from unittest.mock import patch

from mielin_cells.testing.simulator.loop import run

P = ParamSpec("P")


def virtually(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs an async test in virtual time, which the clocks of the machine show too.  For tests without threads, processes and
    files, so on a store in memory; not for one that waits with `asyncio.sleep(0)` for a timer."""

    @functools.wraps(test)
    def in_virtual_time(*args: P.args, **kwargs: P.kwargs) -> None:
        async def story() -> None:
            clock, began = asyncio.get_running_loop().time, time.time()
            with patch.object(time, "time", lambda: began + clock()), patch.object(time, "monotonic", clock):
                await test(*args, **kwargs)

        run(story())

    return in_virtual_time
