"""What a client remembers of agents: of those that it has heard of last, since agents come and go for as long as it lives."""

from __future__ import annotations

from typing import TypeVar

V = TypeVar("V")

AGENTS_MAX = 100_000
"""Agents remembered: some 20 MB.  A read of one that was forgotten may show less than the client had seen of it before."""


class Recent(dict[str, V]):
    """By agent; the one that was set longest ago goes first."""

    def __setitem__(self, agent: str, value: V) -> None:
        self.pop(agent, None)
        super().__setitem__(agent, value)
        if len(self) > AGENTS_MAX:
            del self[next(iter(self))]
