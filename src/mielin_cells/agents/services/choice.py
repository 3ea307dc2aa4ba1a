"""Which agent of a service gets the next call."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from blake3 import blake3

from mielin_cells.agents.reports import NodeInfo


class Rota:
    """Round robin over ids in order.  What comes or goes meanwhile changes nobody else's turn."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = ""

    def next(self, ids: Sequence[str]) -> str:
        """`ids` are in order, and not none."""
        place = bisect_right(ids, self._last)
        self._last = ids[place if place < len(ids) else 0]
        return self._last


def by_key(key: str, ids: Sequence[str]) -> str:
    """The agent that this key always gets, among those that are there (rendezvous hashing).

    When an agent goes, its keys alone go to others, evenly; when one comes, it takes its share from all.
    """
    return max(ids, key=lambda agent: blake3(f"{key}\0{agent}".encode()).digest(8))


def least(ids: Sequence[str], waiting: Mapping[str, int]) -> list[str]:
    """Those that have the fewest messages waiting; unknown ones count as having the most."""
    most = max(waiting.values(), default=0) + 1
    fewest = min(waiting.get(agent, most) for agent in ids)
    return [agent for agent in ids if waiting.get(agent, most) == fewest]


def distance(node: NodeInfo | None, near: str | Mapping[str, str], nodes: Mapping[str, NodeInfo]) -> int:
    """How far a node is from the node `near`, or from labels; unknown nodes are the furthest.

    From a node: 0 to itself, 1 on the same host, else 2 and one for each of its labels that is another.  From labels: how many of
    them are others.
    """
    if node is None:
        return 1 << 30
    if not isinstance(near, str):
        return sum(node.labels.get(name) != value for name, value in near.items())
    if node.name == near:
        return 0
    here = nodes.get(near)
    if here is None:
        return 2
    if here.host and here.host == node.host:
        return 1
    return 2 + sum(node.labels.get(name) != value for name, value in here.labels.items())
