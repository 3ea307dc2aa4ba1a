"""What is sent to resolve a wait, and what comes back."""

from __future__ import annotations

import msgspec

from mielin_cells.errors import CellError, WaitRejected, WaitTimeout, from_wire
from mielin_cells.log.codec import Codec, pack
from mielin_cells.log.message import Answer, decode_answer, encode_answer

RESOLVE = "\tresolve"
"""The handler that a message with a `Resolve` names.  No handler of an author has such a name."""

REASON_CHARS_MAX = 2000
"""Of the text that a wait is rejected with."""


class Resolve(msgspec.Struct, array_like=True, frozen=True):
    """A wait is to end with a value, or else with an error."""

    token: str
    value: bytes = b""
    """msgpack."""
    error: str | None = None
    word: str | None = None
    """A value as a person types it: JSON if that fits the type, else text."""


class Standing(msgspec.Struct, array_like=True, frozen=True):
    """The answer to a `Resolve` of a wait that has an outcome: this one's, or an earlier one."""

    accepted: bool
    outcome: bytes
    """An `Answer` in msgpack."""


_resolve = Codec[Resolve](Resolve, "resolve")
_standing = Codec[Standing](Standing, "outcome")


def decode_resolve(data: bytes) -> Resolve:
    """Raises `RecordInvalid`."""
    return _resolve.decode(data, "A message to resolve a wait")


def decode_standing(data: bytes) -> Standing:
    return _standing.decode(data, "An answer about a wait")


def standing(accepted: bool, outcome: bytes) -> bytes:
    """The answer to a message with a `Resolve`."""
    return encode_answer(Answer(pack(Standing(accepted, outcome))))


def value_outcome(value: bytes) -> bytes:
    return encode_answer(Answer(value))


def rejection(name: str, reason: str) -> bytes:
    said = f"Wait {name!r} was rejected: {reason}" if reason else f"Wait {name!r} was rejected."
    return encode_answer(Answer(None, WaitRejected(said, wait=name, reason=reason).to_wire()))


def timeout(name: str) -> bytes:
    said = f"Nobody has resolved wait {name!r} before its deadline."
    return encode_answer(Answer(None, WaitTimeout(said, wait=name).to_wire()))


def error_of(outcome: bytes) -> CellError | None:
    """What the outcome raises; None for a value."""
    error = decode_answer(outcome).error
    return None if error is None else from_wire(*error)
