"""The fields, handlers and upgrades of an agent class, with their codecs.  Built when the class is first used."""

from __future__ import annotations

import inspect
import types
import typing
from dataclasses import dataclass
from typing import Any

from mielin_cells.agents.agent import NO_DEFAULT, Agent, Field, Upgrade, is_state
from mielin_cells.agents.buffer import Buffer
from mielin_cells.agents.definition import check_default
from mielin_cells.agents.family.system import system_handler
from mielin_cells.agents.handler import Handler
from mielin_cells.agents.reference import Reference, classes
from mielin_cells.agents.signature import HandlerSpec, encoded_default, signature_of
from mielin_cells.agents.table import Table
from mielin_cells.agents.values.annotations import annotations_of, filled, given_types, resolved
from mielin_cells.agents.values.changes import LOAD_ERRORS, ValueChangedError, reason, shown
from mielin_cells.agents.values.codec import Codec
from mielin_cells.agents.values.raises import Declared
from mielin_cells.agents.values.wire import encode
from mielin_cells.errors import (
    BadArguments,
    FieldRefused,
    NoSuchHandler,
    UsageError,
)
from mielin_cells.log.delta import PAGE_BYTES, BufferDelta, StateDelta, TableDelta
from mielin_cells.settings import Settings, WhenFull


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """A state field.  `kind` is "plain", "table" or "buffer"; a table has two codecs, for keys and values."""

    name: str
    path: str
    kind: str
    type: Any
    codec: Codec
    """The codec of a plain field, or of a table's values."""
    key_codec: Codec
    """The codec of a table's keys; of any other field, its codec."""
    has_default: bool
    default: bytes | None
    """The default of a plain field, encoded so that every agent gets a fresh copy."""
    content: Any = None
    """The initial content of a table or buffer, encoded again for every agent."""


class Spec:
    """The meaning of an agent class."""

    def __init__(self, cls: type[Agent]) -> None:
        self.cls = cls
        self.name = cls.__mielin_name__
        self.version = cls.__mielin_version__
        if "__dataclass_fields__" in vars(cls):
            raise FieldRefused.at(self.name, ": an agent is no dataclass; remove the decorator, its fields stay.")
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
        self.has_streams = any(handler.parts is not None for handler in self.handlers.values())

    def keeps_keys(self, settings: Settings) -> tuple[float, int]:
        """For how many seconds, and up to how many bytes, an agent keeps keyed calls."""
        seconds, size = self.cls.__mielin_keys_s__, self.cls.__mielin_keys_bytes__
        return settings.keys_s if seconds is None else seconds, settings.keys_bytes if size is None else size

    def inbox_limit(self, settings: Settings) -> int:
        """How many messages may wait in the inbox of an agent."""
        return self.cls.__mielin_inbox_max__ or settings.inbox_max

    def when_full(self, settings: Settings) -> WhenFull:
        """What a full inbox means to senders."""
        return self.cls.__mielin_when_full__ or settings.when_full

    def _upgrades(self) -> dict[int, Upgrade]:
        """Upgrades by the version that they start from.  The upgrade of a derived class replaces an inherited one."""
        upgrades: dict[int, Upgrade] = {}
        for base in reversed(self.cls.__mro__):
            own = [member for member in vars(base).values() if isinstance(member, Upgrade)]
            steps = [member.from_version for member in own]
            for step in steps:
                if steps.count(step) > 1:
                    raise FieldRefused.at(self.name, f" has two upgrades from version {step}; keep one.")
            upgrades.update(zip(steps, own, strict=True))
        return upgrades

    def _names(self, module: dict[str, Any], within: type) -> dict[str, Any]:
        """What an annotation may name: the names of its module, the classes around it, and any agent class of this process."""
        return {
            **{cls.__name__: cls for cls in classes.values()},
            **module,
            **{name: member for name, member in vars(within).items() if isinstance(member, type)},
            **{base.__name__: base for base in reversed(self.cls.__mro__) if issubclass(base, Agent)},
        }

    def _hints(self) -> dict[str, Any]:
        """The types of the state fields.  Other annotations are not resolved: what they name may not exist."""
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
                hints.update(filled(resolved(own, names, self.name), self._given.get(base)))
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
                    raise FieldRefused.at(path, ": say what the table holds, as Table[str, int].")
                key, value = Codec(arguments[0], f"{path}[key]"), Codec(arguments[1], f"{path}[value]")
                if key.has_sets:
                    raise FieldRefused.at(path, "[key]: a set has no order, so it cannot be a key; use a tuple.")
                table = FieldSpec(name, path, "table", kind, value, key, True, None, content)
                table_of(table, content)
                return table
            if origin is Buffer:
                _buffer_of(content)
                bytes_codec = Codec(bytes, path)
                return FieldSpec(name, path, "buffer", kind, bytes_codec, bytes_codec, True, None, content)
        except FieldRefused:
            raise
        except LOAD_ERRORS as error:
            why = reason(content, error)
            raise FieldRefused.at(path, f": its default does not fit its type: {why}.") from error
        codec = Codec(kind, path)
        default = encoded_default(member.default, codec) if has_default else None
        member.is_scalar = codec.is_immutable
        return FieldSpec(name, path, "plain", kind, codec, codec, has_default, default)

    def _handler(self, member: Handler[Any, Any]) -> HandlerSpec:
        path = f"{self.name}.{member.name}"
        owner = next(base for base in self.cls.__mro__ if member in vars(base).values())
        hints = resolved(annotations_of(member.fn), self._names(inspect.unwrap(member.fn).__globals__, owner), path)
        return signature_of(member, path, filled(hints, self._given.get(owner)), self._raises(member, path))

    def _raises(self, member: Handler[Any, Any], path: str) -> Declared | None:
        if not member.raises:
            return None

        def resolve(annotated: Any) -> dict[str, Any]:
            module = vars(inspect.getmodule(annotated) or types)
            try:
                return typing.get_type_hints(annotated, globalns=self._names(module, self.cls), include_extras=True)
            except LOAD_ERRORS:  # it names what is not there; then what it annotates must be plain data
                return {}

        return Declared(member.raises, path, resolve)

    def handler(self, name: str) -> HandlerSpec:
        """Raises `NoSuchHandler`, naming the handlers that exist."""
        handler = self.handlers.get(name) or system_handler(name)
        if handler is None:
            raise NoSuchHandler(
                f"{self.name} has no handler {name!r}; it has {', '.join(sorted(self.handlers)) or 'none'}. A handler that the "
                "class did not have when it was first used cannot be called: define handlers in the class.",
                handler=name,
            )
        return handler

    def overrides(self, name: str) -> bool:
        """True if the class has this hook of its own."""
        return getattr(self.cls, name) is not getattr(Agent, name)

    def initial(self, /, **state: Any) -> StateDelta:
        """The encoded state of a new agent: the given values, and defaults.  Raises `BadArguments` naming the field."""
        if inspect.isabstract(self.cls):
            lacks = ", ".join(sorted(getattr(self.cls, "__abstractmethods__", ())))
            raise UsageError(f"{self.name} is abstract: {lacks} is not defined; spawn a subclass.")
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
                    delta.tables[field.name] = table_of(field, value)
                elif field.kind == "buffer":
                    delta.buffers[field.name] = _buffer_of(value)
                elif field.name in state:
                    delta.plain[field.name] = field.codec.keep(value)[0]
                elif field.default is not None:
                    delta.plain[field.name] = field.default
            except LOAD_ERRORS as error:
                raise BadArguments(f"{field.path}: {reason(value, error)}.", handler="spawn") from error
        return delta


