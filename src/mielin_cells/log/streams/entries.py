"""The stream of one call: the parts that its handler yields, in a log of their own (rule T7).

All calls of one sender to one agent share a subject, so that what stays for ever is one entry a sender and not one a call.  Each
append expects the subject's last entry.  That stops an append that comes late, but not a former owner that reads before it writes: so
an owner that reads an entry of a later epoch reads the agent's own log before it writes again.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from mielin_cells.log.codec import Codec, framed, pack


class StreamEntry(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """What every entry begins with.  No two appends have the same bytes: `epoch` and `run` name who appends."""

    epoch: int
    run: int
    """Counts the runs of turns that write to streams, in one activation of the agent."""
    n: int
    """The number of the call."""
    prev: int
    """The sequence of the entry before it in this subject; 0 for the first."""
    at: int
    """The offset of its first part; of `Restarted` and `Ended`: how many parts stand before it."""


class Parts(StreamEntry, frozen=True):
    data: list[bytes]
    attempt: int = 0
    """Of the step that emits them; 0 for parts that the handler yields."""


class Restarted(StreamEntry, frozen=True):
    """A step begins to emit: the parts from offset `at` on do not stand any more."""

    attempt: int = 1


class Ended(StreamEntry, frozen=True):
    """The call has its answer: the parts before `at` are final, and those behind it do not stand."""

    answer: bytes = b""
    """The stored answer."""


AnyStreamEntry: TypeAlias = Parts | Restarted | Ended

_codec = Codec[AnyStreamEntry](AnyStreamEntry, "entry of a stream", StreamEntry)


def encode_stream_entry(entry: AnyStreamEntry) -> bytes:
    return framed(pack(entry))


def decode_stream_entry(data: bytes, where: str) -> AnyStreamEntry:
    """Raises `RecordInvalid`."""
    return _codec.decode_framed(data, where)


class StreamView:
    """The parts of call `n` that stand, as an owner finds them when it runs the call's turn again."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.parts: list[bytes | None] = []
        """None: it was trimmed, and offsets that follow show that it was there."""
        self.last = 0
        """Sequence of the subject's last entry; 0: there is none."""
        self.epoch = 0
        """The latest epoch of any entry."""
        self.has_ended = False

    def add(self, seq: int, entry: AnyStreamEntry) -> None:
        self.last, self.epoch = seq, max(self.epoch, entry.epoch)
        if entry.n != self.n:
            return
        parts = self.parts
        if isinstance(entry, Parts):
            parts.extend([None] * (entry.at - len(parts)))
            del parts[entry.at :]
            parts.extend(entry.data)
        else:
            parts.extend([None] * (entry.at - len(parts)))
            del parts[entry.at :]
            self.has_ended = self.has_ended or isinstance(entry, Ended)
