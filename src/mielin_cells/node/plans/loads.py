"""How much each agent of a node has to do: the messages that come to it, and those that it sends to other agents, for a moment."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from mielin_cells.log.inboxes.lines import end_of
from mielin_cells.policy.rebalance.values import AgentLoad, shorten
from mielin_cells.rpc import plans

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation, Activations

WINDOW_S_MAX = 10.0

AGENTS_MAX, BYTES_MAX = 4000, 512 << 10
"""Agents that an answer names, those with most messages; the others are one entry for each class."""

TALKS_MAX = 4
"""Receivers that an answer names for each agent."""

SLICE = 500
"""Agents that are looked at before others run."""


class _Mark(NamedTuple):
    activation: Activation
    arrived: int
    sent: dict[str, int]


class Loads:
    """Of one node.  Nothing is counted unless somebody asks."""

    def __init__(self, activations: Activations) -> None:
        self._activations = activations

    async def measure(self, request: plans.ListLoads) -> list[AgentLoad]:
        activations, clock = self._activations, self._activations.clock
        began = clock()
        marks = [_mark(activation) for activation in list(activations.live.values())]
        await asyncio.sleep(max(0.05, min(request.window_s, WINDOW_S_MAX)))
        seconds, loads = clock() - began, list[AgentLoad]()
        for place, mark in enumerate(marks):
            if place % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            if activations.live.get(mark.activation.fold.agent) is mark.activation:
                loads.append(_load(mark, seconds))
        marked = {load.agent for load in loads}
        for owned in activations.owned():
            if owned.agent not in marked:
                loads.append(AgentLoad(
                    owned.agent, 0.0, {}, owned.cls, owned.version, owned.epoch, owned.size_bytes,
                    owned.policy,
                ))  # fmt: skip
        return shorten(loads, seconds, AGENTS_MAX, BYTES_MAX)


def _mark(activation: Activation) -> _Mark:
    return _Mark(activation, activation.inbox.arrived_in_all, dict(activation.fold.ledger.numbers))


def _load(mark: _Mark, seconds: float) -> AgentLoad:
    activation = mark.activation
    fold, sent = activation.fold, Counter[str]()
    for line, number in fold.ledger.numbers.items():
        if (more := number - mark.sent.get(line, 0)) > 0:
            sent[end_of(line)] += more
    return AgentLoad(
        fold.agent, (activation.inbox.arrived_in_all - mark.arrived) / seconds,
        {agent: more / seconds for agent, more in sent.most_common(TALKS_MAX)}, fold.cls, fold.version, fold.epoch, fold.size_bytes,
        fold.policy,
    )  # fmt: skip
