"""A handler as messages know it: the codecs of its arguments, its result and its errors."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from mielin_cells.agents.context import Caller
from mielin_cells.agents.handler import Handler
from mielin_cells.agents.values.annotations import read_signature
from mielin_cells.agents.values.changes import LOAD_ERRORS, reason
from mielin_cells.agents.values.codec import Codec
from mielin_cells.agents.values.parts import PartCodec
from mielin_cells.agents.values.proofs import Proof, no
from mielin_cells.agents.values.raises import Declared
from mielin_cells.agents.values.wire import encode, giver
from mielin_cells.errors import BadArguments, FieldRefused, described, from_wire, never
from mielin_cells.log.message import Answer

PROVED_MAX = 256
"""Combinations of argument types that a handler remembers as safe; more than that are looked at one by one."""


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
    """Proofs of each parameter; a default needs none."""
    _result: Codec
    _proved: frozenset[tuple[type, ...]]
    """Types of positional arguments that a load gives as they were.  They cover most calls."""
    parameters: Mapping[str, Any]
    """Names and types, in order.  Every message of a topic asks for them, so they are not looked for in `_params`."""
    required: frozenset[str]
    """Names of the parameters without a default."""
    shared: bool = False
    """It reads committed state and writes nothing."""
    parts: PartCodec | None = None
    """Of a handler that yields; its result is the number of parts."""

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
            raise BadArguments(
                f"{self.path} returned a value that does not fit its declared result: {why}.", handler=self.name
            ) from error

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
        """The exception that an answer raises: of its own class if that is declared and known here."""
        if answer.error is None:
            raise never("an answer that is no error was taken for one")
        failed = from_wire(*answer.error)
        if answer.raised is None or self.raises is None:
            return failed
        try:
            return self.raises.decode(answer.raised) or failed
        except LOAD_ERRORS as error:
            failed.add_note(f"It is declared, but cannot be made again here: {described(error)}")
            return failed


def _parameter(parameter: inspect.Parameter, hints: dict[str, Any], path: str) -> Any:
    """A parameter of a handler as a field of the message.  Raises `FieldRefused` if it cannot be one."""
    name = parameter.name
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        raise FieldRefused.at(path, f": messages carry names; *{name} cannot be sent.")
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise FieldRefused.at(path, f": messages carry names; remove the `/` behind {name!r}.")
    if name not in hints:
        raise FieldRefused.at(path, f": parameter {name!r} has no type.")
    path = f"{path}({name})"
    codec = Codec(hints[name], path)
    if parameter.default is parameter.empty:
        return (name, hints[name]), codec
    copy = encoded_default(parameter.default, codec)
    return (name, hints[name], msgspec.field(default_factory=functools.partial(codec.decode, copy))), codec


def encoded_default(value: Any, codec: Codec) -> bytes:
    """Encoded, so that each use has a fresh copy.  Raises `FieldRefused`."""
    try:
        return codec.keep(value)[0]
    except LOAD_ERRORS as error:
        path = codec.path
        raise FieldRefused.at(path, f": its default does not fit its type: {reason(value, error)}.") from error


def signature_of(member: Handler[Any, Any], path: str, hints: dict[str, Any], raises: Declared | None) -> HandlerSpec:
    """A handler as messages know it.  `hints`: the types of its annotations.  Raises `FieldRefused`, naming what cannot be sent."""
    parameters = list(read_signature(member.fn).parameters.values())
    if not parameters or parameters[0].kind.name not in ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD"):
        raise FieldRefused.at(path, ": a handler is a method; its first parameter is `self`.")
    if "return" not in hints:
        raise FieldRefused.at(path, ": say what it returns, as `-> int` or `-> None`.")
    made = [(parameter, *_parameter(parameter, hints, path)) for parameter in parameters[1:]]
    fields = [field for parameter, field, _ in made if parameter.kind is not parameter.KEYWORD_ONLY]
    keywords = [field for parameter, field, _ in made if parameter.kind is parameter.KEYWORD_ONLY]
    codecs = {parameter.name: codec for parameter, _, codec in made}
    types = {parameter.name: field[1] for parameter, field, _ in made}
    defaults = {parameter.name for parameter, field, _ in made if len(field) > 2}
    name = path.replace(".", "_")
    params = msgspec.defstruct(name, keywords, kw_only=True, forbid_unknown_fields=True)
    if fields:
        params = msgspec.defstruct(name, fields, bases=(params,), forbid_unknown_fields=True)
    args = Codec(params, path)
    args.evolves = any(codec.evolves for codec in codecs.values())
    parts = [codecs[field] for field in params.__struct_fields__]
    given = [part.scalars for part in parts[: len(fields)]]
    calls = (types for n in range(len(given) + 1) for types in itertools.product(*given[:n]))
    stream = PartCodec(hints["return"], member.name, path) if member.yields else None
    result, fn = (int, stream.runs(cast(Any, member.fn))) if stream is not None else (hints["return"], member.fn)
    return HandlerSpec(
        member.name, path, fn, member.cancellable, member.tries, raises, params, args, tuple(part.proofs for part in parts),
        Codec(result, f"{path} -> result"), frozenset(itertools.islice(calls, PROVED_MAX)),
        {name: types[name] for name in params.__struct_fields__}, frozenset(name for name in types if name not in defaults),
        member.shared, stream,
    )  # fmt: skip
