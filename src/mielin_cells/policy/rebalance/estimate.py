"""How much each agent has to do, by messages that were counted for a short time.

Most agents get a message now and then.  Whether one got it while they were counted is mostly chance, so they are taken together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mielin_cells.policy.rebalance.values import AgentLoad, few

BASE = 0.02
"""What an agent without messages counts, as a part of what the mean agent does."""

PRIOR = 16
"""Messages' worth of what agents of the class do elsewhere: it counts where few were counted on a node."""


class Estimate:
    """`weight` of an agent: its messages a second or, if they were few, the mean of those agents of its class on its node.

    Who moves must not depend on what came by chance: those that just got a message seem to do more than they do.
    """

    def __init__(self, loads: Mapping[str, Iterable[AgentLoad]], window_s: float) -> None:
        """`window_s`: for how long messages were counted; 0: the rates are exact."""
        self.rate, self.count = 0.0, 0
        self._few = few(window_s)
        here, whole = dict[tuple[str, str], _Group](), dict[str, _Group]()
        for node, some in loads.items():
            for one in some:
                self.rate += one.rate
                self.count += one.count
                if self._has_few(one):
                    here.setdefault((node, one.cls), _Group()).add(one)
                    whole.setdefault(one.cls, _Group()).add(one)
        prior = PRIOR / window_s if window_s > 0 else 0.0
        self._means = {
            (node, cls): (group.rate + prior) / (group.count + prior / mean) if (mean := whole[cls].mean) else 0.0
            for (node, cls), group in here.items()
        }
        self.base = BASE * self.rate / self.count if self.rate else 1.0

    def _has_few(self, one: AgentLoad) -> bool:
        return one.rate < self._few * one.count

    def weight(self, node: str, one: AgentLoad) -> float:
        rate = self._means[node, one.cls] * one.count if self._has_few(one) else one.rate
        return rate + self.base * one.count


@dataclass(slots=True)
class _Group:
    """Agents of a class that got few messages."""

    count: int = 0
    rate: float = 0.0

    def add(self, one: AgentLoad) -> None:
        self.count += one.count
        self.rate += one.rate

    @property
    def mean(self) -> float:
        return self.rate / self.count
