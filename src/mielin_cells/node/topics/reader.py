"""A node reads each pattern once for all its agents that have subscribed to it, and gives each what it has not had."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias

from mielin_cells.log.topics.outside import is_outside
from mielin_cells.node.topics.outside import OutsidePattern
from mielin_cells.node.topics.patterns import Member, Pattern
from mielin_cells.substrate.ports import Log

Start: TypeAlias = Callable[[str, Callable[[], Coroutine[Any, Any, None]]], None]
"""Runs the loop that reads a pattern."""


class Reader:
    """The patterns that agents of this node have subscribed to."""

    def __init__(
        self,
        log: Callable[[], Log],
        start: Start,
        poll_s: float,
    ) -> None:
        self._log = log
        self._start = start
        self._poll_s = poll_s
        self._patterns: dict[str, Pattern] = {}

    def join(self, member: Member) -> None:
        pattern = self._patterns.get(member.pattern)
        if pattern is None:
            kind = OutsidePattern if is_outside(member.pattern) else Pattern
            pattern = self._patterns[member.pattern] = kind(member.pattern, self._log(), self._poll_s)
            self._start(member.pattern, partial(pattern.run, self._patterns))
        pattern.members[member] = None
        pattern.wake()

    def leave(self, member: Member) -> None:
        pattern = self._patterns.get(member.pattern)
        if pattern is not None and pattern.members.pop(member, member) is None and not pattern.members:
            del self._patterns[member.pattern]
            pattern.wake()

    def wake(self, pattern: str) -> None:
        if pattern in self._patterns:
            self._patterns[pattern].wake()
