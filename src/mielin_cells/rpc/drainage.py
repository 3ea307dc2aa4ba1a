"""How far a drain is, as a node tells its clients."""

from __future__ import annotations

import msgspec

ROWS_MAX = 500
"""Agents told of in one answer: those on their way and those that are kept first."""


RUNNING, DONE, STOPPED, OVER = "running", "done", "stopped", "over"
"""OVER: the deadline came; STOPPED: an operator has uncordoned the node."""


class Row(msgspec.Struct, kw_only=True):
    """An agent that is still here.  `state`: waiting, moving, blocked; of a dry run: fits, blocked."""

    agent: str
    state: str = "waiting"
    target: str = ""
    phase: str = ""
    blocker: str = ""
    """Why it has not gone."""
    messages: int = 0
    """In its inbox."""
    bytes: int = 0


class Drainage(msgspec.Struct, kw_only=True):
    """How far a drain is.  `state`: none, running, done, stopped, over; `eta_s` is 0 while nothing is known."""

    node: str
    state: str = "none"
    agents: int = 0
    """When it began, and those that came since."""
    moved: int = 0
    left: int = 0
    rows: list[Row] = []
    seconds: float = 0.0
    left_s: float = 0.0
    """To the deadline."""
    eta_s: float = 0.0
