"""Which moves would spread the agents' work more evenly, and what each of them is good for.

First load: an agent goes from the node with most work to one with least, as long as that makes the higher of the two lower.  Then
memory: large states leave the node that holds most bytes.  Then talk: an agent joins one that it exchanges many messages with.  Both
as long as the load stays even.  Each agent moves at most once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mielin_cells.policy.placement.rules import static
from mielin_cells.policy.placement.values import Need
from mielin_cells.policy.planning.choice import Node
from mielin_cells.policy.rebalance.estimate import Estimate
from mielin_cells.policy.rebalance.values import AgentLoad, Proposal, Suggested, order_of

WITHIN = 0.1
"""A spread is even if no node has more than this share above, or below, the mean."""

AGAIN = 0.05
"""`within` of all measurements but the first.  It is less than `WITHIN`: what is measured is not exact, and what seems to be just
within that may be outside it in truth."""

HOLD = 0.05
"""`hold` of the first measurement: a node that agents leave keeps this share more than the mean.  An agent that was moved rests, so
if too much left because of what was measured wrongly, it could not come back; if too little left, the next measurement
finds the rest."""

AIM = 0.3
"""Moves go on until the spread is within this part of that: else the next change would call for more of them."""

CANDIDATES = 8
"""Agents of about the right weight of which the one that talks most with the target is chosen."""

TALK_SHARE = 0.01
"""Messages between two agents are worth a move from this share of all messages on."""

BYTES_WITHIN, BYTES_MIN = 0.25, 16 << 20
"""States are moved for the memory that they take if a node holds this share, and so many bytes, more than the mean."""

BYTES_SHARE = 0.01
"""A state is worth a move from this share of the mean on."""

BYTES_ALIKE = 16
"""States whose sizes are alike but for so many bits count as equal where agents are chosen by their load."""

MOVES_MAX = 3000

SLICE_AGENTS, SLICE_MOVES, SLICE_PAIRS = 2000, 16, 2000
"""Agents that are looked at, moves that are found, and pairs of agents that talk, before others run."""

UNEVEN, APART = 0.25, 4
"""The table seems uneven once a node has this share, and so many agents, more than the mean, ..."""

POINTS_APART = 25.0
"""... or so many percent of cpu or of memory more than another."""


def unevenness(parts: Mapping[str, float]) -> float:
    """How far the node that is farthest from the mean is from it, as a share of the mean."""
    if not parts:
        return 0.0
    mean = sum(parts.values()) / len(parts)
    return max(abs(part - mean) for part in parts.values()) / mean if mean > 0 else 0.0


@dataclass(slots=True)
class _Side:
    """A node that takes agents, with those that may still move, by weight."""

    node: Node
    load: float = 0.0
    bytes: int = 0
    free: list[tuple[float, int, str]] = field(default_factory=list)
    kinds: dict[object, AgentLoad] | None = None
    """One agent of each kind that may move; known once somebody asks."""
    some: dict[frozenset[object], list[tuple[float, int, str]]] = field(default_factory=dict)
    """By the kinds of agents that a target can take: those of `free`, if it cannot take all."""

    @property
    def name(self) -> str:
        return self.node.name

    def remove(self, key: tuple[float, int, str]) -> None:
        """It no longer may move."""
        for ordered in (self.free, *self.some.values()):
            place = bisect_left(ordered, key)
            if place < len(ordered) and ordered[place] == key:
                del ordered[place]


class _Spreading:
    """Its iterators yield where others may run."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.sides = {name: _Side(node) for name, node in nodes.items() if node.is_open}
        self.rate = self.mean = self.mean_bytes = 0.0
        self.agents = dict[str, AgentLoad]()
        self.weights, self.at = dict[str, float](), dict[str, str]()
        self.moves: list[Suggested] = []
        self.kept = 0.0
        """What a node that agents leave shall keep; 0: whatever makes it most even."""
        self._fits: dict[object, bool] = {}
        """By kind and node: of agents that are alike here, one is asked about."""
        self._able = dict[tuple[str, str], list[tuple[float, int, str]]]()
        """By source and target: thousands of agents must not be looked at for each move."""

    def read(self, loads: Mapping[str, Iterable[AgentLoad]], window_s: float) -> Iterator[None]:
        """What was measured."""
        here = once({name: some for name, some in loads.items() if name in self.sides})
        yield
        estimate = Estimate(here, window_s)
        yield
        self.rate = estimate.rate
        for name, some in here.items():
            side = self.sides[name]
            for one in some:
                agent = one.agent or f"others of {name} ({one.cls})"
                self.agents[agent], self.at[agent] = one, name
                weight = self.weights[agent] = estimate.weight(name, one)
                side.load += weight
                side.bytes += one.size_bytes
                side.free.append((weight, order_of(agent), agent))
                if len(self.agents) % SLICE_AGENTS == 0:
                    yield
            side.free.sort()
            yield
        self.mean = sum(side.load for side in self.sides.values()) / max(1, len(self.sides))
        self.mean_bytes = sum(side.bytes for side in self.sides.values()) / max(1, len(self.sides))

    def is_best(self) -> bool:
        """No agent of the fullest node is lighter than what that has more than the emptiest, so none would help, if it might move."""
        if unevenness(self.parts()) <= WITHIN:
            return True
        order = sorted(self.sides.values(), key=lambda side: side.load)
        gap, fullest = order[-1].load - order[0].load, order[-1].name
        return not any(self.at[agent] == fullest and weight < gap * 0.999 for agent, weight in self.weights.items())

    def parts(self) -> dict[str, float]:
        whole = sum(side.load for side in self.sides.values())
        return {name: side.load / whole if whole else 1 / len(self.sides) for name, side in sorted(self.sides.items())}

    def fits(self, one: AgentLoad, node: Node) -> bool:
        key = _kind(one), node.name
        known = self._fits.get(key)
        if known is None:
            need = Need(one.agent, one.cls, one.version, one.policy, one.size_bytes)
            known = self._fits[key] = not any(finding.rules_out for finding in static(need, node.candidate))
        return known

    def able(self, source: _Side, target: _Side) -> list[tuple[float, int, str]]:
        """Those of `source.free` that the target can take."""
        known = self._able.get((source.name, target.name))
        if known is None:
            if source.kinds is None:
                source.kinds = {_kind(self.agents[agent]): self.agents[agent] for *_, agent in source.free}
            fit = frozenset(kind for kind, one in source.kinds.items() if self.fits(one, target.node))
            known = source.free if len(fit) == len(source.kinds) else source.some.get(fit)
            if known is None:
                known = source.some[fit] = [one for one in source.free if _kind(self.agents[one[2]]) in fit]
            self._able[source.name, target.name] = known
        return known

    # ---- load ------------------------------------------------------------------------------------------------

    def even_out(self, most: int, hold: float) -> Iterator[None]:
        """Moves from the fullest to the emptiest that can take something of it.

        A node that is near to what it shall keep (`hold`, a share above the mean) does not go below that.  One that is far above it
        may: by one heavy agent, whose messages were many enough to be measured well.
        """
        self.kept = (1 + hold) * self.mean if hold else 0.0
        stuck = set[str]()
        while len(self.moves) < most and unevenness(self.parts()) > AIM * WITHIN:
            order = sorted(self.sides.values(), key=lambda side: (side.load, side.name))
            fullest = next((side for side in reversed(order) if side.name not in stuck), None)
            if fullest is None:
                return
            if not any(self._give(fullest, side) for side in order):
                stuck.add(fullest.name)
            elif len(self.moves) % SLICE_MOVES == 0:
                yield

    def _give(self, source: _Side, target: _Side) -> bool:
        """One agent of about half the difference."""
        gap = source.load - target.load
        if source is target or gap <= 2 * AIM * WITHIN * self.mean:
            return False
        most = gap * 0.999
        if self.kept and (spare := source.load - self.kept) < HOLD * self.mean:
            most = min(most, spare)
        able = self.able(source, target)
        end = bisect_left(able, (most,))
        if not end:
            return False
        place = min(bisect_left(able, (gap / 2,)), end)
        sign = -1 if source.bytes > target.bytes else 1

        def rank(one: tuple[float, int, str]) -> tuple[float, int, int]:
            weight, order, agent = one
            size = self.agents[agent].size_bytes >> BYTES_ALIKE
            return abs(weight - gap / 2) - self.talk(agent, target.name), sign * size, order

        weight, _, agent = min(able[max(0, place - CANDIDATES) : min(end, place + CANDIDATES)], key=rank)
        high = source.load / self.mean
        self.move(agent, target, f"{self.agents[agent].rate:.3g} messages/s: {source.name} goes from {high:.0%} of the mean"
                  f" to {(source.load - weight) / self.mean:.0%}")  # fmt: skip
        return True

    def talk(self, agent: str, node: str) -> float:
        """Messages a second that the agent exchanges with agents of the node, less those with its own."""
        return sum(
            rate * ((self.at.get(other) == node) - (self.at.get(other) == self.at[agent]))
            for other, rate in self.agents[agent].talks.items()
        )  # fmt: skip

    def move(self, agent: str, target: _Side, why: str) -> None:
        one, source, weight = self.agents[agent], self.sides[self.at[agent]], self.weights[agent]
        source.remove((weight, order_of(agent), agent))
        source.load -= weight
        target.load += weight
        source.bytes -= one.size_bytes
        target.bytes += one.size_bytes
        self.at[agent] = target.name
        self.moves.append(Suggested(agent, source.name, target.name, one.rate, why, one.size_bytes))

    def _place(self, side: _Side, agent: str) -> int:
        """Where it is among those of its node that may still move; -1: it is not."""
        key = self.weights[agent], order_of(agent), agent
        place = bisect_left(side.free, key)
        return place if place < len(side.free) and side.free[place] == key else -1

    def _stays_even(self, agent: str, source: _Side, target: _Side, back: float = 0.0) -> bool:
        weight, slack = self.weights[agent] - back, WITHIN / 2 * self.mean
        return target.load + weight <= self.mean + slack and source.load - weight >= self.mean - slack

    # ---- memory ----------------------------------------------------------------------------------------------

    def spread_bytes(self, most: int) -> None:
        """Moves states from the node that holds most bytes to the one that holds least, as long as the load stays even."""
        large = {
            name: {agent for *_, agent in side.free if self.agents[agent].size_bytes > BYTES_SHARE * self.mean_bytes}
            for name, side in self.sides.items()
        }
        while len(self.moves) < most and len(self.sides) > 1:
            order = sorted(self.sides.values(), key=lambda side: (side.bytes, side.name))
            source, target = order[-1], order[0]
            if source.bytes - self.mean_bytes <= max(BYTES_MIN, BYTES_WITHIN * self.mean_bytes):
                return
            gap = source.bytes - target.bytes
            able = sorted(
                (abs(size - gap / 2), agent)
                for agent in large[source.name]
                if (size := self.agents[agent].size_bytes) < gap and self.fits(self.agents[agent], target.node)
            )
            if not any(self._move_state(agent, source, target, large) for _, agent in able):
                return

    def _move_state(self, agent: str, source: _Side, target: _Side, large: Mapping[str, set[str]]) -> bool:
        """Alone, or against one that does as much and has a small state; False if neither keeps the load even."""
        size, back = self.agents[agent].size_bytes, ""
        if not self._stays_even(agent, source, target):
            place = bisect_left(target.free, (self.weights[agent],))
            near = target.free[max(0, place - CANDIDATES) : place + CANDIDATES]
            able = [
                (abs(weight - self.weights[agent]), other)
                for weight, _, other in near
                if self.agents[other].size_bytes <= size / 2 and self.fits(self.agents[other], source.node)
            ]
            _, back = min(able, default=(0.0, ""))
            if not back or not self._stays_even(agent, source, target, self.weights[back]):
                return False
        large[source.name].remove(agent)
        high, low = source.bytes / self.mean_bytes, (source.bytes - size) / self.mean_bytes
        why = f"{size / (1 << 20):.1f} MiB of state: {source.name} goes from {high:.0%} of the mean to {low:.0%}"
        self.move(agent, target, why)
        if back:
            large[target.name].discard(back)
            self.move(back, source, f"it does as much as {agent}, whose state goes the other way")
        return True

    # ---- talk ------------------------------------------------------------------------------------------------

    def bring_together(self, most: int) -> Iterator[None]:
        """Moves agents to those that they talk with, as long as no node leaves the mean for it."""
        pairs, least = list[tuple[float, str, str]](), TALK_SHARE * self.rate
        for count, (agent, one) in enumerate(self.agents.items(), 1):
            pairs += [(rate, agent, other) for other, rate in one.talks.items() if rate >= least]
            if count % SLICE_AGENTS == 0:
                yield
        pairs.sort(reverse=True)
        for count, (rate, agent, other) in enumerate(pairs, 1):
            if len(self.moves) >= most:
                return
            if count % SLICE_PAIRS == 0:
                yield
            for mover, stays in ((agent, other), (other, agent)):
                if self._join(mover, self.at.get(stays, ""), rate):
                    break

    def _join(self, mover: str, node: str, rate: float) -> bool:
        target = self.sides.get(node)
        if target is None or mover not in self.at or self.at[mover] == node:
            return False
        one, source = self.agents[mover], self.sides[self.at[mover]]
        room = self.mean_bytes + max(BYTES_MIN, BYTES_WITHIN * self.mean_bytes) - target.bytes
        if (
            one.size_bytes > room
            or not self._stays_even(mover, source, target)
            or self._place(source, mover) < 0
            or not self.fits(one, target.node)
            or self.talk(mover, node) <= 0
        ):
            return False
        self.move(mover, target, f"it exchanges {rate:.3g} messages/s with agents of {node}")
        return True


