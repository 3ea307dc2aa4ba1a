"""What an agent class means: its fields, handlers and versions, with a codec for each.  Built when a class is first used."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from mielin_cells.core.agent import Agent, Field, Handler, Upgrade, agent_id, classes, make_ref
from mielin_cells.core.buffer import Buffer
from mielin_cells.core.ids import AgentId
from mielin_cells.core.state import BUCKETS, PAGE_BYTES, BufferDelta, StateDelta, StoredState, TableDelta, TableStore
from mielin_cells.core.table import Table
from mielin_cells.errors import BadArguments, FieldRefused, StateTooNew, StateUpgradeFailed

_SCALARS = (bool, bytes, float, int, str, type(None))


def _enc_hook(value: Any) -> Any:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Agent):
        return [type(value)._wire_name, agent_id(value)]
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise NotImplementedError(f"a {type(value).__name__} cannot be stored")


def _dec_hook(wanted: type, value: Any) -> Any:
    if issubclass(wanted, AgentId):
        return wanted(value)
    if issubclass(wanted, Agent):
        name, agent = value
        cls = classes.get(name)
        if cls is None or not issubclass(cls, wanted):
            raise ValueError(f"a reference to a {name}, where a {wanted._wire_name} is expected")
        return make_ref(cls, agent)
    if hasattr(wanted, "model_validate"):
        return wanted.model_validate(value)
    raise NotImplementedError(f"{wanted!r} cannot be loaded")


_encode = msgspec.msgpack.Encoder(enc_hook=_enc_hook).encode
_plain = msgspec.msgpack.Decoder().decode

LOAD_ERRORS = (msgspec.MsgspecError, ValueError, TypeError, NotImplementedError, OverflowError, RecursionError)
"""What encoding or decoding a user's value may raise; each is reported with the path of the value."""


def _decoder(kind: Any, path: str) -> Callable[[bytes], Any]:
    """A strict decoder for a declared type.  Raises `FieldRefused` for a type that cannot be stored."""
    try:
        _check(msgspec.inspect.type_info(kind), path, set())
        return msgspec.msgpack.Decoder(kind, dec_hook=_dec_hook).decode
    except (TypeError, NotImplementedError, NameError) as error:
        raise FieldRefused(f"{path}: {error}.", path=path) from error


def _check(info: Any, path: str, seen: set[Any]) -> None:
    if isinstance(info, msgspec.inspect.AnyType):
        raise FieldRefused(
            f"{path}: a type without a declared content cannot be stored; say what it holds, as list[int].", path=path
        )
    if isinstance(info, msgspec.inspect.CustomType):
        if not (issubclass(info.cls, (Agent, AgentId)) or hasattr(info.cls, "model_validate")):
            raise FieldRefused(f"{path}: {info.cls.__name__} cannot be stored.", path=path)
        return
    if isinstance(info, msgspec.inspect.RawType):
        return
    cls = getattr(info, "cls", None)
    if cls is not None:
        if cls in seen:
            return
        seen.add(cls)
    for name in getattr(info, "__struct_fields__", ()):
        _walk(getattr(info, name), path, seen)


