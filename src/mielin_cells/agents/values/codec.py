"""How values of a declared type are kept as bytes, and what is refused because a load would give something else."""

from __future__ import annotations

import collections.abc
import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import msgspec
from msgspec import inspect as kinds

from mielin_cells.agents.reference import Reference, agent_id, classes, known_as, make_ref
from mielin_cells.agents.values import models, proofs
from mielin_cells.agents.values.exact import LOAD_ERRORS, ValueChangedError, check_whole, is_exact, shown
from mielin_cells.errors import FieldRefused
from mielin_cells.log.ids import AgentId


def _enc_hook(value: Any) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Reference):
        return [type(value).__mielin_name__, agent_id(value)]
    if hasattr(value, "model_dump"):
        return models.stored(value)
    return models.unknown(value)


giver: ContextVar[object] = ContextVar("mielin_cells_giver", default=None)
"""While an answer is read: the cluster that gave it, which references in it use."""


def load_hook(wanted: type, value: Any) -> Any:
    """Makes what msgspec cannot: ids, references, and models that validate themselves."""
    if issubclass(wanted, AgentId):
        return wanted(value)
    if issubclass(wanted, Reference):
        if isinstance(value, wanted):  # from an upgrade, which gives values and no bytes
            return value
        name, agent = value
        cls = classes.get(name)
        fits = known_as(cls, wanted) if cls is not None else None
        if fits is None:
            raise ValueError(f"a reference to a {name}, where a {wanted.__mielin_name__} is expected")
        return make_ref(fits, agent, giver.get())
    if models.is_model(wanted):
        return models.loaded(wanted, value)
    raise NotImplementedError(f"{wanted!r} cannot be loaded")


encode = msgspec.msgpack.Encoder(enc_hook=_enc_hook).encode
plain = msgspec.msgpack.Decoder().decode

STACK_MARGIN = 100
"""Calls that a load may be deeper in the stack than the turn that checked the value.  Decoding nests with the value, so
without a margin one that is just within the interpreter's limit would be saved and never load again."""

LOCATE_DEPTH_MAX = 100


def deeper(calls: int, decode: Callable[[bytes], Any], data: bytes) -> Any:
    return decode(data) if calls == 0 else deeper(calls - 1, decode, data)


class Codec:
    """Of one declared type.  `path` names where it is declared.  Raises `FieldRefused` for a type that cannot be stored."""

    __slots__ = (
        "check",
        "decode",
        "evolves",
        "flat",
        "has_refs",
        "has_sets",
        "is_immutable",
        "path",
        "proofs",
        "scalars",
    )

    def __init__(self, kind: Any, path: str) -> None:
        self.path = path
        try:
            info = kinds.type_info(kind)
            nests = _check(info, path, {})
            self.decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(kind, dec_hook=load_hook).decode
        except (TypeError, NotImplementedError, NameError, RecursionError) as error:
            raise FieldRefused(f"{path}: {error}.", path=path) from error
        self.check: Callable[[bytes], Any] = (
            functools.partial(deeper, STACK_MARGIN, self.decode) if nests else self.decode
        )
        """As `decode`, for a value that is to be stored: it must load again, also where less stack is left."""
        self.proofs = proofs.proofs(info)
        """By the exact type of a value, whether a load gives it as it was."""
        self.scalars = frozenset(kind for kind, proof in self.proofs.items() if proof is None)
        """A value of exactly one of these types is loaded as it was."""
        self.is_immutable = not nests and proofs.is_immutable(info)
        """Its values cannot change in the hands of a turn."""
        self.flat = proofs.flat(info)
        """The proofs of values that nobody can change who does not hold the value itself."""
        self.has_sets = proofs.has_sets(info, set())
        """A value can have several encodings, because a set has no order."""
        self.has_refs = proofs.has_refs(info, set())
        """A value can hold references."""
        self.evolves = proofs.has_classes(info)
        """It names classes, which another version of the code may declare otherwise."""

    def is_unchanged(self, value: Any, data: bytes, stored: bytes | None) -> bool:
        """True if the value, encoded as `data`, is what is stored, also if only the order within a set is another."""
        if data == stored:
            return True
        if not self.has_sets or stored is None or len(data) != len(stored):
            return False
        try:
            return is_exact(value, self.decode(stored))
        except ValueChangedError:
            return False

    def whole(self, data: bytes) -> Any:
        """The value of bytes that other code may have written.  Raises `ValueChangedError` if a part of them would be lost."""
        value = self.decode(data)
        if self.evolves:
            check_kept(data, value)
        return value

    def is_proved(self, value: Any) -> bool:
        """True if the value's types alone say that a load gives the same."""
        proof = self.proofs.get(type(value), proofs.no)
        return proof is None or proof(value)

    def keep(self, value: Any) -> tuple[bytes, Any]:
        """The bytes of a value, and what a load gives: the value itself where that is known to be the same.

        Raises `ValueChangedError` with the place in the value, or what a user's type raises.
        """
        data = encode(value)
        return (data, value) if type(value) in self.scalars else self.settle(value, data)

    def settle(self, value: Any, data: bytes) -> tuple[bytes, Any]:
        """As `keep`, of bytes that are made already."""
        proof = self.proofs.get(type(value), proofs.no)
        if proof is None or proof(value):
            return data, value
        loaded = self.check(data)
        return data if is_exact(value, loaded) else encode(loaded), loaded


def check_kept(data: bytes, value: Any) -> None:
    """Raises `ValueChangedError` if a part of the bytes is not in the value that was loaded from them."""
    again = encode(value)
    if again != data:
        check_whole(plain(data), plain(again), models.UNSET)


def reason(value: Any, error: Exception) -> str:
    """Why a value cannot be kept, and where in it: what stands behind the path of the field in an error."""
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


# ---- what can be stored ----------------------------------------------------------------------------------------


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


def _check(info: Any, path: str, seen: dict[Any, bool]) -> bool:
    """Raises `FieldRefused` for what cannot be stored.  True if values can nest without a limit: a type holds itself.

    `seen`: classes met so far; True while their fields are looked at.
    """
    if isinstance(info, kinds.AnyType):
        raise FieldRefused(
            f"{path}: a type without a declared content cannot be stored; say what it holds, as list[int].", path=path
        )
    if isinstance(info, kinds.CustomType):
        if not (issubclass(info.cls, (Reference, AgentId)) or models.is_model(info.cls)):
            what = f"{path}: {info.cls.__name__} cannot be stored; {_instead(info.cls)}."
            raise FieldRefused(what, path=path)
        return models.is_model(info.cls)  # what it holds is its own affair, and may be itself
    if isinstance(info, kinds.RawType):
        return False
    cls = getattr(info, "cls", None)
    if cls in seen:
        return seen[cls]
    if cls is not None:
        seen[cls] = True
    parts = [getattr(info, name) for name in getattr(info, "__struct_fields__", ())]
    nests = _walk(parts, path, seen)
    if cls is not None:
        seen[cls] = False
    return nests


def _walk(value: Any, path: str, seen: dict[Any, bool]) -> bool:
    if isinstance(value, kinds.Field):
        return _check(value.type, f"{path}.{value.name}", seen)
    if isinstance(value, kinds.Type):
        return _check(value, path, seen)
    if isinstance(value, (tuple, list)):
        found = [_walk(item, path, seen) for item in value]  # all of them: each may have to be refused
        return any(found)
    return False
