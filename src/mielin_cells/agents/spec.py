"""What an agent class means: its fields, handlers and versions, with a codec for each.  Built when a class is first used."""

from __future__ import annotations

import functools
import inspect
import itertools
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from mielin_cells.agents.agent import NO_DEFAULT, Agent, Field, Upgrade, is_state
from mielin_cells.agents.buffer import Buffer
from mielin_cells.agents.context import Caller
from mielin_cells.agents.definition import check_default
from mielin_cells.agents.handler import Handler
from mielin_cells.agents.reference import classes
from mielin_cells.agents.table import Table
from mielin_cells.agents.values.annotations import annotations_of, filled, given_types, read_signature
from mielin_cells.agents.values.changes import LOAD_ERRORS, ValueChangedError, reason, shown
from mielin_cells.agents.values.codec import Codec
from mielin_cells.agents.values.proofs import Proof, no
from mielin_cells.agents.values.raises import Declared
from mielin_cells.agents.values.wire import encode, giver, plain
from mielin_cells.errors import (
    BadArguments,
    FieldRefused,
    NoSuchHandler,
    StateTooNew,
    StateUpgradeFailed,
    UsageError,
    described,
    from_wire,
    never,
)
from mielin_cells.log.message import Answer
from mielin_cells.log.state import BUCKETS, PAGE_BYTES, BufferDelta, StateDelta, StoredState, TableDelta, TableStore

