"""Tests in virtual time: a short deadline of theirs is judged by a clock that does not move while the machine is busy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

from mielin_cells.testing.simulator.loop import run

P = ParamSpec("P")


def virtually(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs an async test in virtual time.  For tests without threads, processes and files, so on a store in memory; not for
    one that looks at the clock of the machine, or waits with `asyncio.sleep(0)` for a timer."""

    @functools.wraps(test)
    def in_virtual_time(*args: P.args, **kwargs: P.kwargs) -> None:
        run(test(*args, **kwargs))

    return in_virtual_time
