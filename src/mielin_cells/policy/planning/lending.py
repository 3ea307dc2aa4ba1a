"""How the moves of a whole deployment keep to one limit: each node has some places of its own, and the leader lends the others.

A loan is for a time, and is counted until that time is over, even if its node is dead.  So a leader that has just begun adds nothing
to what nodes say that they have, until all that its predecessors have lent has lapsed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

LENT_S = 5.0
"""A loan lasts so long unless it is renewed."""


def share_of(limit: int, nodes: int) -> int:
    """Places that each node has without asking anybody: together half of all.  0: in so large a deployment each place is lent."""
    return limit // (2 * max(1, nodes))


class Ask(NamedTuple):
    node: str
    number: tuple[int, int]
    """Grows with each ask of a node, over its processes: an ask that comes late says nothing."""
    held: int
    """Places that it has been lent, and may use."""
    used: int
    """Places that its moves take now, beyond its own.  They go on whatever is decided here."""
    want: int
    """Places that it could use."""


class Loan(NamedTuple):
    number: tuple[int, int]
    places: int
    until: float
    since: float
    """From then on it has had some places."""


@dataclass(slots=True)
class Lending:
    """Of one term of one leader, by its own clock."""

    begun: float
    """When it learnt of its term."""
    _loans: dict[str, Loan] = field(default_factory=dict)
    _short: dict[str, float] = field(default_factory=dict)
    """Until when a node counts as one that waits for more than it has."""

    def lend(self, now: float, ask: Ask, pool: int) -> int:
        """How many of `pool` places the node may have from now on."""
        node = ask.node
        self._loans = {name: loan for name, loan in self._loans.items() if loan.until > now}
        self._short = {name: until for name, until in self._short.items() if until > now}
        if (last := self._loans.get(node)) is not None and last.number >= ask.number:
            return 0  # the node has asked again since, and does not wait for this answer
        self._short.pop(node, None)
        since = last.since if last is not None and ask.held else now
        free = max(0, pool - sum(loan.places for name, loan in self._loans.items() if name != node))
        places = min(ask.want, free if now >= self.begun + LENT_S else ask.held)
        if self._short:  # somebody else waits: nobody keeps more than its part
            nodes = len({node, *self._loans, *self._short})
            places = min(places, max(1, pool // nodes))
            if nodes > pool and now - since >= LENT_S:
                places = 0  # not all can have one: they take turns
        if ask.want > places:
            self._short[node] = now + LENT_S
        # The answer may be lost: then the node goes on with what it has.
        self._loans[node] = Loan(ask.number, max(places, ask.held, ask.used), now + LENT_S, since)
        return places
