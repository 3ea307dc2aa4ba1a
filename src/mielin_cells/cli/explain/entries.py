"""What is known about an error by its code: read from its class, so that nothing is written down twice.

A docstring says what has happened, then `Facts:` with their names, then `Next:` with what to do.  A class without a `Next` has
that of the class that it is derived from.
"""

from __future__ import annotations

import difflib
import inspect
import re
from dataclasses import dataclass

from mielin_cells import errors
from mielin_cells.deployment import codes
from mielin_cells.errors import CellError

FAMILIES: dict[type[CellError], str] = {
    errors.UsageError: "yours: the call, the class or the setting is wrong",
    errors.RetryError: "passing: the same call may succeed later",
    errors.LostError: "lost: ownership moved, or what is stored cannot be used",
}
EXITS = {
    codes.DONE: ("done", "The command did what it was asked to do."),
    codes.FAILED: ("failed", "The handler raised, or the server or a node does not answer."),
    codes.USAGE: ("usage", "An option, a name or a value cannot be used. Nothing was begun."),
    codes.REFUSED: ("refused", "The state of the agent or of the target does not allow it. Nothing was changed."),
    codes.ROLLED_BACK: ("rolled back", "The agent is safe and runs where it ran."),
    codes.UNKNOWN: ("unknown", "No answer came. The call may have taken effect."),
    codes.INTERRUPTED: ("interrupted", "Ctrl-C. A request that was sent may still take effect."),
}


@dataclass(frozen=True)
class Entry:
    """An error as people look it up."""

    code: str
    family: str
    meaning: str
    facts: str
    """Their names and meanings; "" for an error without facts."""
    next: str
    exit: int
    retry_after: float | None


def public() -> dict[str, type[CellError]]:
    """Every error of this package by its code, in the order of the codes."""
    ours = {cls.__name__: cls for cls in errors.base.classes() if errors.base.is_ours(cls)}
    return dict(sorted(ours.items()))


def entry(cls: type[CellError]) -> Entry:
    family = next((text for kind, text in FAMILIES.items() if issubclass(cls, kind)), "of no family")
    meaning, facts, _ = _parts(cls)
    return Entry(
        code=cls.__name__,
        family=family,
        meaning=meaning,
        facts=facts,
        next=next((what for kind in cls.__mro__ if (what := _parts(kind)[2])), ""),
        exit=codes.code_of(cls("")),
        retry_after=cls.retry_after,
    )


def _parts(cls: type) -> tuple[str, str, str]:
    """Meaning, facts and next; "" for what the docstring lacks."""
    text = inspect.cleandoc(cls.__doc__ or "") if issubclass(cls, CellError) else ""
    text, _, after = text.partition("Next:")
    meaning, _, facts = text.partition("Facts:")
    clean = [re.sub(r"\s+", " ", part).strip() for part in (meaning, facts.strip().removesuffix("."), after)]
    return clean[0], clean[1], clean[2][:1].upper() + clean[2][1:]


def nearest(code: str) -> list[str]:
    """Codes that were probably meant."""
    known = {name.lower(): name for name in public()}
    return [known[name] for name in difflib.get_close_matches(code.lower(), known, n=3)]
