"""What a commit may say about a family, as its readers check it (rules F2 and F3)."""

from __future__ import annotations

from collections.abc import Sequence

from mielin_cells.log.family.tree import Decided, Family, Told


def wrong_family(family: Family, changes: Sequence[object]) -> str:
    """What is wrong; "" if nothing is.  Notices are numbered without a gap, and each one of a child is taken once."""
    told, seen = family.told, {name: child.seen for name, child in family.children.items()}
    for change in changes:
        if isinstance(change, Told):
            if change.n != told + 1:
                return f"it sends notice {change.n} after {told} (rule F2)"
            told = change.n
        elif isinstance(change, Decided):
            if change.n <= seen.get(change.child, 0):
                return f"it takes notice {change.n} of child {change.child!r} after {seen[change.child]} (rule F3)"
            seen[change.child] = change.n
    return ""
