"""The requests about plans of moves."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from mielin_cells.policy.evaluation.wishes import Wish
from mielin_cells.policy.rebalance.values import AgentLoad, Proposal
from mielin_cells.rpc.request import Request

RUNNING, EVEN, DONE, STALLED, STOPPED, UNKNOWN = "running", "even", "done", "stalled", "stopped", "unknown"
"""States of a rebalancing.  EVEN: there was nothing to do.  STALLED: it is not even, and no move is possible that would make it so.
UNKNOWN: the node does not know it, since it has begun to lead only now."""


class Wishes(Request[None], frozen=True):
    """From a node to the leader: these of its agents should leave it, instead of those that it has named before."""

    node: str
    wishes: tuple[Wish, ...]


class ListLoads(Request[list[AgentLoad]], frozen=True):
    """The messages that come to the node's agents, and that they send to each other, counted for so long.

    Agents with few messages may be one entry for each class (`AgentLoad.count`).
    """

    window_s: float


class Rebalanced(msgspec.Struct, array_like=True, frozen=True):
    """How far a rebalancing is."""

    name: str
    state: str
    proposal: Proposal
    """The first one: what was, and what is to be."""
    moved: int = 0
    failed: list[str] = []
    """Agents that were not moved, with the reasons."""
    now: dict[str, float] = {}
    """By node, its part of the work as it was measured last."""
    why: str = ""
    """Why it is stalled."""


class Rebalance(Request[Rebalanced], frozen=True):
    """To the leader: begin a rebalancing under this name, unless it runs; or only say what it would move."""

    name: str
    is_dry: bool = False


class ReadRebalance(Request[Rebalanced], frozen=True):
    """To the leader: how far is it?"""

    name: str


class Lent(msgspec.Struct, array_like=True, frozen=True):
    """So many places for moves, for so long from when they were asked for."""

    places: int
    for_s: float


class Borrow(Request[Lent], frozen=True):
    """To the leader: what a node has of lent places for moves, and wants (`policy.planning.lending.Ask`)."""

    node: str
    number: tuple[int, int]
    held: int
    used: int
    want: int


PlanRequest: TypeAlias = Wishes | ListLoads | Rebalance | ReadRebalance | Borrow
