"""Whether a value is exactly what a load would give: the same types and values, all the way down.

The comparison never asks a user's `__eq__`, and needs no more of the stack for a deep value than for a flat one.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import struct
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from mielin_cells.agents.reference import Reference, agent_id
from mielin_cells.agents.values.changes import LOAD_ERRORS, Place, ValueChangedError, shown
from mielin_cells.log.ids import AgentId

Todo: TypeAlias = list[tuple[Any, Any, Place]]
"""Pairs that are still to be compared, each with its place."""
SETS_UNMATCHED_MAX = 100
"""Members of a set that no look-up finds, as NaN: they are compared each with each."""

_NORMALISED = frozenset({(int, float), (AgentId, str)})
"""Types of values that become their declared type, if the two are equal."""


def is_exact(value: Any, loaded: Any) -> bool:
    """True if `loaded` is the same as `value`; False if it is alike, but for what is documented to be normalised.

    Normalised: a whole number where a float is declared, an `AgentId` where a str is, a cached property, a live agent (it becomes a
    reference), and which fields of a pydantic root model count as set.  Raises `ValueChangedError` for anything else.
    """
    exact = True
    todo: Todo = [(value, loaded, None)]
    while todo:
        one, other, place = todo.pop()
        kind = type(one)
        if kind is not type(other):
            is_same = isinstance(one, Reference) and isinstance(other, Reference)  # of one class that was defined again
            if not (is_same or (kind, type(other)) in _NORMALISED) or one != other:
                raise ValueChangedError(place, _other_type(one, other))
            exact = False
            continue
        compare = _COMPARE.get(kind)
        if compare is None:
            compare = _known.get(kind) or _remembered(kind)
        if not compare(one, other, place, todo):
            exact = False
    return exact


def _other_type(value: Any, loaded: Any) -> str:
    have, want = type(value), type(loaded)
    names = have.__name__, want.__name__
    if names[0] == names[1]:
        names = f"{have.__module__}.{have.__qualname__}", f"{want.__module__}.{want.__qualname__}"
    if have is int and want is float:
        return f"the int {shown(value)} would be loaded as the float {loaded!r}, which is not equal; use a float"
    advice = f"use a {names[1]}"
    if issubclass(have, want):
        advice = f"use a plain {names[1]}, or declare {names[0]} or a union of tagged types"
    return f"a {names[0]} would be loaded as a {names[1]}; {advice}"


def _other_value(value: Any, loaded: Any) -> str:
    return f"{shown(value)} would be loaded as {shown(loaded)}; use a value that its type keeps"


# ---- by type ---------------------------------------------------------------------------------------------------


def _equal(value: Any, loaded: Any, place: Place, todo: Todo) -> bool:
    if value != loaded:
        raise ValueChangedError(place, _other_value(value, loaded))
    return True


def _identical(value: Any, loaded: Any, place: Place, todo: Todo) -> bool:
    if value is not loaded:
        raise ValueChangedError(place, _other_value(value, loaded))
    return True


def _float(value: float, loaded: float, place: Place, todo: Todo) -> bool:
    if value != loaded or value == 0:
        _equal(struct.pack("d", value), struct.pack("d", loaded), place, todo)
    return True


def _decimal(value: decimal.Decimal, loaded: decimal.Decimal, place: Place, todo: Todo) -> bool:
    return _equal(value.as_tuple(), loaded.as_tuple(), place, todo)


def _time(value: Any, loaded: Any, place: Place, todo: Todo) -> bool:
    """Compares `datetime` and `time`: the clock reading, the zone, and `fold`."""
    zone, other = value.tzinfo, loaded.tzinfo
    if zone is not other and not (
        type(zone) is type(other) is datetime.timezone and zone == other and zone.tzname(None) == other.tzname(None)
    ):
        try:
            name = "none" if zone is None else str(zone)
        except LOAD_ERRORS:  # a user's `tzinfo` may raise anything
            name = type(zone).__name__
        raise ValueChangedError(
            place,
            f"a {type(value).__name__} of the time zone {name} would be loaded as one of {other}; use "
            "`.astimezone(datetime.timezone.utc)`, and keep the name of a zone in a field of its own",
        )
    if value.fold != loaded.fold:
        raise ValueChangedError(place, "the `fold` of a time would be lost; use a time in UTC")
    return _equal(value.replace(tzinfo=None), loaded.replace(tzinfo=None), place, todo)


def _memoryview(value: memoryview, loaded: memoryview, place: Place, todo: Todo) -> bool:
    if not value.readonly or value.format != loaded.format or value.shape != loaded.shape:
        raise ValueChangedError(place, "a memoryview is kept as plain bytes that cannot be written; use bytes")
    return _equal(value.tobytes(), loaded.tobytes(), place, todo)


_PLAIN = frozenset({bool, bytes, int, str, type(None)})


def _are_plain(values: Any, loaded: Any) -> bool:
    """Equal, of the same types, and of those whose `==` says all: by the means of C."""
    return (
        _PLAIN.issuperset(map(type, values))
        and list(map(type, values)) == list(map(type, loaded))
        and list(values) == list(loaded)
    )


def _sequence(value: Any, loaded: Any, place: Place, todo: Todo) -> bool:
    if len(value) != len(loaded):
        raise ValueChangedError(place, f"of {len(value)} items {len(loaded)} would be loaded")
    if not _are_plain(value, loaded):
        todo.extend((one, other, (place, f"[{at}]")) for at, (one, other) in enumerate(zip(value, loaded, strict=True)))
    return True


def _mapping(value: dict[Any, Any], loaded: dict[Any, Any], place: Place, todo: Todo) -> bool:
    if len(value) != len(loaded):
        lost = next((key for key in value if key not in loaded), None)
        raise ValueChangedError(
            place, f"the key {shown(lost)} would be lost: its type does not declare it; remove the key, or declare it"
        )
    if not _are_plain(value, loaded):
        for one, other in zip(value, loaded, strict=True):
            todo.append((one, other, (place, f"[key {shown(one)}]")))
    if not _are_plain(value.values(), loaded.values()):
        for (key, one), other in zip(value.items(), loaded.values(), strict=True):
            todo.append((one, other, (place, f"[{shown(key)}]")))
    return True


def _set(value: Any, loaded: Any, place: Place, todo: Todo) -> bool:
    if len(value) != len(loaded):
        raise ValueChangedError(place, f"of {len(value)} members {len(loaded)} would be loaded")
    there = {one: one for one in loaded}
    lost: list[Any] = []
    for one in value:
        match = there.pop(one, _MISSING)
        if match is _MISSING:
            lost.append(one)
        elif type(one) not in _PLAIN or type(one) is not type(match):
            todo.append((one, match, (place, f"[member {shown(one)}]")))
    unmatched = list(there.values())
    if len(lost) > SETS_UNMATCHED_MAX:
        raise ValueChangedError(place, f"the member {shown(lost[0])} would be lost; use a list")
    for one in lost:
        index = next((at for at, other in enumerate(unmatched) if _is_alike(one, other)), None)
        if index is None:
            raise ValueChangedError(place, f"the member {shown(one)} would be lost; use a list")
        del unmatched[index]
    return True


def _is_alike(value: Any, loaded: Any) -> bool:
    try:
        return is_exact(value, loaded)
    except ValueChangedError:
        return False


def _reference(value: Reference, loaded: Reference, place: Place, todo: Todo) -> bool:
    if agent_id(value) != agent_id(loaded) or type(value).__mielin_name__ != type(loaded).__mielin_name__:
        raise ValueChangedError(place, _other_value(value, loaded))
    return value.__dict__["__mielin_cell__"] is None


_MISSING = object()


_kept_members: dict[type, tuple[tuple[str, Any], ...]] = {}


def _members(kind: type) -> tuple[tuple[str, Any], ...]:
    """The attributes that instances keep beside `__dict__`: those of `__slots__`, and of a msgspec struct."""
    remembered = _kept_members.get(kind)
    if remembered is not None:
        return remembered
    members = _kept_members[kind] = tuple(
        (name, member)
        for base in reversed(kind.__mro__)
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType)
    )
    return members


def _read(member: Any, obj: Any) -> Any:
    try:
        return member.__get__(obj)
    except AttributeError:
        return _MISSING


def is_cached_property(kind: type, name: str) -> bool:
    return any(isinstance(vars(base).get(name), functools.cached_property) for base in kind.__mro__)


def _attributes(value: Any, loaded: Any, place: Place, todo: Todo) -> bool:
    kind, exact = type(value), True
    for name, member in _members(kind):
        one, other = _read(member, value), _read(member, loaded)
        if name == "__pydantic_fields_set__":
            exact = exact and one == other
        elif one is not other:
            todo.append((one, other, (place, f".{name}")))
    ones, others = getattr(value, "__dict__", None), getattr(loaded, "__dict__", None)
    if not ones and not others:
        return exact
    ones, others = ones or {}, others or {}
    for name, one in ones.items():
        if name in others:
            if one is not (other := others[name]):
                todo.append((one, other, (place, f".{name}")))
        elif is_cached_property(kind, name):
            exact = False
        else:
            raise ValueChangedError(
                (place, f".{name}"),
                f"an attribute that is no field of {kind.__name__} would be lost; declare it, or remove it",
            )
    for name in others:
        if name not in ones:
            raise ValueChangedError((place, f".{name}"), "an attribute that was removed would be loaded; keep it")
    return exact


def _based_on(base: Callable[[Any, Any, Place, Todo], bool]) -> Callable[[Any, Any, Place, Todo], bool]:
    """Compares instances of a subclass of a built-in type: the base's content, and their own attributes."""

    def compare(value: Any, loaded: Any, place: Place, todo: Todo) -> bool:
        return base(value, loaded, place, todo) and _attributes(value, loaded, place, todo)

    return compare