def _walk(value: Any, path: str, seen: set[Any]) -> None:
    if isinstance(value, msgspec.inspect.Field):
        _check(value.type, f"{path}.{value.name}", seen)
    elif isinstance(value, msgspec.inspect.Type):
        _check(value, path, seen)
    elif isinstance(value, (tuple, list)):
        for item in value:
            _walk(item, path, seen)


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """A state field.  `kind` is "plain", "table" or "buffer"; a table has two codecs, for keys and values."""

    name: str
    path: str
    kind: str
    type: Any
    decode: Callable[[bytes], Any]
    decode_key: Callable[[bytes], Any] | None
    has_default: bool
    default: bytes | None
    """Encoded, so that every agent gets a fresh copy."""

    def encode(self, value: Any) -> bytes:
        return _encode(value)


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """A handler and the codecs of its arguments (by name) and result."""

    name: str
    path: str
    fn: Callable[..., Any]
    cancellable: bool
    tries: int | None
    _params: type[msgspec.Struct]
    _decode_params: Callable[[bytes], Any]
    _decode_result: Callable[[bytes], Any]

    def encode_args(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Raises `BadArguments` before anything is sent."""
        try:
            data = _encode(self._params(*args, **kwargs))
            self._decode_params(data)
        except LOAD_ERRORS as error:
            raise BadArguments(f"{self.path}: {error}.", handler=self.name) from error
        return data

    def decode_args(self, data: bytes) -> dict[str, Any]:
        """A fresh copy for each run.  Raises `BadArguments`."""
        try:
            return msgspec.structs.asdict(self._decode_params(data))
        except LOAD_ERRORS as error:
            raise BadArguments(
                f"{self.path}: the message does not fit its signature: {error}.", handler=self.name
            ) from error

    def encode_result(self, value: Any) -> bytes:
        """Raises `BadArguments` if the value is not of the declared result type: the turn then fails."""
        try:
            data = _encode(value)
            self._decode_result(data)
        except LOAD_ERRORS as error:
            raise BadArguments(f"{self.path} returned what it does not declare: {error}.", handler=self.name) from error
        return data

    def decode_result(self, data: bytes) -> Any:
        try:
            return self._decode_result(data)
        except LOAD_ERRORS as error:
            raise BadArguments(
                f"{self.path}: the answer does not fit its declared result: {error}.", handler=self.name
            ) from error


class Spec:
    """An agent class, understood."""

    def __init__(self, cls: type[Agent]) -> None:
        self.cls = cls
        self.name = cls._wire_name
        self.version = cls._version
        hints = self._hints()
        self.fields: dict[str, FieldSpec] = {}
        self.handlers: dict[str, HandlerSpec] = {}
        self.upgrades: dict[int, Upgrade] = {}
        for name in dir(cls):
            member = inspect.getattr_static(cls, name)
            if isinstance(member, Field):
                self.fields[name] = self._field(name, hints[name], member)
            elif isinstance(member, Handler):
                self.handlers[name] = self._handler(member)
            elif isinstance(member, Upgrade):
                self.upgrades[member.from_version] = member

    def _hints(self) -> dict[str, Any]:
        known: dict[str, Any] = {c.__name__: c for c in classes.values()}
        try:
            return typing.get_type_hints(self.cls, localns={**known, self.cls.__name__: self.cls}, include_extras=True)
        except (NameError, TypeError) as error:
            raise FieldRefused(f"{self.name}: an annotation cannot be resolved: {error}.", path=self.name) from error

    def _field(self, name: str, kind: Any, member: Field) -> FieldSpec:
        path, defaults = f"{self.name}.{name}", self.cls._defaults
        origin = typing.get_origin(kind) or kind
        if origin is Table:
            arguments = typing.get_args(kind)
            if len(arguments) != 2:
                raise FieldRefused(f"{path}: say what the table holds, as Table[str, int].", path=path)
            decode, decode_key = _decoder(arguments[1], f"{path}[value]"), _decoder(arguments[0], f"{path}[key]")
            return FieldSpec(name, path, "table", kind, decode, decode_key, True, None)
        if origin is Buffer:
            return FieldSpec(name, path, "buffer", kind, _plain, None, True, None)
        decode = _decoder(kind, path)
        default = None
        if name in defaults:
            try:
                default = _encode(defaults[name])
                decode(default)
            except LOAD_ERRORS as error:
                raise FieldRefused(f"{path}: its default does not fit its type: {error}.", path=path) from error
        options = typing.get_args(kind) if origin in (typing.Union, types.UnionType) else (kind,)
        member.is_scalar = all(option in _SCALARS for option in options)
        return FieldSpec(name, path, "plain", kind, decode, None, name in defaults, default)

    def _handler(self, member: Handler[Any, Any]) -> HandlerSpec:
        path = f"{self.name}.{member.name}"
        known: dict[str, Any] = {c.__name__: c for c in classes.values()}
        try:
            hints = typing.get_type_hints(
                member.fn, localns={**known, self.cls.__name__: self.cls}, include_extras=True
            )
        except (NameError, TypeError) as error:
            raise FieldRefused(f"{path}: an annotation cannot be resolved: {error}.", path=path) from error
        fields: list[Any] = []
        for parameter in list(inspect.signature(member.fn).parameters.values())[1:]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise FieldRefused(f"{path}: messages carry names; *{parameter.name} cannot be sent.", path=path)
            if parameter.name not in hints:
                raise FieldRefused(f"{path}: parameter {parameter.name!r} has no type.", path=path)
            kind = hints[parameter.name]
            _decoder(kind, f"{path}({parameter.name})")
            if parameter.default is parameter.empty:
                fields.append((parameter.name, kind))
            else:
                copy, decode = _encode(parameter.default), _decoder(kind, f"{path}({parameter.name})")
                fields.append((parameter.name, kind, msgspec.field(default_factory=functools.partial(decode, copy))))
        if "return" not in hints:
            raise FieldRefused(f"{path}: say what it returns, as `-> int` or `-> None`.", path=path)
        params = msgspec.defstruct(f"{self.cls.__name__}_{member.name}", fields, forbid_unknown_fields=True)
        return HandlerSpec(
            member.name, path, member.fn, member.cancellable, member.tries, params,
            msgspec.msgpack.Decoder(params, dec_hook=_dec_hook).decode, _decoder(hints["return"], f"{path} -> result"),
        )  # fmt: skip

    def overrides(self, name: str) -> bool:
        """True if the class has this hook of its own."""
        return getattr(self.cls, name) is not getattr(Agent, name)

    def initial(self, **state: Any) -> StateDelta:
        """The encoded state of a new agent: what is given, and defaults.  Raises `BadArguments` naming the field."""
        extra = [name for name in state if name not in self.fields]
        missing = [f.name for f in self.fields.values() if not f.has_default and f.name not in state]
        if extra or missing:
            what = f"no field {extra[0]!r}" if extra else f"field {missing[0]!r} needs a value"
            raise BadArguments(f"{self.name}: {what}.", handler="spawn")
        delta = StateDelta(plain={}, tables={}, buffers={}, removed=[])
        for field in self.fields.values():
            value = state.get(field.name, self.cls._defaults.get(field.name))
            try:
                if field.kind == "table":
                    delta.tables[field.name] = _table_of(field, value)
                elif field.kind == "buffer":
                    delta.buffers[field.name] = _buffer_of(value)
                elif field.name in state:
                    data = _encode(value)
                    field.decode(data)
                    delta.plain[field.name] = data
                elif field.default is not None:
                    delta.plain[field.name] = field.default
            except LOAD_ERRORS as error:
                raise BadArguments(f"{field.path}: {error}.", handler="spawn") from error
        return delta


def _items(table: TableStore) -> list[tuple[bytes, bytes]]:
    return [item for number in range(BUCKETS) for item in table.items_in(number)]


def _table_of(field: FieldSpec, value: Any) -> TableDelta:
    assert field.decode_key is not None
    sets: dict[bytes, bytes] = {}
    for key, item in dict(getattr(value, "_content", value) or {}).items():
        data = _encode(item)
        field.decode(data)
        sets[_encode(field.decode_key(_encode(key)))] = (
            data  # as the table itself writes keys: 1 is 1.0 in Table[float, ...]
        )
    return TableDelta(sets=sets, dels=[])


def _buffer_of(value: Any) -> BufferDelta:
    data = bytes(value) if value is not None else b""
    pages = {at // PAGE_BYTES: data[at : at + PAGE_BYTES] for at in range(0, len(data), PAGE_BYTES)}
    return BufferDelta(size=len(data), pages=pages)


_specs: dict[type[Agent], Spec] = {}


def spec_of(cls: type[Agent]) -> Spec:
    """The spec of a class, built at its first use.  Raises `FieldRefused` naming what cannot be stored or sent."""
    spec = _specs.get(cls)
    if spec is None:
        spec = _specs[cls] = Spec(cls)
    return spec


def upgrade_state(spec: Spec, state: StoredState, version: int) -> StateDelta | None:
    """What brings a stored state of class version `version` to the class's own; None if it is that already.

    Raises `StateTooNew` with both versions, or `StateUpgradeFailed` naming the step; `state` is not changed.
    """
    if version == spec.version:
        return None
    facts = {"have": version, "need": spec.version}
    if version > spec.version:
        raise StateTooNew(
            f"The state is of {spec.name} version {version}; this code has version {spec.version}. Deploy the newer code.",
            **facts,
        )
    values: dict[str, object] = {name: _plain(data) for name, data in state.plain.items()}
    for name, table in state.tables.items():
        values[name] = {_plain(k): _plain(v) for k, v in _items(table)}
    for name, buffer in state.buffers.items():
        values[name] = b"".join(buffer.page(number) for number in range(-(-buffer.size // PAGE_BYTES)))
    for step in range(version, spec.version):
        found = spec.upgrades.get(step)
        if found is None:
            raise StateUpgradeFailed(f"{spec.name} has no upgrade from version {step}; write one.", step=step, **facts)
        try:
            values = found.fn(spec.cls, values)
        except Exception as error:
            raise StateUpgradeFailed(
                f"The upgrade of {spec.name} from version {step} raised {type(error).__name__}: {error}.",
                step=step,
                **facts,
            ) from error
    return _replaced(spec, state, values, facts)


def _replaced(spec: Spec, state: StoredState, values: dict[str, object], facts: dict[str, Any]) -> StateDelta:
    typed: dict[str, Any] = {}
    try:
        for name, value in values.items():
            field = spec.fields.get(name)
            plain = field is not None and field.kind == "plain"
            typed[name] = (
                msgspec.convert(value, field.type, dec_hook=_dec_hook) if plain and field is not None else value
            )
        delta = spec.initial(**typed)
    except (*LOAD_ERRORS, BadArguments) as error:
        raise StateUpgradeFailed(f"The upgraded state of {spec.name} does not load: {error}.", **facts) from error
    for name, table in state.tables.items():
        if name in delta.tables:
            sets = delta.tables[name].sets
            delta.tables[name].dels.extend(key for key, _ in _items(table) if key not in sets)
    old = [*state.plain, *state.tables, *state.buffers]
    gone = [name for name in old if name not in delta.plain and name not in delta.tables and name not in delta.buffers]
    changed = [
        name for name in old if name in spec.fields and name not in getattr(state, _SHELF[spec.fields[name].kind])
    ]
    delta.removed.extend([*gone, *changed])
    return delta


_SHELF = {"plain": "plain", "table": "tables", "buffer": "buffers"}
