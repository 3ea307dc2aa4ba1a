"""Plans: moves that are recorded in the log of the members before they begin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from mielin_cells.policy.triggers.conditions import CRITICAL

POLICY = "policy"
"""The run of plans that policies ask for."""

HOUR_S = 3600.0

RECENT_MAX = 20_000
"""Moves of the last hour that the table remembers; above it the oldest are forgotten first."""


class PlannedMove(msgspec.Struct, array_like=True, frozen=True):
    """One move: an ordinary migration whose id is known before it begins."""

    agent: str
    migration: str
    epoch: int
    source: str
    target: str
    priority: int = 0
    why: str = ""

    @property
    def is_critical(self) -> bool:
        return self.priority >= CRITICAL


class Plan(msgspec.Struct, array_like=True, frozen=True):
    """An open plan.  Its moves hold their places in the limits until it ends."""

    seq: int
    """The position of its record, which is its name."""
    term: int
    """Of the leader that made it."""
    run: str
    """"policy", or the name of the rebalancing that it belongs to."""
    at: float
    """When it was made, by the store's time."""
    until: float
    """When it ends at the latest, by the store's time: no leader begins a move of it after that."""
    moves: tuple[PlannedMove, ...]
    is_stopped: bool = False
    """An operator has stopped it."""


class Recent(msgspec.Struct, array_like=True, frozen=True):
    """A move that was planned within the last hour."""

    agent: str
    at: float
    is_critical: bool


class Plans(msgspec.Struct, array_like=True):
    """What the log of the members says of plans: those that are open, and what was planned lately."""

    open: dict[int, Plan] = {}
    recent: list[Recent] = []
    """In the order of their records."""
    stopped: list[str] = []
    """Rebalancings that an operator has stopped, the newest last."""

    def __iter__(self) -> Iterator[PlannedMove]:
        """The moves of all open plans."""
        return (move for plan in self.open.values() for move in plan.moves)

    def begin(self, plan: Plan) -> None:
        self.open[plan.seq] = plan
        self.recent += [Recent(move.agent, plan.at, move.is_critical) for move in plan.moves]
        oldest = next((place for place, one in enumerate(self.recent) if plan.at - one.at < HOUR_S), len(self.recent))
        del self.recent[: max(oldest, len(self.recent) - RECENT_MAX)]

    def end(self, seq: int) -> None:
        self.open.pop(seq, None)

    def stop(self, run: str) -> None:
        """Of this rebalancing, or with "" of everything."""
        for seq, plan in self.open.items():
            if not run or plan.run == run:
                self.open[seq] = msgspec.structs.replace(plan, is_stopped=True)
        runs = {run} if run else {plan.run for plan in self.open.values() if plan.run != POLICY}
        self.stopped = [*self.stopped[-31:], *sorted(runs)]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How many moves may be in open plans at a time.  Critical moves have as many places of their own."""

    moves: int = 128
    """In the deployment."""
    moves_out: int = 64
    """From one node."""
    moves_in: int = 64
    """To one node."""

    @property
    def of_plan(self) -> int:
        """Moves of one plan.  They give their places back together, so that a slow one holds up those of its plan and no others."""
        return max(8, self.moves // 4)


class Places:
    """The places that open moves leave free."""

    def __init__(self, limits: Limits, moves: Iterable[PlannedMove] = ()) -> None:
        self._limits = limits
        self._taken = Counter[tuple[str, str, bool]]()
        for move in moves:
            self.take(move)

    def take(self, move: PlannedMove) -> None:
        for key in (("", ""), ("out", move.source), ("in", move.target)):
            self._taken[*key, move.is_critical] += 1

    def why_full(self, source: str, target: str, *, is_critical: bool) -> str:
        """ "" if one more move may be planned."""
        limits, taken = self._limits, self._taken
        for way, node, limit in (
            ("", "", limits.moves),
            ("out", source, limits.moves_out),
            ("in", target, limits.moves_in),
        ):
            if (node or not way) and taken[way, node, is_critical] >= limit:
                where = f" {'from' if way == 'out' else 'to'} {node}" if node else ""
                return f"{limit} moves{where} are open, which is the limit"
        return ""


def why_rests(recent: Iterable[Recent], now: float, *, cooldown_s: float, per_hour: int, is_critical: bool) -> str:
    """Why an agent is not moved again now, by what was planned for it within the last hour; "" if it may be.

    A time that lies ahead, of a store that was put back, counts as now.
    """
    ages = [(max(0.0, now - one.at), one.is_critical) for one in recent]
    if is_critical:
        last = min((age for age, critical in ages if critical), default=cooldown_s)
        return (
            f"a critical trigger moved it {last:.0f} s ago, and two such moves are {cooldown_s:g} s apart"
            if last < cooldown_s
            else ""
        )
    last = min((age for age, _ in ages), default=cooldown_s)
    if last < cooldown_s:
        return f"it was moved {last:.0f} s ago, and stays for {cooldown_s:g} s"
    count = sum(age < HOUR_S for age, critical in ages if not critical)
    return f"it was moved {count} times within an hour, which is its limit" if count >= per_hour else ""
