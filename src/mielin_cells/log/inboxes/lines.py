"""Priorities of messages (rule T1): names of inboxes, and of lines, whose messages are numbered together.

A line is what one sender sends to one receiver at one priority.  Numbers, marks, answers and outputs are kept by line, so what the
ledger calls a sender or a receiver is the name of a line: the id alone at the priority "normal", with the priority behind it at the
others.  Nothing else in the package takes these names apart.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

from mielin_cells.errors import UsageError

Priority: TypeAlias = Literal["low", "normal", "high", "critical"]

NORMAL: Final = "normal"
CRITICAL: Final = "critical"

PRIORITIES: Final[tuple[str, ...]] = get_args(Priority)
"""The lowest first."""

_MARK: Final = "\x03"
"""Ends the id in the name of a line.  No id and no client's name holds a control character like this."""


def check_priority(priority: str, what: str) -> None:
    """Raises `UsageError`."""
    if priority not in PRIORITIES:
        raise UsageError(f"{what} has priority={priority!r}; it is one of {', '.join(PRIORITIES)}.")


def line(name: str, priority: str) -> str:
    """The name of the line between a ledger's owner and `name`, which is an agent's id or a client's name."""
    return name if priority == NORMAL else f"{name}{_MARK}{priority}"


def end_of(line: str) -> str:
    """The agent or client at the other end of a line."""
    return line.partition(_MARK)[0] if _MARK in line else line


def priority_of(line: str) -> str:
    return line.partition(_MARK)[2] if _MARK in line else NORMAL


def line_text(line: str) -> str:
    """A line as text for people."""
    return f"{end_of(line)} ({priority_of(line)})" if _MARK in line else line
