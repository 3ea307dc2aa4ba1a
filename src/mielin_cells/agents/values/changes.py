"""Values that a load would change: the error that names the place, and the check of bytes that other code has written."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from mielin_cells.agents.values.models import UNSET
from mielin_cells.agents.values.wire import encode, plain

Place: TypeAlias = tuple[Any, str] | None
"""Where in a value: the place that holds it, and the step from there, as `.name` or `[3]`."""

LOAD_ERRORS = (Exception,)
"""What encoding, decoding or comparing a user's value may raise: anything, since it runs the user's `__post_init__`, `_missing_` and
validators.  Each is reported with the path of the value; none may end what holds the agent."""

SHOWN_CHARS_MAX = 60


class ValueChangedError(Exception):
    """A value that a load would not give back.  `place` is where in the value, as text: `.legs[3]`."""

    def __init__(self, place: Place | str, why: str) -> None:
        super().__init__(why)
        self.place = place if isinstance(place, str) else place_text(place)
        self.why = why


def place_text(place: Place) -> str:
    steps: list[str] = []
    while place is not None:
        place, step = place
        steps.append(step)
    return "".join(reversed(steps))


def shown(value: object) -> str:
    """A value for an error: short, and never an error itself."""
    try:
        text = repr(value)
    except LOAD_ERRORS as error:  # a user's `__repr__` may raise anything
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 3] + "..."


LOCATE_DEPTH_MAX = 100


def reason(value: Any, error: Exception) -> str:
    """Why a value cannot be stored, and where in it; this follows the path of the field in an error."""
    place, why = "", str(error)
    if isinstance(error, ValueChangedError):
        place = error.place
    elif isinstance(error, OverflowError) and "ints" in why:
        place, why = _locate(value)[0], "ints beyond 64 bits cannot be stored; keep them as str or bytes"
    elif isinstance(error, (TypeError, NotImplementedError, UnicodeError)):
        place = _locate(value)[0]
    elif isinstance(error, RecursionError):
        why = f"the value holds itself, or is nested too deeply: {why}"
    return f"{why} - at `${place}`" if place else why


def _locate(value: Any, place: str = "", depth: int = 0) -> tuple[str, Any]:
    """The innermost part of a value that does not encode."""
    for step, part in _steps(value) if depth < LOCATE_DEPTH_MAX else ():
        try:
            encode(part)
        except LOAD_ERRORS:
            return _locate(part, place + step, depth + 1)
    return place, value


def _steps(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        keys = [(f"[key {shown(key)}]", key) for key in value]
        return [*keys, *((f"[{shown(key)}]", item) for key, item in value.items())]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(f"[{at}]", item) for at, item in enumerate(value)]
    names: Any = getattr(type(value), "__struct_fields__", None) or getattr(value, "__dict__", ())
    return [(f".{name}", getattr(value, name, None)) for name in names]


# ---- data of another version -----------------------------------------------------------------------------------

_NUMBERS = frozenset({int, float})


def _check_whole(stored: Any, again: Any) -> None:
    """Compares plain data with what it is after a load by the types of today.  Raises `ValueChangedError` for what is lost.

    More may be there than was: a field with a default that the data does not know yet.
    """
    todo: list[tuple[Any, Any, Place]] = [(stored, again, None)]
    while todo:
        old, new, place = todo.pop()
        if type(old) is dict and type(new) is dict:
            for key, value in old.items():
                if key in new:
                    todo.append((value, new[key], (place, f"[{shown(key)}]")))
                elif key != UNSET:
                    raise ValueChangedError(
                        place, f"{shown(key)} is stored, and the type does not declare it: it would be lost"
                    )
        elif type(old) is list and type(new) is list:
            if len(old) > len(new):
                raise ValueChangedError(
                    place, f"{len(old)} items are stored, and the type has {len(new)}: the rest would be lost"
                )
            if len(old) != len(new) or sorted(map(_packed, old)) != sorted(
                map(_packed, new)
            ):  # the order of a set is not kept
                todo.extend(
                    (one, other, (place, f"[{at}]")) for at, (one, other) in enumerate(zip(old, new, strict=False))
                )
        elif type(old) is not type(new) and not {type(old), type(new)} <= _NUMBERS:
            raise ValueChangedError(place, f"a {type(old).__name__} is stored, and would be loaded as another type")
        elif _packed(old) != _packed(new) and old != new:
            raise ValueChangedError(place, f"{shown(old)} is stored, and would be loaded as {shown(new)}")


_packed = msgspec.msgpack.Encoder().encode


def check_kept(data: bytes, value: Any) -> None:
    """Raises `ValueChangedError` if a part of the bytes is not in the value that was loaded from them."""
    again = encode(value)
    if again != data:
        _check_whole(plain(data), plain(again))