def table_of(field: FieldSpec, value: Any) -> TableDelta:
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
        raise TypeError(f"a {type(value).__name__} is not allowed in a Buffer; give bytes")
    return bytes(value)


def _buffer_of(value: Any) -> BufferDelta:
    data = buffer_bytes(value) if value is not None else b""
    pages = {at // PAGE_BYTES: data[at : at + PAGE_BYTES] for at in range(0, len(data), PAGE_BYTES)}
    return BufferDelta(size=len(data), pages=pages)


_specs: dict[type[Any], Spec] = {}


def route(ref: Reference, handler: str) -> tuple[str, Spec, HandlerSpec]:
    """The id of the agent that is called, the spec of its class, and the handler.  Raises `NoSuchHandler`, `FieldRefused`."""
    spec = _specs.get(type(ref)) or spec_of(type(ref))
    return ref.__dict__["__mielin_id__"], spec, spec.handlers.get(handler) or spec.handler(handler)


def spec_of(cls: type[Any]) -> Spec:
    """The spec of a class, built at its first use.  Raises `FieldRefused` naming what cannot be stored or sent."""
    spec = _specs.get(cls)
    if spec is None:
        check_is_agent(cls)
        spec = _specs[cls] = Spec(cls)
    return spec


def check_is_agent(cls: Any) -> None:
    """Raises `UsageError`, with what to write, if agents cannot be of this class."""
    if isinstance(cls, type) and issubclass(cls, Agent) and cls is not Agent:
        return
    origin = typing.get_origin(cls)
    if isinstance(origin, type) and issubclass(origin, Agent):
        raise UsageError(
            f"{cls!r} is a generic alias and has no name on the wire; derive a class: `class Name({cls!r}): ...`."
        )
    raise UsageError(f"{cls!r} is not an agent class; define `class Name(cells.Agent): ...` and pass that.")