PROVED_MAX = 256
"""Combinations of argument types that a handler remembers as safe; more than that are looked at one by one."""


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """A state field.  `kind` is "plain", "table" or "buffer"; a table has two codecs, for keys and values."""

    name: str
    path: str
    kind: str
    type: Any
    codec: Codec
    """Of a plain field, and of a table's values."""
    key_codec: Codec | None
    has_default: bool
    default: bytes | None
    """Of a plain field: encoded, so that every agent gets a fresh copy."""
    content: Any = None
    """Of a table or buffer: what the class gives it first, encoded anew for every agent."""


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """A handler and the codecs of its arguments (by name) and result."""

    name: str
    path: str
    fn: Callable[..., Any]
    cancellable: bool
    tries: int | None
    raises: Declared | None
    """The errors that it declares."""
    _params: type[msgspec.Struct]
    _args: Codec
    _parts: tuple[dict[type, Proof], ...]
    """Of each parameter; a default needs no proof."""
    _result: Codec
    _proved: frozenset[tuple[type, ...]]
    """Types of arguments, given by position, that are loaded as they were: most calls."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Names and types, in order."""
        return {field.name: field.type for field in msgspec.structs.fields(self._params)}

    def encode_args(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Raises `BadArguments` before anything is sent."""
        given: Any = None
        try:
            given = self._params(*args, **kwargs)
            data = encode(given)
            if kwargs or (*map(type, args),) not in self._proved:
                for part, value in zip(self._parts, msgspec.structs.astuple(given) if kwargs else args, strict=False):
                    proof = part.get(type(value), no)
                    if proof is not None and not proof(value):
                        return self._args.settle(given, data)[0]
        except LOAD_ERRORS as error:
            raise BadArguments(f"{self.path}: {reason(given, error)}.", handler=self.name) from error
        return data

    def decode_args(self, data: bytes) -> dict[str, Any]:
        """A fresh copy for each run.  Raises `BadArguments`."""
        try:
            args = self._args
            return msgspec.structs.asdict(args.whole(data) if args.evolves else args.decode(data))
        except LOAD_ERRORS as error:
            raise BadArguments(
                f"{self.path}: the message does not fit its signature: {reason(None, error)}.", handler=self.name
            ) from error

    def encode_result(self, value: Any) -> bytes:
        """Raises `BadArguments` if the value is not of the declared result type: the turn then fails."""
        try:
            data = encode(value)
            if type(value) not in self._result.scalars:
                return self._result.settle(value, data)[0]
            return data
        except LOAD_ERRORS as error:
            why = reason(value, error)
            raise BadArguments(f"{self.path} returned what it does not declare: {why}.", handler=self.name) from error

    def decode_result(self, data: bytes, caller: Caller | None = None) -> Any:
        """`caller`: what references in the result are to use."""
        try:
            if caller is None or not self._result.has_refs:
                return self._result.decode(data)
            token = giver.set(caller)
            try:
                return self._result.decode(data)
            finally:
                giver.reset(token)
        except LOAD_ERRORS as error:
            raise BadArguments(
                f"{self.path}: the answer does not fit its declared result: {error}.", handler=self.name
            ) from error

    def error_of(self, answer: Answer) -> Exception:
        """What an answer that is an error raises: a declared one as its class, if this process knows it."""
        if answer.error is None:
            raise never("answer.error is not None does not hold")
        failed = from_wire(*answer.error)
        if answer.raised is None or self.raises is None:
            return failed
        try:
            return self.raises.decode(answer.raised) or failed
        except LOAD_ERRORS as error:
            failed.add_note(f"It is declared, but cannot be made again here: {described(error)}")
            return failed


def _resolved(annotated: Any, names: dict[str, Any], path: str) -> dict[str, Any]:
    try:
        written = types.SimpleNamespace(__annotations__=annotations_of(annotated)) if callable(annotated) else annotated
        return typing.get_type_hints(written, globalns=names, include_extras=True)
    except Exception as error:  # an annotation is an expression of the user's, and may raise anything
        what = "; import or define it in the module, outside of `if TYPE_CHECKING:` and of functions"
        raise FieldRefused(
            f"{path}: an annotation cannot be resolved: {error}{what if isinstance(error, NameError) else ''}.",
            path=path,
        ) from error


def _parameter(parameter: inspect.Parameter, hints: dict[str, Any], path: str) -> Any:
    """A parameter of a handler as a field of the message.  Raises `FieldRefused` if it cannot be one."""
    name = parameter.name
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        raise FieldRefused(f"{path}: messages carry names; *{name} cannot be sent.", path=path)
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise FieldRefused(f"{path}: messages carry names; remove the `/` behind {name!r}.", path=path)
    if name not in hints:
        raise FieldRefused(f"{path}: parameter {name!r} has no type.", path=path)
    path = f"{path}({name})"
    codec = Codec(hints[name], path)
    if parameter.default is parameter.empty:
        return (name, hints[name]), codec
    copy = _default(parameter.default, codec)
    return (name, hints[name], msgspec.field(default_factory=functools.partial(codec.decode, copy))), codec


def _default(value: Any, codec: Codec) -> bytes:
    """Encoded, so that each use has a fresh copy.  Raises `FieldRefused`."""
    try:
        return codec.keep(value)[0]
    except LOAD_ERRORS as error:
        path = codec.path
        raise FieldRefused(f"{path}: its default does not fit its type: {reason(value, error)}.", path=path) from error


class Spec:
    """An agent class, understood."""

    def __init__(self, cls: type[Agent]) -> None:
        self.cls = cls
        self.name = cls.__mielin_name__
        self.version = cls.__mielin_version__
        if "__dataclass_fields__" in vars(cls):
            raise FieldRefused(
                f"{self.name}: an agent is no dataclass; remove the decorator, its fields stay.", path=self.name
            )
        self._given = given_types(cls)
        hints = self._hints()
        self.fields: dict[str, FieldSpec] = {}
        self.handlers: dict[str, HandlerSpec] = {}
        self.upgrades = self._upgrades()
        for name in dir(cls):
            member = inspect.getattr_static(cls, name)
            if isinstance(member, Field):
                self.fields[name] = self._field(name, hints[name], member)
            elif isinstance(member, Handler):
                self.handlers[name] = self._handler(member)

    def _upgrades(self) -> dict[int, Upgrade]:
        """By the version that they lead from; a derived class's replaces an inherited one."""
        found: dict[int, Upgrade] = {}
        for base in reversed(self.cls.__mro__):
            own = [member for member in vars(base).values() if isinstance(member, Upgrade)]
            steps = [member.from_version for member in own]
            for step in steps:
                if steps.count(step) > 1:
                    raise FieldRefused(f"{self.name} has two upgrades from version {step}; keep one.", path=self.name)
            found.update(zip(steps, own, strict=True))
        return found

    def _names(self, module: dict[str, Any], within: type) -> dict[str, Any]:
        """What an annotation may name: what its module has, the classes around it, and any agent class of this process."""
        return {
            **{cls.__name__: cls for cls in classes.values()},
            **module,
            **{name: member for name, member in vars(within).items() if isinstance(member, type)},
            **{base.__name__: base for base in reversed(self.cls.__mro__) if issubclass(base, Agent)},
        }

    def _hints(self) -> dict[str, Any]:
        """The types of the state fields.  Other annotations are not looked at: what they name may not be there."""
        hints: dict[str, Any] = {}
        for base in reversed(self.cls.__mro__):
            is_agent = issubclass(base, Agent)  # else its fields are on the first agent class that is derived from it
            own = {
                name: kind for name, kind in annotations_of(base).items()
                if is_state(name, kind)
                and isinstance(vars(base).get(name) if is_agent else inspect.getattr_static(self.cls, name, None), Field)
            }  # fmt: skip
            if own:
                names = self._names(vars(inspect.getmodule(base) or types), base)
                resolved = _resolved(types.SimpleNamespace(__annotations__=own), names, self.name)
                hints.update(filled(resolved, self._given.get(base)))
        return hints

    def _field(self, name: str, kind: Any, member: Field) -> FieldSpec:
        path, has_default = f"{self.name}.{name}", member.default is not NO_DEFAULT
        origin = typing.get_origin(kind) or kind
        content = member.default if has_default else None
        check_default(path, content)
        try:
            if origin is Table:
                arguments = typing.get_args(kind)
                if len(arguments) != 2:
                    raise FieldRefused(f"{path}: say what the table holds, as Table[str, int].", path=path)
                key, value = Codec(arguments[0], f"{path}[key]"), Codec(arguments[1], f"{path}[value]")
                if key.has_sets:
                    raise FieldRefused(
                        f"{path}[key]: a set has no order, so it cannot be a key; use a tuple.", path=path
                    )
                table = FieldSpec(name, path, "table", kind, value, key, True, None, content)
                _table_of(table, content)
                return table
            if origin is Buffer:
                _buffer_of(content)
                return FieldSpec(name, path, "buffer", kind, Codec(bytes, path), None, True, None, content)
        except FieldRefused:
            raise
        except LOAD_ERRORS as error:
            why = reason(content, error)
            raise FieldRefused(f"{path}: its default does not fit its type: {why}.", path=path) from error
        codec = Codec(kind, path)
        default = _default(member.default, codec) if has_default else None
        member.is_scalar = codec.is_immutable
        return FieldSpec(name, path, "plain", kind, codec, None, has_default, default)

    def _handler(self, member: Handler[Any, Any]) -> HandlerSpec:
        path, fn = f"{self.name}.{member.name}", member.fn
        owner = next(base for base in self.cls.__mro__ if member in vars(base).values())
        resolved = _resolved(fn, self._names(inspect.unwrap(fn).__globals__, owner), path)
        hints = filled(resolved, self._given.get(owner))
        parameters = list(read_signature(fn).parameters.values())
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise FieldRefused(f"{path}: a handler is a method; its first parameter is `self`.", path=path)
        fields: list[Any] = []
        keywords: list[Any] = []
        codecs: dict[str, Codec] = {}
        for parameter in parameters[1:]:
            field, codecs[parameter.name] = _parameter(parameter, hints, path)
            (keywords if parameter.kind is inspect.Parameter.KEYWORD_ONLY else fields).append(field)
        if "return" not in hints:
            raise FieldRefused(f"{path}: say what it returns, as `-> int` or `-> None`.", path=path)
        name = f"{self.cls.__name__}_{member.name}"
        params = msgspec.defstruct(name, keywords, kw_only=True, forbid_unknown_fields=True)
        if fields:
            params = msgspec.defstruct(name, fields, bases=(params,), forbid_unknown_fields=True)
        whole = Codec(params, path)
        whole.evolves = any(codec.evolves for codec in codecs.values())
        parts = tuple(codecs[field] for field in params.__struct_fields__)
        given = [part.scalars for part in parts[: len(fields)]]
        calls = (types for n in range(len(given) + 1) for types in itertools.product(*given[:n]))
        return HandlerSpec(
            member.name, path, fn, member.cancellable, member.tries, self._raises(member, path), params, whole,
            tuple(part.proofs for part in parts), Codec(hints["return"], f"{path} -> result"),
            frozenset(itertools.islice(calls, PROVED_MAX)),
        )  # fmt: skip

    def _raises(self, member: Handler[Any, Any], path: str) -> Declared | None:
        if not member.raises:
            return None

        def resolve(annotated: Any) -> dict[str, Any]:
            module = vars(inspect.getmodule(annotated) or types)
            try:
                return typing.get_type_hints(annotated, globalns=self._names(module, self.cls), include_extras=True)
            except LOAD_ERRORS:  # it names what is not there; then what it annotates must be plain data
                return {}

        return Declared(member.raises, path, resolve, Codec)

    def handler(self, name: str) -> HandlerSpec:
        """Raises `NoSuchHandler`, naming the handlers that exist."""
        handler = self.handlers.get(name)
        if handler is None:
            raise NoSuchHandler(
                f"{self.name} has no handler {name!r}; it has {', '.join(sorted(self.handlers)) or 'none'}. What a class did not "
                "have when it was first used is not sent: define handlers in the class.",
                handler=name,
            )
        return handler

    def overrides(self, name: str) -> bool:
        """True if the class has this hook of its own."""
        return getattr(self.cls, name) is not getattr(Agent, name)

    def initial(self, /, **state: Any) -> StateDelta:
        """The encoded state of a new agent: what is given, and defaults.  Raises `BadArguments` naming the field."""
        if inspect.isabstract(self.cls):
            lacks = ", ".join(sorted(getattr(self.cls, "__abstractmethods__", ())))
            raise UsageError(f"{self.name} is abstract: {lacks} is not written; spawn a class that is derived from it.")
        extra = [name for name in state if name not in self.fields]
        missing = [f.name for f in self.fields.values() if not f.has_default and f.name not in state]
        if extra or missing:
            what = f"no field {extra[0]!r}" if extra else f"field {missing[0]!r} needs a value"
            raise BadArguments(f"{self.name}: {what}.", handler="spawn")
        delta = StateDelta(plain={}, tables={}, buffers={}, removed=[])
        for field in self.fields.values():
            value = state.get(field.name, field.content)
            try:
                if field.kind == "table":
                    delta.tables[field.name] = _table_of(field, value)
                elif field.kind == "buffer":
                    delta.buffers[field.name] = _buffer_of(value)
                elif field.name in state:
                    delta.plain[field.name] = field.codec.keep(value)[0]
                elif field.default is not None:
                    delta.plain[field.name] = field.default
            except LOAD_ERRORS as error:
                raise BadArguments(f"{field.path}: {reason(value, error)}.", handler="spawn") from error
        return delta


def _items(table: TableStore) -> list[tuple[bytes, bytes]]:
    return [item for number in range(BUCKETS) for item in table.items_in(number)]


def _table_of(field: FieldSpec, value: Any) -> TableDelta:
    if field.key_codec is None:
        raise never("field.key_codec is not None does not hold")
    sets: dict[bytes, bytes] = {}
    for key, item in dict(getattr(value, "_content", value) or {}).items():
        _, kept = field.key_codec.keep(key)
        try:
            sets[encode(kept)] = field.codec.keep(item)[
                0
            ]  # as the table itself writes keys: 1 is 1.0 in Table[float, ...]
        except LOAD_ERRORS as error:
            raise ValueChangedError(f"[{shown(key)}]", reason(item, error)) from error
    return TableDelta(sets=sets, dels=[])


def buffer_bytes(value: Any) -> bytes:
    """The content of a buffer.  Raises `TypeError`, for a number too: `bytes(5)` would be five zeros."""
    if isinstance(value, (int, str)):
        raise TypeError(f"a {type(value).__name__} is no content of a Buffer; give bytes")
    return bytes(value)


def _buffer_of(value: Any) -> BufferDelta:
    data = buffer_bytes(value) if value is not None else b""
    pages = {at // PAGE_BYTES: data[at : at + PAGE_BYTES] for at in range(0, len(data), PAGE_BYTES)}
    return BufferDelta(size=len(data), pages=pages)


_specs: dict[type[Agent], Spec] = {}


def spec_of(cls: type[Any]) -> Spec:
    """The spec of a class, built at its first use.  Raises `FieldRefused` naming what cannot be stored or sent."""
    spec = _specs.get(cls)
    if spec is None:
        check_is_agent(cls)
        spec = _specs[cls] = Spec(cls)
    return spec


def check_is_agent(cls: Any) -> None:
    """Raises `UsageError` for what is no class that agents can be of, with what to write."""
    if isinstance(cls, type) and issubclass(cls, Agent) and cls is not Agent:
        return
    origin = typing.get_origin(cls)
    if isinstance(origin, type) and issubclass(origin, Agent):
        raise UsageError(
            f"{cls!r} is no class of its own, and has no name on the wire; derive one: `class Name({cls!r}): ...`."
        )
    raise UsageError(f"{cls!r} is no agent class; write `class Name(cells.Agent): ...` and give that.")


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
    values: dict[str, object] = {name: plain(data) for name, data in state.plain.items()}
    for name, table in state.tables.items():
        values[name] = {plain(k): plain(v) for k, v in _items(table)}
    for name, buffer in state.buffers.items():
        values[name] = b"".join(buffer.page(number) for number in range(-(-buffer.size // PAGE_BYTES)))
    for step in range(version, spec.version):
        found = spec.upgrades.get(step)
        if found is None:
            raise StateUpgradeFailed(f"{spec.name} has no upgrade from version {step}; write one.", step=step, **facts)
        try:
            values = found.fn(spec.cls, values)
            if not isinstance(values, dict):
                raise TypeError(f"it must return the new state as a dict, not {type(values).__name__}")
        except Exception as error:  # whatever the user's function raises: the agent stays as it is stored
            raise StateUpgradeFailed(
                f"The upgrade of {spec.name} from version {step} raised {type(error).__name__}: {error}.",
                step=step,
                **facts,
            ) from error
    return _replaced(spec, state, values, facts)


def _typed(field: FieldSpec | None, value: Any) -> Any:
    """The value of a field that an upgrade has given as plain data, or as it is."""
    if field is None or field.kind == "buffer":
        return value
    try:
        if field.key_codec is None:
            return field.codec.whole(encode(value))
        items = dict(getattr(value, "_content", value)).items()
        return {field.key_codec.whole(encode(key)): field.codec.whole(encode(item)) for key, item in items}
    except LOAD_ERRORS as error:
        raise BadArguments(f"{field.path}: {reason(value, error)}", handler="spawn") from error


def _replaced(spec: Spec, state: StoredState, values: dict[str, object], facts: dict[str, Any]) -> StateDelta:
    typed: dict[str, Any] = {}
    try:
        for name, value in values.items():
            typed[name] = _typed(spec.fields.get(name), value)
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