def _kind(one: AgentLoad) -> object:
    """Agents of a kind can be taken by the same nodes."""
    return one.cls, one.version, one.policy if one.policy.require else one.policy.preferred_architectures


def once(loads: Mapping[str, Iterable[AgentLoad]]) -> dict[str, list[AgentLoad]]:
    """Each agent by one node only: one that moved while it was measured is named by two, and the node of the later epoch has it."""
    epochs = dict[str, tuple[int, str]]()
    for name, some in loads.items():
        for one in some:
            epochs[one.agent] = max(epochs.get(one.agent, (-1, "")), (one.epoch, name))
    return {
        name: [one for one in some if not one.agent or epochs[one.agent] == (one.epoch, name)]
        for name, some in loads.items()
    }


def seems_uneven(nodes: Iterable[Node]) -> bool:
    """What the table of members says suggests that measuring is worth while."""
    there = [node for node in nodes if node.is_open]
    if len(there) < 2:
        return False
    mean = sum(node.agents for node in there) / len(there)
    apart = max(node.agents for node in there) - mean
    return apart > max(APART, UNEVEN * mean) or any(
        max(known) - min(known) > POINTS_APART
        for values in ([node.facts.cpu for node in there], [node.facts.memory for node in there])
        if (known := [value for value in values if value is not None])
    )


