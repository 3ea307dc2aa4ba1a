"""Errors that a handler declares (`raises=`): they reach the asker as the same class, with the same arguments and attributes.

An exception is rebuilt from its `args` and attributes, without its `__init__`, which ran where the exception was raised.  Classes that
keep data in other places cannot be rebuilt, and are refused.
"""

from __future__ import annotations

import builtins
import datetime
import decimal
import inspect
import types
import typing
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from mielin_cells.agents.values.codec import Codec
from mielin_cells.errors import FieldRefused, described, storable

Resolve: TypeAlias = Callable[[Any], dict[str, Any]]

_UNFIT: dict[type[BaseException], str] = {
    AttributeError: "keeps the object that it speaks of",
    BaseExceptionGroup: "holds other exceptions; declare those, and raise one of them",
    ImportError: "keeps what its arguments do not say",
    NameError: "keeps what its arguments do not say",
    StopAsyncIteration: "cannot leave an `async def`",
    StopIteration: "cannot leave an `async def`",
    SyntaxError: "keeps what its arguments do not say",
    UnicodeError: "keeps what its arguments do not say",
}
_BUILT_IN = frozenset(kind for kind in vars(builtins).values() if isinstance(kind, type))
_BUILT_IN_INIT = Exception.__init__
_OPEN = (Any, object, inspect.Parameter.empty)


class Unsendable(Exception):
    """An argument or attribute that would reach the caller as another value."""


def check_declared(classes: Any, handler: str) -> tuple[type[Exception], ...]:
    """The classes of `raises=`.  Raises `FieldRefused` for what is no tuple of exception classes that can be made again."""
    if type(classes) is not tuple:
        raise FieldRefused(
            f"Handler {handler}: raises = {classes!r} is no tuple of exception classes; write raises=(SoldOut,).",
            path=handler,
        )
    names = set[str]()
    for cls in classes:
        why = _why_not(cls)
        if why:
            raise FieldRefused(f"Handler {handler}: raises names {_name(cls)}, which {why}.", path=handler)
        if cls.__name__ in names:
            raise FieldRefused(f"Handler {handler}: raises names two classes {cls.__name__}; rename one.", path=handler)
        names.add(cls.__name__)
    return classes


def _name(cls: Any) -> str:
    return cls.__name__ if isinstance(cls, type) else repr(cls)


def _why_not(cls: Any) -> str:
    """Why exceptions of the class cannot be made again; "" if they can."""
    if not isinstance(cls, type) or not issubclass(cls, Exception):
        return "is no class of `Exception`s"
    for base, why in _UNFIT.items():
        if issubclass(cls, base):
            return why
    own = [base for base in cls.__mro__ if base not in _BUILT_IN]
    for base in own:
        if "__new__" in vars(base):
            return "has a `__new__`, so it cannot be made again from its arguments; use `__init__`"
        if vars(base).get("__slots__"):
            return "keeps values in `__slots__`, which do not travel; remove the slots"
        if issubclass(cls, OSError) and "__init__" in vars(base):
            return "is an OSError with an `__init__` of its own, so it cannot be made again; derive it from Exception"
    try:
        cls.__new__(cls)
    except Exception as error:  # noqa: BLE001 - of a class written in another language it may be any
        return f"cannot be made from Python ({described(error)}); raise one of your own instead"
    return ""


