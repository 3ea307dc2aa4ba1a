"""The attributes of an agent, as its state holds them.

They are a field of the stored state that no class declares, so they move, are undone and are covered by digests as all state is.
An agent that never sets any has no such field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import TypeAlias

import msgspec

from mielin_cells.errors import AttributeInvalid, StateUnloadable
from mielin_cells.log.codec import UNREADABLE, pack
from mielin_cells.log.state import StoredState

FIELD = "(attributes)"
"""The name of the field.  No field that a class declares can have it."""

ATTRIBUTES_MAX = 32
NAME_CHARS_MAX = 64
TEXT_CHARS_MAX = 256
INT_BITS = 63

RESERVED = frozenset({"and", "or", "not", "in", "exists", "true", "false"})
"""Words of the language in which attributes are compared."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Value: TypeAlias = bool | int | float | str


class Attributes(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """All attributes of an agent.  `n` grows with each change, also with that of an undo, so of two the later one has the higher."""

    n: int
    values: dict[str, Value]


_decode = msgspec.msgpack.Decoder(Attributes).decode


def encode(attributes: Attributes) -> bytes:
    return pack(attributes)


def decode(data: bytes) -> Attributes:
    """Raises `StateUnloadable`."""
    try:
        return _decode(data)
    except UNREADABLE as error:
        raise StateUnloadable(
            f"Stored attributes do not read ({error}); load an older snapshot.", path=FIELD
        ) from error


def attributes_of(state: StoredState) -> Attributes | None:
    """None for an agent that has never set any."""
    data = state.plain.get(FIELD)
    return decode(data) if data is not None else None


def changed(before: Attributes | None, changes: Mapping[str, object]) -> Attributes | None:
    """The attributes after these changes, of which None removes one; None if nothing changes.  Raises `AttributeInvalid`."""
    values = dict(before.values) if before is not None else {}
    for name, value in changes.items():
        checked = check_name(name)
        if value is None:
            values.pop(checked, None)
        else:
            values[checked] = _checked(checked, value)
    if len(values) > ATTRIBUTES_MAX:
        raise AttributeInvalid(
            f"An agent has at most {ATTRIBUTES_MAX} attributes; these would be {len(values)}. Remove some by name=None.",
            attribute="",
        )
    if _typed(values) == _typed(before.values if before is not None else {}):
        return None
    return Attributes(before.n + 1 if before is not None else 1, dict(sorted(values.items())))


def _typed(values: dict[str, Value]) -> dict[str, tuple[type, Value]]:
    """1, 1.0 and True are equal, and are three different values here."""
    return {name: (type(value), value) for name, value in values.items()}


def check_name(name: object) -> str:
    """Raises `AttributeInvalid`."""
    if (
        not isinstance(name, str)
        or not 1 <= len(name) <= NAME_CHARS_MAX
        or _NAME.fullmatch(name) is None
        or name in RESERVED
    ):
        shown = repr(name)[:80]
        raise AttributeInvalid(
            f"{shown} is no name of an attribute: that is a letter or _, then letters, digits and _, up to {NAME_CHARS_MAX}, and none "
            f"of {', '.join(sorted(RESERVED))}.", attribute=shown,
        )  # fmt: skip
    return str.__str__(name)


def _checked(name: str, value: object) -> Value:
    why = ""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value.bit_length() <= INT_BITS:
            return int(value)
        why = "it has more than 64 bits"
    elif isinstance(value, float):
        if isfinite(value):
            return float(value)
        why = "it is not finite"
    elif isinstance(value, str):
        if len(value) <= TEXT_CHARS_MAX and not any("\ud800" <= char <= "\udfff" for char in value):
            return str.__str__(value)
        why = f"it has {len(value)} characters, of at most {TEXT_CHARS_MAX}, or one that is no text"
    else:
        why = f"it is {type(value).__name__}; wanted: str, int, float, bool, or None to remove it"
    raise AttributeInvalid(f"Attribute {name!r} cannot be {repr(value)[:80]}: {why}.", attribute=name)


def after_undo(now: StoredState, back: StoredState) -> StoredState:
    """The state after an undo from `now` to `back`: that of `back`, where the attributes that go back are the newest of all."""
    mine, theirs = attributes_of(now), attributes_of(back)
    if mine is None:
        return back
    values = theirs.values if theirs is not None else {}
    n = mine.n if _typed(values) == _typed(mine.values) else mine.n + 1
    state = back.frozen()
    state.put({FIELD: encode(Attributes(n, values))})
    return state
