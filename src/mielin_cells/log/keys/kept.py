"""Calls that were made with a key, and their answers, as an agent keeps them (rule T3)."""

from __future__ import annotations

from itertools import islice

import msgspec

from mielin_cells.log.message import Message
from mielin_cells.settings import KEYS_MAX

KEYED = "keyed"
"""`Input.unrun`: a call under its key had run, whose answer it got (rule T3)."""
CONFLICT = "conflict"
"""`Input.unrun`: another call under its key had run."""


class Keyed(msgspec.Struct, array_like=True, frozen=True):
    """A call that has run, and its answer, kept under the key that its sender gave (rule T3)."""

    key: str
    body: bytes
    """`Message.digest`."""
    at: float
    """When it ran, by the store's time."""
    answer: bytes | None = None
    """In an `Input`, None if it is the input's own answer."""

    @property
    def size_bytes(self) -> int:
        return 64 + len(self.key) + len(self.answer or b"")


class Keys(msgspec.Struct, array_like=True):
    """The keyed calls that an agent keeps, the oldest first."""

    kept: dict[str, Keyed] = {}
    size_bytes: int = 0

    @staticmethod
    def with_one(keys: Keys | None, keyed: Keyed) -> Keys:
        """Keeps a call that has run.  One that is kept under the key already stays: its answer was given."""
        keys = Keys({}) if keys is None else keys
        if keyed.key not in keys.kept:
            keys.kept[keyed.key] = keyed
            keys.size_bytes += keyed.size_bytes
        return keys

    def judge(self, message: Message) -> str:
        """`KEYED` if this very call has run under the message's key, `CONFLICT` if another has; "" if none is kept."""
        kept = self.kept.get(message.terms.key) if message.terms is not None else None
        if kept is None:
            return ""
        return KEYED if kept.body == message.digest else CONFLICT

    def drop_excess(self, now: float, keeps_s: float, limit: int) -> int:
        """Drops the oldest: those that ran more than `keeps_s` ago, and as many as it takes to hold `limit` bytes.  The count."""
        size, count = self.size_bytes, 0
        for keyed in self.kept.values():
            if keyed.at + keeps_s >= now and size <= limit and len(self.kept) - count <= KEYS_MAX:
                break
            size -= keyed.size_bytes
            count += 1
        self.drop(count)
        return count

    def drop(self, count: int) -> None:
        for key in list(islice(self.kept, count)):
            self.size_bytes -= self.kept.pop(key).size_bytes
