"""A wait of the turn that runs, and those of its branches that wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mielin_cells.agents.step import Results
from mielin_cells.log.waits.tokens import WaitName


class OpenWait:
    """The log has it.  `outcome` is None until the record with the outcome is acknowledged."""

    __slots__ = ("_heard", "kind", "name", "outcome", "results", "token", "until")

    def __init__(self, name: WaitName, token: str, until: float, kind: Any, results: Results) -> None:
        self.name = name
        self.token = token
        self.until = until
        """By the store's time; 0: for ever."""
        self.kind = kind
        self.results = results
        self.outcome: bytes | None = None
        self._heard: list[Callable[[bytes], None]] = []

    def hear(self, call: Callable[[bytes], None]) -> None:
        """Calls `call` with the outcome, at once if there is one."""
        if self.outcome is not None:
            call(self.outcome)
        else:
            self._heard.append(call)

    def stands(self, outcome: bytes) -> None:
        self.outcome = outcome
        for call in self._heard:
            call(outcome)
        self._heard.clear()
