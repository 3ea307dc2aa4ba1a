"""Words of a command line as a handler's arguments, or as a new agent's state.

A word is read as JSON if that fits the declared type, else as text: `1` is 1 for an `int` and "1" for a `str`, `"1"` is the
text in either case.  The person who types them has no classes at hand, so a node that has the
classes reads them.
"""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any

import msgspec

from mielin_cells.agents.reference import Reference, make_ref
from mielin_cells.agents.signature import HandlerSpec
from mielin_cells.agents.spec import FieldSpec, Spec
from mielin_cells.agents.values import models
from mielin_cells.agents.values.annotations import read_signature
from mielin_cells.agents.values.changes import LOAD_ERRORS
from mielin_cells.agents.values.wire import load_hook
from mielin_cells.errors import BadArguments
from mielin_cells.log.delta import StateDelta

_NAMED = re.compile(r"([^\W\d]\w*)=(.*)", re.DOTALL)
"""`name=value`.  Text that looks like it is given by name, or as a JSON string."""


def arguments(spec: Spec, handler: str, words: list[str]) -> bytes:
    """The encoded arguments that `words` (values in order, or `name=value`) stand for.

    Raises `NoSuchHandler` naming those that there are, and `BadArguments` naming the parameter.
    """
    called = spec.handler(handler)
    values: dict[str, Any] = {}
    in_order = []
    for word in words:
        named = _NAMED.fullmatch(word)
        if named is None or (not named[2] and named[1] not in called.parameters):
            in_order.append(word)  # a text that ends in "=", such as base64, names nothing
        elif named[1] not in called.parameters:
            raise _bad(
                called, f"there is no parameter {named[1]!r} (text with '=' is given by name, or as a JSON string)"
            )
        elif named[1] in values:
            raise _bad(called, f"{named[1]!r} is given twice")
        else:
            values[named[1]] = value_of(named[2], called.parameters[named[1]], f"{called.path}({named[1]})", handler)
    free = [name for name in called.parameters if name not in values]
    if len(in_order) > len(free):
        raise _bad(called, f"{len(words)} values for {len(called.parameters)} parameters")
    for name, word in zip(free, in_order, strict=False):
        values[name] = value_of(word, called.parameters[name], f"{called.path}({name})", handler)
    return called.encode_args((), values)


def initial(spec: Spec, words: list[str]) -> StateDelta:
    """The encoded state of a new agent, from `field=value` words and defaults.  Raises `BadArguments` naming the field."""
    state: dict[str, Any] = {}
    for word in words:
        named = _NAMED.fullmatch(word)
        if named is None:
            raise BadArguments(f"{spec.name}: {word!r} is not field=value.", handler="spawn")
        field = spec.fields.get(named[1])
        if field is None:
            have = ", ".join(spec.fields) or "none"
            raise BadArguments(f"{spec.name} has no field {named[1]!r}; it has {have}.", handler="spawn")
        state[field.name] = _field_value(field, named[2])
    return spec.initial(**state)


def value_of(word: str, kind: Any, path: str, handler: str) -> Any:
    """The value of type `kind` that the word stands for.  Raises `BadArguments`."""
    reason: Exception
    try:
        return msgspec.json.decode(word, type=kind, dec_hook=_hook)
    except (*LOAD_ERRORS, UnicodeError) as error:
        reason = error
    try:
        return msgspec.convert(word, kind, dec_hook=_hook)
    except LOAD_ERRORS as error:
        if not isinstance(reason, msgspec.ValidationError):
            reason = error  # it was no JSON
    raise BadArguments(f"{path}: {word[:80]!r} does not fit: {reason}.", handler=handler) from reason


def signature_of(handler: HandlerSpec) -> str:
    """As authors wrote it, without `self`: `add(n: int = 1) -> int`."""
    signature = read_signature(handler.fn)
    parameters = [
        f"{parameter.name}: {_written(parameter.annotation)}"
        + ("" if parameter.default is parameter.empty else f" = {parameter.default!r}")
        for parameter in list(signature.parameters.values())[1:]
    ]
    return f"{handler.name}({', '.join(parameters)}) -> {_written(signature.return_annotation)}"


def _written(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _field_value(field: FieldSpec, word: str) -> Any:
    if field.kind == "table":
        keys, values = typing.get_args(field.type)
        return value_of(word, dict[keys, values], field.path, "spawn")  # type: ignore[valid-type]
    return value_of(word, bytes if field.kind == "buffer" else field.type, field.path, "spawn")


def _hook(wanted: type, value: Any) -> Any:
    """As for stored values, except that a reference is typed as an id."""
    if issubclass(wanted, Reference) and isinstance(value, str):
        return make_ref(wanted, value)
    return models.written(wanted, value) if models.is_model(wanted) else load_hook(wanted, value)


def _bad(handler: HandlerSpec, what: str) -> BadArguments:
    return BadArguments(f"{handler.path}: {what}; it is {signature_of(handler)}.", handler=handler.name)
