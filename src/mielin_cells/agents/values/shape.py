"""Walks over msgspec's description of a declared type, and refuses types that cannot be stored."""

from __future__ import annotations

import collections.abc
from collections.abc import Iterator
from typing import Any

from msgspec import inspect as kinds

from mielin_cells.agents.reference import Reference
from mielin_cells.agents.values import models
from mielin_cells.errors import FieldRefused
from mielin_cells.log.ids import AgentId

SCALARS: dict[type, type] = {
    kinds.BoolType: bool,
    kinds.BytesType: bytes,
    kinds.FloatType: float,
    kinds.IntType: int,
    kinds.NoneType: type(None),
    kinds.StrType: str,
}
_CLASSES = (kinds.StructType, kinds.DataclassType, kinds.TypedDictType, kinds.NamedTupleType)
_SETS = (kinds.SetType, kinds.FrozenSetType)
_IMMUTABLE = (
    *SCALARS, kinds.EnumType, kinds.LiteralType, kinds.DateTimeType, kinds.DateType, kinds.TimeType, kinds.TimeDeltaType,
    kinds.UUIDType, kinds.DecimalType, kinds.FrozenSetType, kinds.VarTupleType, kinds.TupleType, kinds.UnionType,
)  # fmt: skip


class Shape:
    """A declared type and every type in it.  Raises `FieldRefused`, with its path, for one that cannot be stored."""

    def __init__(self, info: Any, path: str, *, may_be_any: bool = False) -> None:
        """`may_be_any`: parts without a declared type are allowed."""
        self.info = info
        self._types: list[Any] = []
        self._nests: dict[Any, bool] = {}  # by class; True while its fields are looked at
        self.nests = self._walk(info, path, may_be_any)
        """Values can nest without a limit: a type holds itself."""
        custom = [part.cls for part in self._types if isinstance(part, kinds.CustomType)]
        refs = [cls for cls in custom if issubclass(cls, Reference)]
        pydantic = [cls for cls in custom if models.is_model(cls)]
        self.has_any = self._has(kinds.AnyType)
        """A part has no declared type."""
        self.has_sets = self._has(_SETS)
        """A value can have several encodings, because a set has no order."""
        self.has_refs = bool(refs or pydantic)
        """A value can hold references."""
        self.has_classes = self._has(_CLASSES) or not all(map(models.reads_other_data, pydantic))
        """True if it names classes, which another version of the code may declare differently."""
        self.is_immutable = not self.nests and all(
            isinstance(part, (*_IMMUTABLE, kinds.CustomType)) for part in self._types
        )
        """True if a turn cannot change its values in place."""

    def _has(self, wanted: type | tuple[type, ...]) -> bool:
        return any(isinstance(part, wanted) for part in self._types)

    def _walk(self, info: Any, path: str, may_be_any: bool) -> bool:
        self._types.append(info)
        if isinstance(info, kinds.AnyType) and not may_be_any:
            what = "a type without a declared content cannot be stored; say what it holds, as list[int]"
            raise FieldRefused.at(path, f": {what}.")
        if isinstance(info, kinds.CustomType):
            if not (issubclass(info.cls, (Reference, AgentId)) or models.is_model(info.cls)):
                raise FieldRefused.at(path, f": {info.cls.__name__} cannot be stored; {_instead(info.cls)}.")
            return models.is_model(info.cls)  # what it holds is its own affair, and may be itself
        cls = getattr(info, "cls", None)
        if cls in self._nests:
            return self._nests[cls]
        if cls is not None:
            self._nests[cls] = True
        nests = [self._walk(part, where, may_be_any) for part, where in _parts(info, path)]  # all: each may be refused
        if cls is not None:
            self._nests[cls] = any(nests)
        return any(nests)


def _parts(info: Any, path: str) -> Iterator[tuple[Any, str]]:
    """The types that a type names, each with its path."""
    for name in getattr(info, "__struct_fields__", ()):
        value = getattr(info, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, kinds.Field):
                yield part.type, f"{path}.{part.name}"
            elif isinstance(part, kinds.Type):
                yield part, path


_REMEDIES = {
    "InitVar": "make it a field",
    "Enums must": "give its members values of one of these types, and keep anything else by member, as in a dict",
    "more than one str-like": "these are stored alike: declare one of them, or a tagged msgspec.Struct for each",
    "more than one array-like": "these are stored alike: declare one of them",
    "more than one dict-like": "these are stored alike: declare one of them, or a tagged msgspec.Struct for each",
    "more than one dataclass": "declare one class, or a tagged msgspec.Struct for each",
}
"""What to declare instead, by a part of msgspec's error text."""


def unsupported(error: Exception) -> str:
    """Why msgspec does not take a type, and what to declare instead."""
    text = str(error).rstrip(".")
    return next((f"{text}; {remedy}" for part, remedy in _REMEDIES.items() if part in text), text)


def _instead(cls: type) -> str:
    """What to declare for a class that cannot be stored."""
    if hasattr(cls, "__fspath__"):
        return "keep it as str"
    if hasattr(cls, "__complex__"):  # a number
        return "keep its parts, as a tuple of numbers, or its text"
    if issubclass(cls, collections.abc.Mapping):
        return "declare a dict"
    if issubclass(cls, collections.abc.Iterable):
        return "declare a list, a set or a tuple"
    return "declare a dataclass or plain data of it, or keep it in a `_private` attribute that `on_arrive` sets"
