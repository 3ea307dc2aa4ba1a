"""Proofs, from the declared type alone, that a load gives a value as it was."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import inspect
import operator
import types
import typing
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect as kinds

from mielin_cells.agents.values.shape import SCALARS

Proof = Callable[[Any], bool] | None
"""Whether a value of one exact type is loaded as it was; None: always."""


def no(value: Any) -> bool:
    return False


def _is_free(info: Any) -> bool:
    """No limit is declared that a value could break."""
    limits = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")
    return all(getattr(info, limit, None) is None for limit in limits)


def proofs(info: Any, within: frozenset[type] = frozenset()) -> dict[type, Proof]:
    """Proofs by the exact type of a value.  A value of any other type is decoded and compared.  `within`: classes that hold it."""
    if isinstance(info, kinds.UnionType):
        union: dict[type, Proof] = {}
        for part in info.types:
            union.update(proofs(part, within))
        return union
    if not _is_free(info):
        return {}
    scalar = SCALARS.get(type(info))
    if scalar is not None:
        return {scalar: None}
    if isinstance(info, kinds.ByteArrayType):
        return {bytearray: lambda value: True}  # not None: it can be changed
    if isinstance(info, (kinds.ListType, kinds.SetType, kinds.FrozenSetType, kinds.VarTupleType)):
        made = {kinds.ListType: list, kinds.SetType: set, kinds.FrozenSetType: frozenset}.get(type(info), tuple)
        return {made: _all(proofs(info.item_type, within))}
    if isinstance(info, kinds.TupleType):
        return {tuple: _each([proofs(part, within) for part in info.item_types])}
    if isinstance(info, kinds.DictType):
        of_keys, of_values = proofs(info.key_type, within), proofs(info.value_type, within)
        if not any(of_keys.values()) and not any(of_values.values()):
            keys_are, values_are = frozenset(of_keys).issuperset, frozenset(of_values).issuperset
            return {dict: lambda value: keys_are(map(type, value)) and values_are(map(type, value.values()))}
        keys, values = _all(of_keys), _all(of_values)
        return {dict: lambda value: keys(value) and values(value.values())}
    if isinstance(info, kinds.EnumType):
        return {} if issubclass(info.cls, enum.Flag) else {info.cls: None}
    if isinstance(info, kinds.UUIDType):
        return {uuid.UUID: None}
    if isinstance(info, kinds.DateTimeType) and info.tz is None:
        return {
            datetime.datetime: lambda value: value.fold == 0 and (value.tzinfo is None or value.tzinfo is datetime.UTC)
        }
    if isinstance(info, (kinds.StructType, kinds.DataclassType, kinds.NamedTupleType)) and info.cls not in within:
        return _of_class(info, within | {info.cls})
    return {}


def _of_class(info: Any, within: frozenset[type]) -> dict[type, Proof]:
    """A class is proved by its fields, if nothing of it runs in a load and its values hold nothing else."""
    cls, names = typing.get_origin(info.cls) or info.cls, [field.name for field in info.fields]
    parts = [proofs(field.type, within) for field in info.fields]
    if hasattr(cls, "__post_init__") or not all(parts):
        return {}
    if isinstance(info, kinds.StructType):
        config = cls.__struct_config__
        return {} if config.dict or config.omit_defaults else {cls: _each(parts, msgspec.structs.astuple)}
    if isinstance(info, kinds.NamedTupleType):
        return {cls: _each(parts)} if cls.__dictoffset__ == 0 else {}
    if not dataclasses.is_dataclass(cls) or [field.name for field in dataclasses.fields(cls)] != names:
        return {}
    if len(cls.__dataclass_fields__) != len(names):  # an `InitVar`, or a class variable
        return {}
    if cls.__new__ is not object.__new__ or cls.__getattribute__ is not object.__getattribute__:
        return {}
    kept = [inspect.getattr_static(cls, name, None) for name in names]
    if cls.__dictoffset__ == 0:
        slots = all(isinstance(member, types.MemberDescriptorType) for member in kept)
        return {cls: _each(parts, _getter(operator.attrgetter, names))} if slots else {}
    if any(hasattr(type(member), "__set__") for member in kept):
        return {}
    get, size = _getter(operator.itemgetter, names), len(names)

    def read(value: Any) -> tuple[Any, ...]:
        held = value.__dict__
        return get(held) if len(held) == size else (None,) * (size + 1)

    return {cls: _each(parts, read)}


def _getter(make: Callable[..., Any], names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if not names:
        return lambda value: ()
    get: Callable[[Any], Any] = make(*names)
    return get if len(names) > 1 else lambda value: (get(value),)


def flat(info: Any) -> dict[type, Proof]:
    """The proofs of values that hold nothing which could be changed."""
    if isinstance(info, kinds.UnionType):
        union: dict[type, Proof] = {}
        for part in info.types:
            union.update(flat(part))
        return union
    parts = [getattr(info, name) for name in ("item_type", "key_type", "value_type") if hasattr(info, name)]
    if not parts and not isinstance(info, kinds.ByteArrayType):
        return {}
    return proofs(info) if all(isinstance(part, tuple(SCALARS)) for part in parts) else {}


def _all(proofs: dict[type, Proof]) -> Callable[[Any], bool]:
    """Whether all of some values are proved."""
    if all(proof is None for proof in proofs.values()):
        are = frozenset(proofs).issuperset
        return lambda values: are(map(type, values))

    def prove(values: Any) -> bool:
        for value in values:
            proof = proofs.get(type(value), no)
            if proof is not None and not proof(value):
                return False
        return True

    return prove


TYPES_MAX = 64
"""Combinations of types of a class's fields that are remembered as proved."""


def _each(
    parts: list[dict[type, Proof]], read: Callable[[Any], tuple[Any, ...]] | None = None
) -> Callable[[Any], bool]:
    """Whether each of the parts that `read` gives is proved by its own."""
    proved: set[tuple[type, ...]] = set()

    def prove(value: Any) -> bool:
        values = value if read is None else read(value)
        types_of = (*map(type, values),)
        if types_of in proved:
            return True
        if len(values) != len(parts):
            return False
        are_scalars = True
        for one, part in zip(values, parts, strict=True):
            proof = part.get(type(one), no)
            if proof is not None:
                if not proof(one):
                    return False
                are_scalars = False
        if are_scalars and len(proved) < TYPES_MAX:
            proved.add(types_of)
        return True

    return prove
