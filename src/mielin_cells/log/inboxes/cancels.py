"""Cancels (rule T4): messages about messages, which come by the critical inbox.

A cancel may be taken before the message that it is about: then the ledger keeps it until that message comes, which is taken without a
run.  A message that has been taken is not touched any more, so a cancel may be repeated.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from mielin_cells.errors import RecordInvalid
from mielin_cells.log.codec import UNREADABLE, pack
from mielin_cells.log.inboxes.lines import CRITICAL, line

CANCEL: Final = "\tcancel"
"""The handler that a cancel names.  No method has such a name."""

CANCELLED: Final = "cancelled"
"""`Input.unrun`: the message was cancelled before its turn ended (rule T4)."""

CANCELS_MAX: Final = 10_000
"""Kept by an agent, for messages that have not come.  Those that come later change nothing."""


class Cancel(NamedTuple):
    """Which message is cancelled."""

    sender: str
    """The line of the message, as its receiver knows it."""
    n: int
    start: int = 0
    """Of a client's session: where the receiver's log ended when it began; 0: not known."""


_decode = msgspec.msgpack.Decoder(tuple[str, int, int]).decode


def encode_cancel(cancel: Cancel) -> bytes:
    return pack(tuple(cancel))


def decode_cancel(data: bytes) -> Cancel:
    """Raises `RecordInvalid`."""
    try:
        return Cancel(*_decode(data))
    except UNREADABLE as error:
        raise RecordInvalid(f"This cancel cannot be read: {error}.") from error


def critical_line(agent: str) -> str:
    return line(agent, CRITICAL)


class Cancels(msgspec.Struct, array_like=True):
    """The cancels that were taken before their messages."""

    kept: dict[str, list[int]] = {}
    """By line of the message."""

    def has(self, sender: str, n: int) -> bool:
        return n in self.kept.get(sender, ())

    @staticmethod
    def with_one(cancels: Cancels | None, sender: str, n: int) -> Cancels:
        """Keeps one more, if it is not there and there are not too many."""
        cancels = Cancels({}) if cancels is None else cancels
        if not cancels.has(sender, n) and sum(map(len, cancels.kept.values())) < CANCELS_MAX:
            cancels.kept.setdefault(sender, []).append(n)
        return cancels

    def taken(self, sender: str, n: int, next_n: int) -> None:
        """Message `n` has been taken, and none below `next_n` is taken any more."""
        left = [one for one in self.kept.get(sender, ()) if one != n and one >= next_n]
        if left:
            self.kept[sender] = left
        else:
            self.kept.pop(sender, None)

    def content(self) -> list[tuple[str, list[int]]]:
        """What a digest of it holds, whatever its history."""
        return [(sender, sorted(numbers)) for sender, numbers in sorted(self.kept.items())]
