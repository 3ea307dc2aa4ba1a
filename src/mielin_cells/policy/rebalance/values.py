"""What a rebalancing measures, and what it proposes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec
from blake3 import blake3

from mielin_cells.log.policy import DEFAULT, Policy

FEW = 4
"""Messages of an agent while they are counted, below which its own count says little."""


class AgentLoad(msgspec.Struct, array_like=True, frozen=True):
    """An agent as its node measured it."""

    agent: str
    rate: float
    """Messages a second that come to it."""
    talks: dict[str, float] = {}
    """Messages a second that it sends to other agents, those with most."""
    cls: str = ""
    version: int = 0
    epoch: int = 0
    size_bytes: int = 0
    policy: Policy = DEFAULT
    count: int = 1
    """More than one: so many agents of the class together, which cannot be moved."""


class Suggested(msgspec.Struct, array_like=True, frozen=True):
    """One move, with its benefit."""

    agent: str
    source: str
    target: str
    rate: float
    why: str
    size_bytes: int = 0


class Proposal(msgspec.Struct, array_like=True, frozen=True):
    moves: list[Suggested]
    before: dict[str, float]
    """By node that takes agents, its part of the work; the parts sum up to 1."""
    after: dict[str, float]
    rates: dict[str, float] = {}
    """By node, messages a second."""
    is_best: bool = True
    """After these moves it is even, or as even as agents that cannot be split allow."""
    bytes: dict[str, int] = {}
    """By node, the bytes of its agents' states."""


def order_of(agent: str) -> int:
    """An order that has nothing to do with names: agents whose names are alike often do the same work."""
    return int.from_bytes(blake3(agent.encode()).digest(8))


def few(window_s: float) -> float:
    """Messages a second, below which an agent's own count says little."""
    return FEW / window_s if window_s > 0 else 0.0


def shorten(loads: Iterable[AgentLoad], window_s: float, agents_max: int, bytes_max: int) -> list[AgentLoad]:
    """At most so many agents by name: those with most messages, then any; the others as one entry for each class.

    Of those that got few messages, any: if those with more of them were named, the others would do less than the mean.
    """
    least = few(window_s)
    ordered = sorted(loads, key=lambda load: (-load.rate if load.rate >= least else 0.0, order_of(load.agent)))
    named, size, rest = list[AgentLoad](), 0, defaultdict[str, list[AgentLoad]](list)
    for load in ordered:
        if len(named) < agents_max and size <= bytes_max:
            named.append(load)
            size += len(msgspec.msgpack.encode(load))
        else:
            rest[load.cls].append(load)
    for cls, some in rest.items():
        rate, size_bytes = sum(load.rate for load in some), sum(load.size_bytes for load in some)
        named.append(AgentLoad("", rate, cls=cls, size_bytes=size_bytes, count=len(some)))
    return named
