"""What is looked at when an agent class is defined: what would surprise its author later is refused now."""

from __future__ import annotations

from typing import Any

from mielin_cells.core.handler import Handler
from mielin_cells.errors import FieldRefused, UsageError


def check_name(cls: type, name: str, version: int, before: Any) -> None:
    """Raises `UsageError` if another class has this name on the wire: messages for one would reach the other.

    `before`: the class that has the name.  One that is defined again (a cell of a notebook, a reloaded module) takes its own
    place; so does a later version under the same name in the same module.
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


def check_handlers(cls: type) -> None:
    """Raises `FieldRefused` for a handler that no message would reach, or that would be called by another name."""
    own = vars(cls)
    for member, value in own.items():
        path = f"{cls.__name__}.{member}"
        if not isinstance(value, Handler):
            if _hides_handler(value):
                raise FieldRefused(
                    f"{path} is a handler behind a {_kind(value)}, and no message would reach it; put @handler outermost.",
                    path=path,
                )
        elif value.name != member and own.get(value.name) is not value:
            raise FieldRefused(
                f"{path} is the handler {value.__qualname__} under another name; write a method of its own that calls it.",
                path=path,
            )


def _kind(value: Any) -> str:
    return type(value).__name__ if isinstance(value, (staticmethod, classmethod, property)) else "decorator"


def _hides_handler(value: Any) -> bool:
    """True for what was put around a handler: a staticmethod, a property, or the function that a decorator has made."""
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