class Declared:
    """The declared errors of one handler, with codecs for their arguments and attributes."""

    def __init__(self, classes: tuple[type[Exception], ...], path: str, resolve: Resolve) -> None:
        """Raises `FieldRefused` for a parameter of an `__init__` whose type cannot be sent."""
        self.classes = classes
        self._resolve = resolve
        self._hints: dict[type[Exception], dict[str, Codec]] = {}
        for cls in classes:
            self._hints[cls] = self._typed(cls, f"{path} -> {cls.__name__}")

    def _typed(self, cls: type[Exception], path: str) -> dict[str, Codec]:
        """Codecs by name, of attributes that the class annotates and of parameters of its `__init__`."""
        codecs: dict[str, Codec] = {}
        init = cls.__init__
        if isinstance(init, types.FunctionType):
            hints = self._resolve(init)
            for name, parameter in inspect.signature(init).parameters.items():
                variable = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
                kind = hints.get(name, inspect.Parameter.empty)
                if not variable and kind not in _OPEN and not isinstance(kind, typing.TypeVar):
                    codecs[name] = Codec(kind, f"{path}({name})")
        for base in cls.__mro__:
            if base not in _BUILT_IN:
                for name, kind in self._resolve(base).items():
                    if name not in codecs and kind not in _OPEN:
                        try:
                            codecs[name] = Codec(kind, f"{path}.{name}")
                        except FieldRefused:
                            continue  # perhaps it never has a value, or a plain one
        return codecs

    def has(self, error: BaseException) -> bool:
        return isinstance(error, self.classes)

    # ---- on its way ----------------------------------------------------------------------------------------------

    def encode(self, error: BaseException) -> bytes:
        """Raises `Unsendable`, naming what the caller would not get as it is."""
        cls: Any = type(error)
        if _why_not(cls):
            raise Unsendable(f"a {cls.__name__} cannot be made again: it {_why_not(cls)}")
        hints = self._hints_of(cls)
        parameters = list(inspect.signature(cls.__init__).parameters) if cls.__init__ is not _BUILT_IN_INIT else []
        notes = [*getattr(error, "__notes__", ())]
        if error.__cause__ is not None:
            notes.append(f"caused by {described(error.__cause__)}")
        attributes = {name: value for name, value in vars(error).items() if name != "__notes__"}
        try:
            args = [
                self._packed(value, f"argument {at + 1}", hints, parameters) for at, value in enumerate(_args(error))
            ]
            packed = {
                name: self._packed(value, f"attribute {name!r}", hints, [name]) for name, value in attributes.items()
            }
            return msgspec.msgpack.encode(
                (cls.__name__, cls.__module__, args, packed, [storable(str(n)) for n in notes])
            )
        except Unsendable:
            raise
        except Exception as broken:  # whatever a user's value raises
            raise Unsendable(described(broken)) from broken

    def _packed(self, value: Any, what: str, hints: dict[str, Codec], names: Sequence[str]) -> Any:
        try:
            return pack(value)
        except Unsendable as plain:
            for name in names:
                data = _kept(value, hints.get(name))
                if data is not None:
                    return ["typed", name, data]
            raise Unsendable(f"{what}: {plain}; annotate it in `__init__`, or give plain data") from plain

    def decode(self, data: bytes) -> Exception | None:
        """The exception as it was raised; None if this process does not know its class.  Raises what unreadable bytes do."""
        name, module, args, packed, notes = msgspec.msgpack.decode(data)
        cls = self._class(name, module)
        if cls is None:
            return None
        hints = self._hints_of(cls)
        values = [_unpacked(value, hints) for value in args]
        is_made_by_args = issubclass(cls, OSError)
        error: Exception = cls(*values) if is_made_by_args else cls.__new__(cls)
        if not is_made_by_args:
            error.args = tuple(values)
        vars(error).update({attribute: _unpacked(value, hints) for attribute, value in packed.items()})
        for note in notes:
            error.add_note(note)
        return error

    def _class(self, name: str, module: str) -> type[Exception] | None:
        """A declared class, or one derived from it: of two with one name, that of the module where it was raised."""
        known, pending = list[type[Exception]](), list(self.classes)
        while pending:
            cls = pending.pop(0)
            if cls.__name__ == name and cls not in known:
                known.append(cls)
            pending.extend(cls.__subclasses__())
        declared = [cls for cls in known if cls in self.classes]
        here = [cls for cls in known if cls.__module__ == module]
        return next(iter(here or declared or known), None)

    def _hints_of(self, cls: type[Exception]) -> dict[str, Codec]:
        if cls not in self._hints:
            self._hints[cls] = self._typed(cls, cls.__name__)
        return self._hints[cls]


