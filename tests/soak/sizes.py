"""How large things are, round by round, and whether they still grow at the end."""

from __future__ import annotations

import gc
import os
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

OURS = "mielin_cells"
LEAVES = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)

GROWTH = 0.10
"""What the last third of a run may be larger than the middle third."""

ROUNDS_MIN = 9
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def resident() -> int:
    """Bytes of this process in memory; 0 where that is not told."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except OSError:
        return 0


def size_of(*roots: object, but: Iterable[object] = ()) -> int:
    """Bytes of what hangs on these: our own objects and containers.  What belongs to the event loop or to others is left out."""
    seen, waiting, total = {id(one) for one in but}, deque(roots), 0
    while waiting:
        one = waiting.popleft()
        if id(one) in seen or one is None or isinstance(one, LEAVES):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one, 64)
        waiting.extend(_within(one))
    return total


def _within(one: object) -> Iterable[object]:
    if isinstance(one, Mapping) and type(one).__module__ in ("builtins", "collections"):
        return [*one.keys(), *one.values()]
    if isinstance(one, (list, tuple, set, frozenset, deque)):
        return list(one)
    if not type(one).__module__.startswith(OURS):
        return ()
    found: list[object] = list(getattr(one, "__dict__", {}).values())
    for cls in type(one).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        found += [getattr(one, name, None) for name in ((slots,) if isinstance(slots, str) else slots)]
    return found


class Series:
    """What was measured, by name, a value for each round."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self._slack: dict[str, float] = {}

    def note(self, name: str, value: float, slack: float) -> None:
        """`slack`: growth that is no growth, whatever its share."""
        self.values.setdefault(name, []).append(value)
        self._slack[name] = slack

    def thirds(self, name: str) -> tuple[float, float]:
        """The middle third and the last third, as medians: the first third is the warm-up."""
        values = self.values[name]
        third = len(values) // 3
        return median(values[third : 2 * third]), median(values[-third:])

    def growing(self) -> list[str]:
        """A sentence for each that does not end flat.  Raises `ValueError` after too few rounds to tell."""
        if min(map(len, self.values.values()), default=0) < ROUNDS_MIN:
            raise ValueError(f"{ROUNDS_MIN} rounds are needed to tell what grows")
        found = []
        for name in self.values:
            before, after = self.thirds(name)
            if after > before * (1 + GROWTH) + self._slack[name]:
                found.append(f"{name} grows: {before:,.0f} in the middle of the run, {after:,.0f} at its end")
        return found

    def told(self) -> dict[str, Any]:
        return {name: [round(one) for one in (values[0], *self.thirds(name))] for name, values in self.values.items()}


def settled() -> None:
    """Nothing that is garbage is measured."""
    gc.collect()
