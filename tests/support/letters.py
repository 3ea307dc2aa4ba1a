"""Dead letters for tests."""

from __future__ import annotations

from mielin_cells.log.commit import DeadLetter


def letter(seq: int) -> DeadLetter:
    return DeadLetter(seq, "x", 1, "h", "c", 1, [], b"")
