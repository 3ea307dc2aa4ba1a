"""The checks of an agent class when it is defined: what would surprise its author later is refused now."""

from __future__ import annotations

import abc
import dataclasses
import inspect
import typing
from collections.abc import MutableMapping, MutableSequence, MutableSet
from typing import Any

from mielin_cells.agents.buffer import Buffer
from mielin_cells.agents.finding.rules import wrong_in
from mielin_cells.agents.handler import Handler
from mielin_cells.agents.values.annotations import annotations_of
from mielin_cells.errors import FieldRefused, UsageError
from mielin_cells.log.policy import Policy

OPTIONS = (
    "version", "name", "recovery", "policy", "standby", "keys_s", "keys_bytes", "inbox_max", "when_full", "idle_s", "supervision",
)  # fmt: skip


def check_options(cls: type, others: dict[str, Any]) -> None:
    """Raises `UsageError` for an unknown option of a class: most likely it is misspelt."""
    for base in cls.__mro__[1:]:
        if base is not object and base.__module__ != "mielin_cells.agents.agent" and "__init_subclass__" in vars(base):
            return  # it may be the option of a base of the author's
    if others:
        raise UsageError(
            f"class {cls.__name__}: there is no option {next(iter(others))!r}; there are {', '.join(OPTIONS)}."
        )


def check_policy(cls: type, policy: Any) -> None:
    """Raises `UsageError` for what is no policy, and for rules that cannot be read."""
    if not isinstance(policy, Policy):
        raise UsageError(f"class {cls.__name__}: policy is a cells.Policy(...), and not {policy!r}.")
    wrong = wrong_in(policy)
    if wrong:
        raise UsageError(f"class {cls.__name__}: policy: {wrong}")


def check_name(cls: type, name: str, version: int, before: Any) -> None:
    """Raises `UsageError` if another class, `before`, has this name on the wire: messages for one would reach the other.

    A class that is defined again (a cell of a notebook, a reloaded module) replaces itself; so does a later version under the
    same name in the same module.
    """
    if before is None or (
        before.__module__ == cls.__module__
        and (before.__qualname__ == cls.__qualname__ or version > before.__mielin_version__)
    ):
        return
    both = sorted({before.__module__, cls.__module__})
    twice = "__main__" in both and before.__qualname__ == cls.__qualname__
    what_to_do = (
        f"The file that runs as the program is imported as {both[-1]} as well: define agents in a module that is only imported."
        if twice
        else f'Give one another name, as class {cls.__name__}(cells.Agent, name="...").'
    )
    raise UsageError(
        f"Two agent classes have the name {name!r} on the wire: {before.__module__}.{before.__qualname__} and "
        f"{cls.__module__}.{cls.__qualname__}. Messages for one would reach the other. {what_to_do}",
        name=name,
    )


def check_fields(cls: type, fields: list[str]) -> None:
    """Raises `FieldRefused` for a field whose name is also that of a handler, method or property."""
    for name in fields:
        value = vars(cls).get(name)
        kind = _kind_of_member(value)
        if kind:
            path = f"{cls.__name__}.{name}"
            raise FieldRefused.at(path, f" is declared as state, and is {kind} as well; rename one of them.")


def _kind_of_member(value: Any) -> str:
    if isinstance(value, Handler):
        return "a handler"
    if inspect.isroutine(value) or isinstance(value, (staticmethod, classmethod)):
        return "a method"
    if isinstance(value, property):
        return "a property"
    return "a slot" if inspect.ismemberdescriptor(value) else ""


def check_handlers(cls: type) -> None:
    """Raises `FieldRefused` for a handler that no message would reach, or that would be called by another name."""
    own = vars(cls)
    for member, value in own.items():
        path = f"{cls.__name__}.{member}"
        if not isinstance(value, Handler):
            if _hides_handler(value):
                raise FieldRefused.at(
                    path,
                    f" is a handler behind a {_kind(value)}, and no message would reach it; put @handler outermost.",
                )
        elif value.name != member and own.get(value.name) is not value:
            raise FieldRefused.at(
                path,
                f" is the handler {value.__qualname__} under another name; write a method of its own that calls it.",
            )


def is_bare(base: type) -> bool:
    """True for a base that adds no fields or methods."""
    return base in (object, typing.Generic, typing.Protocol, abc.ABC) or getattr(base, "_is_protocol", False)


def check_attributes(cls: type, mixins: list[type]) -> None:
    """Raises `FieldRefused` for an attribute that would be lost at a move, or shared by all agents of the class."""
    for base in mixins:
        path = f"{cls.__name__}({base.__name__})"
        if "__init__" in vars(base):
            raise FieldRefused.at(
                path,
                f": agents are made without `__init__`, so that of {base.__name__} would never run; give its attributes types "
                "and defaults, and open clients in `on_arrive`.",
            )
    declared = {name for base in cls.__mro__ for name in annotations_of(base)}
    for base in (cls, *mixins):
        for name, value in vars(base).items():
            if not name.startswith("_") and name not in declared and _can_change(value):
                path = f"{cls.__name__}.{name}"
                raise FieldRefused.at(
                    path,
                    f" has no type, so it is no state: changes to it would be shared by all agents here and lost when one "
                    f"moves. Write `{name}: {_type_text(value)} = ...`, or `{name}: ClassVar[...]` for a constant.",
                )


def check_default(path: str, value: Any) -> None:
    """Raises `FieldRefused` for a default that is a field of another library."""
    kind = type(value)
    if isinstance(value, dataclasses.Field) or (kind.__name__, kind.__module__.partition(".")[0]) in _FIELD_MAKERS:
        raise FieldRefused.at(
            path,
            f": the default is a {kind.__module__.partition('.')[0]} field; write the value itself, as `= []`: every agent "
            "gets a copy of its own.",
        )


_FIELD_MAKERS = {("Field", "msgspec"), ("FieldInfo", "pydantic"), ("_CountingAttr", "attr")}


def _can_change(value: Any) -> bool:
    if isinstance(value, (type, Handler)):
        return False
    if isinstance(value, (MutableMapping, MutableSequence, MutableSet, Buffer)):
        return True
    if dataclasses.is_dataclass(value):
        return not getattr(value, "__dataclass_params__").frozen  # noqa: B009 - the type stubs do not know it
    if hasattr(type(value), "__struct_config__"):
        return not type(value).__struct_config__.frozen
    return hasattr(type(value), "__pydantic_fields__") and not type(value).model_config.get("frozen", False)


def _type_text(value: Any) -> str:
    kind = type(value).__name__
    return {"list": "list[...]", "dict": "dict[..., ...]", "set": "set[...]", "Table": "cells.Table[..., ...]"}.get(
        kind, kind
    )


def _kind(value: Any) -> str:
    return type(value).__name__ if isinstance(value, (staticmethod, classmethod, property)) else "decorator"


def _hides_handler(value: Any) -> bool:
    """True if a handler is wrapped in a staticmethod, a property or the function that a decorator has made."""
    inner = getattr(value, "fget", None) or getattr(value, "__func__", None) or getattr(value, "__wrapped__", None)
    if isinstance(inner, Handler):
        return True
    for cell in getattr(value, "__closure__", None) or ():
        try:
            held = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if isinstance(held, Handler):
            return True
    return False