def _text(value: Any, loaded: Any, place: Place, todo: Todo) -> bool:
    return _equal("".join(value), "".join(loaded), place, todo)


def _reduced(value: Any, loaded: Any, place: Place, todo: Todo) -> bool:
    """Compares by the parts from which `copy` would rebuild the value.  Raises `ValueChangedError` for a type without them."""
    if getattr(value, "maxlen", None) != getattr(loaded, "maxlen", None):
        raise ValueChangedError(place, "the maxlen of a deque would be lost; use a deque without one")
    try:
        parts = [_parts(value), _parts(loaded)]
    except LOAD_ERRORS as error:
        raise ValueChangedError(
            place, f"a {type(value).__name__} cannot be compared with what would be loaded: {error}"
        ) from error
    todo.append((parts[0], parts[1], place))
    return True


def _parts(value: Any) -> Any:
    made = value.__reduce_ex__(4)
    return tuple(list(part) if isinstance(part, Iterator) else part for part in made) if type(made) is tuple else made


_COMPARE: dict[type, Callable[[Any, Any, Place, Todo], bool]] = {
    **dict.fromkeys(
        (bool, bytearray, bytes, int, str, type(None), datetime.date, datetime.timedelta, uuid.UUID, complex), _equal
    ),
    float: _float,
    decimal.Decimal: _decimal,
    datetime.datetime: _time,
    datetime.time: _time,
    memoryview: _memoryview,
    list: _sequence,
    tuple: _sequence,
    dict: _mapping,
    set: _set,
    frozenset: _set,
    **dict.fromkeys((type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, object), _identical),
}


_known: dict[type, Callable[[Any, Any, Place, Todo], bool]] = {}
CLASSES_MAX = 1024
"""Users' classes that are remembered; a program has a few dozen."""


def _remembered(kind: type) -> Callable[[Any, Any, Place, Todo], bool]:
    if len(_known) >= CLASSES_MAX:
        _known.clear()
        _kept_members.clear()
    compare = _known[kind] = _comparer(kind)
    return compare


_HOLDERS = (int, float, bytes, bytearray, list, dict, set, frozenset)
"""What a value of these types holds is no attribute of it."""


def _comparer(kind: type) -> Callable[[Any, Any, Place, Todo], bool]:
    """For a type that is met the first time."""
    if issubclass(kind, (enum.Enum, type)):
        return _identical
    if issubclass(kind, Reference):
        return _reference
    if issubclass(kind, tuple):
        return _based_on(_sequence)
    if issubclass(kind, str):
        return _based_on(_text)
    is_ordinary = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    if (is_ordinary and not issubclass(kind, _HOLDERS)) or hasattr(kind, "__struct_fields__"):
        return _attributes
    return _reduced
