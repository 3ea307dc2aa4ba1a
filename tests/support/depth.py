"""How deep those tests go that play one story very often: a part in `make test`, more in `make ci`, all on demand."""

from __future__ import annotations

import os
from typing import Literal, TypeVar

T = TypeVar("T")

DEPTHS = ("test", "ci", "all")

DEPTH: Literal["test", "ci", "all"] = os.environ.get("DEPTH", "test")  # type: ignore[assignment]
if DEPTH not in DEPTHS:
    raise ValueError(f"DEPTH is {DEPTH!r}; it is one of {', '.join(DEPTHS)}")


def depth(test: T, ci: T, everything: T) -> T:
    """One of these: for `make test`, for `make long`, which is a part of `make ci`, and for `make guards` and `make nth`."""
    return {"test": test, "ci": ci, "all": everything}[DEPTH]
