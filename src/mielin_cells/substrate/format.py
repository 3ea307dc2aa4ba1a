"""The format of a store, which its file or its streams carry as a mark.  A store of another format is refused, not migrated."""

from __future__ import annotations

from typing import Any, Final

from mielin_cells.errors import StoreIncompatible

FORMAT: Final = 4
_EARLY: Final = "mielin-cells 0.2 before its release"
WRITTEN_BY: Final = {1: "mielin-cells 0.1", 2: _EARLY, 3: _EARLY, 4: "mielin-cells 0.2"}


def check_format(store: str, have: Any, elsewhere: str) -> None:
    """Raises `StoreIncompatible` unless `have` is `FORMAT`.  `elsewhere` says what to name instead, such as "another file"."""
    if have == FORMAT:
        return
    writer = WRITTEN_BY.get(have) if isinstance(have, int) else None
    raise StoreIncompatible(
        f"{store} has format {have}, which {writer or 'another version of mielin-cells'} wrote; this version reads format {FORMAT}. "
        f"Nothing was changed. Name {elsewhere}, or go on with {writer or 'the version that wrote it'}.",
        store=store, have=have, need=FORMAT,
    )  # fmt: skip
