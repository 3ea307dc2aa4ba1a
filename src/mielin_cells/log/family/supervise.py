"""What a parent does about a child that has failed: a pure machine (rule F3)."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from mielin_cells.log.family.tree import STRATEGIES, Child, Decided, Down, Family, Gone, Order, Strategy
from mielin_cells.settings import TIMEOUT_S_MAX

RESTARTS_MAX = 1000
"""Largest `max_restarts`: the times of all of them are in the parent's state."""


class Supervision(msgspec.Struct, frozen=True, kw_only=True):
    """How agents of a class supervise their children: an option of the class.

    `strategy`: which children are restarted when one fails.  one_for_one: that one.  one_for_all: all.  rest_for_one: that one, and
    those that were spawned after it.
    `max_restarts`, `within_s`: so many failures within so many seconds, by the store's clock, are answered by restarts.  One more
    puts the parent itself in ERROR.

        >>> class Line(cells.Agent, supervision=cells.Supervision(strategy="one_for_all", max_restarts=5, within_s=10)):
        ...     @cells.handler
        ...     async def begin(self) -> int:
        ...         counter = await cells.spawn(Till, "counter")
        ...         return await counter.sell(5)
        ...
        >>> line = await cluster.spawn(Line, "line")
        >>> await line.begin()
        5
    """

    strategy: Strategy = "one_for_one"
    max_restarts: int = 3
    within_s: float = 60.0

    @property
    def wrong(self) -> str:
        """What is wrong with it; "" if nothing is."""
        number = type(self.within_s) in (int, float)
        if self.strategy not in STRATEGIES:
            return f"strategy = {self.strategy!r}; there are {', '.join(map(repr, STRATEGIES))}"
        if type(self.max_restarts) is not int or not 0 <= self.max_restarts <= RESTARTS_MAX:
            return f"max_restarts = {self.max_restarts!r} is not a whole number from 0 to {RESTARTS_MAX}"
        if not number or not 0 < self.within_s <= TIMEOUT_S_MAX:
            return f"within_s = {self.within_s!r} is not a number of seconds above 0, and up to {TIMEOUT_S_MAX:g}"
        return ""


class Decision(NamedTuple):
    change: Decided | Gone | None
    """None: the notice was taken before, or is of no child."""
    escalates: str = ""
    """Why the parent itself fails; "": it does not."""


NOTHING = Decision(None)


def decide(family: Family, supervision: Supervision, down: Down, now: float) -> Decision:
    """What follows from a notice of a child.  `now`: the store's time."""
    child = family.children.get(down.agent)
    if child is None or down.n <= child.seen:
        return NOTHING
    if down.kind == "terminated":
        return Decision(Gone(child.agent))
    within = [at for at in family.restarts if at > now - supervision.within_s]
    if child.on_failure == "stop":
        orders: list[tuple[str, Order]] = [(child.agent, "suspend")] if down.kind == "dead_letters" else []
        return Decision(Decided(child.agent, down.n, down.failure, "stopped", orders, within))
    why = _why_escalate(child, supervision, down, len(within))
    if why:
        return Decision(Decided(child.agent, down.n, down.failure, "escalated", [], within), why)
    orders = [(one.agent, _order(one, child, down)) for one in _affected(family, supervision.strategy, child)]
    return Decision(Decided(child.agent, down.n, down.failure, "running", orders, [*within, now]))


def _why_escalate(child: Child, supervision: Supervision, down: Down, made: int) -> str:
    what = f"its child {child.agent!r} failed ({down.cause})"
    if child.on_failure == "escalate":
        return f"{what}, and it was spawned with on_failure='escalate'"
    if down.fatal:
        return f"{what}, which cannot be resumed"
    if made >= supervision.max_restarts:
        return f"{what}, and children were restarted {made} times within {supervision.within_s:g} s, which is the limit"
    return ""


def _affected(family: Family, strategy: Strategy, child: Child) -> list[Child]:
    """In the order in which they were spawned."""
    if strategy == "one_for_one":
        return [child]
    children = list(family.children.values())
    if strategy == "rest_for_one":
        children = children[children.index(child) :]
    return [one for one in children if one is child or one.status == "running"]


def _order(one: Child, failed: Child, down: Down) -> Order:
    return "restart" if one is failed and down.kind == "failed" else "reload"