def proposing(
    nodes: Mapping[str, Node],
    loads: Mapping[str, Iterable[AgentLoad]],
    *,
    fixed: Collection[str] = (),
    window_s: float = 0.0,
    within: float = WITHIN,
    hold: float = 0.0,
    most: int = MOVES_MAX,
) -> Iterator[Proposal | None]:
    """The moves that are worth while now, the best first.  Those that are `fixed` stay.  The last item is the answer; each before is
    None, and others may run there: with many agents this takes longer than a leader may be silent.

    `window_s`: for how long messages were counted; 0: the rates are exact.  `within`: a spread that is as even as that stays.  `hold`:
    this share more than the mean is left where agents come from.
    """
    spreading = _Spreading(nodes)
    yield from spreading.read(loads, window_s)
    before, held = spreading.parts(), {name: side.bytes for name, side in sorted(spreading.sides.items())}

    def may_move(agent: str) -> bool:
        one = spreading.agents[agent]
        return one.count == 1 and agent not in fixed and not one.policy.immovable

    for side in spreading.sides.values():
        side.free = [one for one in side.free if may_move(one[2])]
        yield None
    if unevenness(before) > within:
        yield from spreading.even_out(most, hold)
    yield None
    spreading.spread_bytes(most)
    yield None
    yield from spreading.bring_together(most)
    rates = {name: sum(one.rate for one in some) for name, some in sorted(loads.items())}
    yield Proposal(spreading.moves, before, spreading.parts(), rates, spreading.is_best(), held)