def _kept(value: Any, codec: Codec | None) -> bytes | None:
    """The bytes of a value that a load gives back exactly; None if it is of another type than this parameter."""
    try:
        return codec.keep(value)[0] if codec is not None else None
    except Exception:  # noqa: BLE001 - whatever a user's value raises
        return None


def _args(error: BaseException) -> tuple[Any, ...]:
    """The arguments that rebuild the exception.  An OSError does not have all of them in `args`."""
    made: Any = error.__reduce__() if isinstance(error, OSError) else None
    return made[1] if made is not None else error.args


# ---- plain values, as they are -------------------------------------------------------------------------------------

_Kind: TypeAlias = tuple[str, Callable[[Any], list[Any]], Callable[[list[Any]], Any]]
"""The name of a type, the parts of a value, and how the value is rebuilt from them."""


def _time_kind(kind: Any) -> _Kind:
    return (
        kind.__name__,
        lambda value: [value.isoformat(), value.fold],
        lambda parts: kind.fromisoformat(parts[0]).replace(fold=parts[1]),
    )


_TIMES = (datetime.datetime, datetime.time)
_KINDS: dict[type, _Kind] = {
    int: ("int", lambda value: [f"{value:x}"], lambda parts: int(parts[0], 16)),  # beyond what msgpack holds
    list: ("list", list, list),
    tuple: ("tuple", list, tuple),
    set: ("set", list, set),
    frozenset: ("frozenset", list, frozenset),
    dict: (
        "dict", lambda value: [part for item in value.items() for part in item],
        lambda parts: dict(zip(parts[::2], parts[1::2], strict=True)),
    ),
    bytearray: ("bytearray", lambda value: [bytes(value)], lambda parts: bytearray(*parts)),
    complex: ("complex", lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    decimal.Decimal: ("decimal", lambda value: [str(value)], lambda parts: decimal.Decimal(*parts)),
    uuid.UUID: ("uuid", lambda value: [str(value)], lambda parts: uuid.UUID(*parts)),
    datetime.date: ("date", lambda value: [value.isoformat()], lambda parts: datetime.date.fromisoformat(*parts)),
    datetime.timedelta: (
        "timedelta", lambda value: [value.days, value.seconds, value.microseconds], lambda parts: datetime.timedelta(*parts),
    ),
    datetime.datetime: _time_kind(datetime.datetime),
    datetime.time: _time_kind(datetime.time),
}  # fmt: skip
_MAKE = {name: make for name, _, make in _KINDS.values()}


def pack(value: Any) -> Any:
    """What msgpack keeps as it is; else a type's name and the parts of the value.  Raises `Unsendable` for any other value."""
    kind = type(value)
    if value is None or kind in (bool, float, bytes) or (kind is int and -(2**63) <= value < 2**64):
        return value
    if kind is str:
        value.encode()  # raises for half a character
        return value
    if kind in _KINDS:
        name, split, make = _KINDS[kind]
        parts = split(value)
        if kind not in _TIMES or repr(make(parts)) == repr(value):  # a time zone with a name is not in the text
            return [name, [pack(part) for part in parts]]
    raise Unsendable(f"a {kind.__name__} cannot be sent without a declared type")


def unpack(packed: Any) -> Any:
    """The packed value, if all of it is plain."""
    return _unpacked(packed, {})


def _unpacked(packed: Any, hints: dict[str, Codec]) -> Any:
    if not isinstance(packed, list):
        return packed
    if packed[0] == "typed":
        return hints[packed[1]].decode(packed[2])
    name, parts = packed
    return _MAKE[name]([_unpacked(part, hints) for part in parts])
