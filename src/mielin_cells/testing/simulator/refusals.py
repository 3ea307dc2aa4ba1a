"""Errors of a store that no retry mends: which there are, which calls they befall, and whether an error was one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mielin_cells.errors import (
    CellError,
    JetStreamDisabled,
    PermissionDenied,
    QuotaExceeded,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
    StreamMissing,
)

WRITES = frozenset({"append", "trim"})
CALLS = WRITES | {"read", "last", "settled", "lasts", "subjects"}


class Refusal(NamedTuple):
    """A way in which a store refuses.  `calls`: those that it befalls."""

    error: type[CellError]
    calls: frozenset[str]


REFUSALS = {
    "full": Refusal(StoreFull, frozenset({"append"})),
    "quota": Refusal(QuotaExceeded, frozenset({"append"})),
    "read only": Refusal(StoreReadOnly, WRITES),
    "denied": Refusal(PermissionDenied, CALLS),
    "writes denied": Refusal(PermissionDenied, WRITES),
    "stream gone": Refusal(StreamMissing, CALLS),
    "no JetStream": Refusal(JetStreamDisabled, CALLS),
    "damaged": Refusal(StoreCorrupt, CALLS),
}

FOR_GOOD = ("denied", "writes denied", "read only")
"""How a store refuses one process and no other."""

CODES = frozenset(refusal.error.__name__ for refusal in REFUSALS.values())
"""What a caller may be told while a store refuses."""


def refused(how: str, what: str, subject: str) -> CellError:
    """A new error of this way, for this call."""
    return REFUSALS[how].error(f"The store refuses {what} of {subject or 'some'} ({how}); nothing was stored.")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it came of."""
    seen = set[int]()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
