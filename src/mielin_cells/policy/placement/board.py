"""Places one agent after the other, each as `place` would, at a cost that hardly grows with the number of nodes.

Agents of one class, version and policy share a ranking: a verdict on each node that is kept until the node says something else, and
queues from which the best node is taken.  Loads change with each agent, so the queues are put in order when they are looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from heapq import heapify, heappop, heappush, heapreplace
from typing import NamedTuple, TypeAlias

from mielin_cells.errors import ExpressionInvalid
from mielin_cells.log.policy import DEFAULT, Policy
from mielin_cells.policy.expression.parser import parse
from mielin_cells.policy.placement.place import cost_of, count_domains, domain_of, emptiest, place, unit_for
from mielin_cells.policy.placement.rules import Field, around, static
from mielin_cells.policy.placement.values import NO_PLACES, Candidate, Need, Placement, Places, Term

RANKINGS_MAX = 64
"""Kinds of agents whose rankings are kept."""

GIVEN_MAX = 10_000
"""Agents of one class whose places are remembered until the hints name them."""

NOBODY: Mapping[str, str] = {}

Key: TypeAlias = tuple[bool, float, float, str]
Domain: TypeAlias = tuple[str | None, ...]


@lru_cache(1024)
def looks_at_agent(policy: Policy) -> bool:
    """True if rules look at more of the agent than its class and version."""
    for text in (*policy.require, *(one.that for one in policy.prefer)):
        try:
            names = parse(text).names
        except ExpressionInvalid:
            continue
        if any(scope == "agent" and word not in ("class", "version") for scope, _, word in names):
            return True
    return False


def _kind(need: Need) -> Need:
    """What agents of one ranking have in common."""
    if need.policy is not DEFAULT and looks_at_agent(need.policy):
        return need
    return Need("", need.cls, need.version, need.policy)


class Queue:
    """The nodes of one domain that may take the agents, the best first."""

    __slots__ = ("_board", "_heap", "_keys", "_points", "_unit")

    def __init__(self, board: Board, points: dict[str, float]) -> None:
        self._board = board
        self._points = points
        self._unit = board.unit
        """Without points the order is the same by any unit, and keys of two units are not compared."""
        self._keys = {name: self._key(name) for name in points}
        self._heap = list(self._keys.values())
        heapify(self._heap)

    def _key(self, name: str) -> Key:
        board = self._board
        cost = cost_of(board.loads[name], self._unit, self._points[name])
        return board.nodes[name].is_starting, cost, board.order.get(name, 0.0), name

    def head(self, but: Collection[str]) -> Key | None:
        """The best node besides those.  A key that was too low is mended when it comes first; none is too high (`improved`)."""
        heap, keys, aside, found = self._heap, self._keys, list[Key](), None
        while heap:
            key = heap[0]
            name = key[3]
            if keys.get(name) is not key:
                heappop(heap)
                continue
            now = self._key(name)
            if now != key:
                keys[name] = now
                heapreplace(heap, now)
            elif self._board.is_full(name):
                heappop(heap)
                del keys[name]
            elif name in but:
                aside.append(heappop(heap))
            else:
                found = key
                break
        for key in aside:
            heappush(heap, key)
        return found

    def improved(self, name: str) -> None:
        """The node has fewer agents than were counted."""
        if name in self._points:
            key = self._keys[name] = self._key(name)
            heappush(self._heap, key)


class Verdict(NamedTuple):
    node: Candidate
    fits: bool
    points: float


class Ranking:
    """For agents of one class, version and policy."""

    def __init__(self, kind: Need) -> None:
        self.kind = kind
        self._verdicts: dict[str, Verdict] = {}
        self._queues: dict[Domain, Queue] = {}
        self._made = (-1, -1)
        """The board's revision, and the unit, that the queues were made for."""
        self._has_points = False
        self._counted: Mapping[str, str] | None = None
        self._counts = Counter[Domain]()

    def refresh(self, board: Board) -> None:
        """Takes in what the board knows now."""
        revision, unit = self._made
        if revision == board.revision and (unit == board.unit or not self._has_points):
            return
        if revision != board.revision:
            before, self._verdicts = self._verdicts, {}
            for name, node in board.nodes.items():
                known = before.get(name)
                self._verdicts[name] = known if known is not None and known.node is node else self._judge(node)
            self._counted = None
        self._made = board.revision, board.unit
        domains: dict[Domain, dict[str, float]] = {}
        for name, verdict in self._verdicts.items():
            if verdict.fits:
                domain = domain_of(verdict.node, self.kind.policy.spread)
                domains.setdefault(domain, {})[name] = verdict.points
        self._has_points = any(verdict.points for verdict in self._verdicts.values())
        self._queues = {domain: Queue(board, points) for domain, points in domains.items()}

    def _judge(self, node: Candidate) -> Verdict:
        findings = [*static(self.kind, node)]
        return Verdict(node, not any(one.rules_out for one in findings), sum(one.points for one in findings))

    def fits(self, name: str) -> bool:
        return name in self._verdicts and self._verdicts[name].fits

    def improved(self, name: str) -> None:
        if name in self._verdicts:
            domain = domain_of(self._verdicts[name].node, self.kind.policy.spread)
            if domain in self._queues:
                self._queues[domain].improved(name)

    # ---- choosing --------------------------------------------------------------------------------------------

    def choose(self, board: Board, need: Need, but: Collection[str], places: Places) -> str | None:
        policy = need.policy
        if policy.near or policy.apart:
            return self._choose_around(board, need, but, places)
        heads = {domain: key for domain, queue in self._queues.items() if (key := queue.head(but)) is not None}
        if policy.spread:
            left = emptiest(heads.keys(), self._count(board, need, places), len(policy.spread))
            heads = {domain: key for domain, key in heads.items() if domain in left}
        best = min(heads.values(), default=None)
        return best[3] if best is not None else None

    def _choose_around(self, board: Board, need: Need, but: Collection[str], places: Places) -> str | None:
        """Looks at each node: where other agents are is another matter for each agent."""
        peers = around(need, Field(places, board.nodes))
        able = list[tuple[Domain, Key]]()
        for name, verdict in self._verdicts.items():
            if not verdict.fits or name in but or board.is_full(name) or any(one.rules_out(name) for one in peers):
                continue
            points = verdict.points + sum(one.points(name) for one in peers)
            key = (
                verdict.node.is_starting,
                cost_of(board.loads[name], board.unit, points),
                board.order.get(name, 0.0),
                name,
            )
            able.append((domain_of(verdict.node, need.policy.spread), key))
        if need.policy.spread:
            left = emptiest({domain for domain, _ in able}, self._count(board, need, places), len(need.policy.spread))
            able = [one for one in able if one[0] in left]
        return min((key for _, key in able), default=(False, 0.0, 0.0, None))[3]

    def _count(self, board: Board, need: Need, places: Places) -> Counter[Domain]:
        """The agents of the class by domain, without this one."""
        there = places.get(Term("class", need.cls), NOBODY)
        labels = need.policy.spread
        if self._counted is not there:
            given = (node for agent, node in board.given.get(need.cls, {}).items() if agent not in there)
            self._counted, self._counts = there, count_domains([*there.values(), *given], board.nodes, labels)
        own = there.get(need.agent) or board.given.get(need.cls, {}).get(need.agent)
        return self._counts - count_domains([own], board.nodes, labels) if own is not None else self._counts

    def note(self, board: Board, agent: str, node: str, by: int) -> None:
        """An agent of the class is placed on the node, or taken from it."""
        if self.kind.policy.spread and node in board.nodes and (self._counted is None or agent not in self._counted):
            for domain, count in count_domains([node], board.nodes, self.kind.policy.spread).items():
                self._counts[domain] += by * count


class Board:
    """The nodes, as far as they are known, with the agents that each was given since."""

    def __init__(self) -> None:
        self.nodes: dict[str, Candidate] = {}
        self.loads: dict[str, int] = {}
        self.order: dict[str, float] = {}
        """Decides between nodes that are equal otherwise."""
        self.revision = 0
        self.unit = 1
        self.given: dict[str, dict[str, str]] = {}
        """By class, the agents that were placed by this board, for classes that are spread over labels."""
        self._told: dict[str, tuple[int, int]] = {}
        self._counted: dict[str, int] = {}
        """The loads as they were when the nodes said how many more they take."""
        self._sum = self._count = 0
        self._rankings: dict[Need, Ranking] = {}

    def update(self, nodes: Iterable[Candidate], loads: Mapping[str, int]) -> None:
        """Takes in what is known now.  What a node was given counts until another number, or another fact, is known of it."""
        before, self.nodes = self.nodes, {}
        for node in nodes:
            name, known = node.name, before.get(node.name)
            self.nodes[name] = known if known is not None and known == node else node
            told = (loads[name], node.incarnation)
            if self._told.get(name) != told:
                self._told[name], self.loads[name] = told, loads[name]
            if known is None or known.facts != node.facts or known.incarnation != node.incarnation:
                self._counted[name] = self.loads[name]
        for name in before.keys() - self.nodes.keys():
            for kept in (self._told, self.loads, self._counted):
                kept.pop(name, None)
        serving = [name for name, node in self.nodes.items() if not node.is_cordoned]
        self._sum, self._count = sum(self.loads[name] for name in serving), len(serving)
        self.unit = unit_for(self._sum, self._count)
        self.revision += 1

    def is_full(self, name: str) -> bool:
        slots = self.nodes[name].facts.slots
        return slots is not None and self._taken(name) >= slots

    def _taken(self, name: str) -> int:
        return max(0, self.loads[name] - self._counted[name])

    def _ranking(self, need: Need) -> Ranking:
        kind = _kind(need)
        ranking = self._rankings.pop(kind, None) or Ranking(kind)
        self._rankings[kind] = ranking  # the one that was used last stands last
        if len(self._rankings) > RANKINGS_MAX:
            del self._rankings[next(iter(self._rankings))]
        ranking.refresh(self)
        return ranking

    # ---- asked -----------------------------------------------------------------------------------------------

    def choose(self, need: Need, but: Collection[str] = (), places: Places = NO_PLACES) -> str | None:
        """The node for the agent, which counts as given to it; None if there is none but those."""
        chosen = self._ranking(need).choose(self, need, but, places)
        if chosen is not None:
            self.takes(chosen, need)
        return chosen

    def fits(self, name: str, need: Need) -> bool:
        """True if the node meets the conditions that look neither at loads nor at other agents."""
        return self._ranking(need).fits(name)

    def explain(self, need: Need, but: Collection[str] = (), places: Places = NO_PLACES) -> Placement:
        """As `choose`, with every rule on every node; nothing is given."""
        given = self.given.get(need.cls)
        if given and need.policy.spread:
            term = Term("class", need.cls)
            places = {**places, term: {**given, **places.get(term, {})}}
        taken = {name: self._taken(name) for name in self.nodes}
        return place(
            need, self.nodes.values(), self.loads, but=but, order=self.order, places=places, taken=taken
        )  # fmt: skip

    def takes(self, name: str, need: Need | None = None) -> None:
        """The node is given one more agent."""
        if name in self.loads:
            self._change(name, 1)
        if need is not None and need.policy.spread and need.agent:
            given = self.given.setdefault(need.cls, {})
            self._note(need, given.pop(need.agent, None), -1)
            given[need.agent] = name
            self._note(need, name, 1)
            if len(given) > GIVEN_MAX:
                self._note(need, given.pop(next(iter(given))), -1)

    def gives_back(self, name: str, need: Need | None = None) -> None:
        """The node has not taken the agent."""
        if name in self.loads:
            self._change(name, -1)
            for ranking in self._rankings.values():
                ranking.improved(name)
        if need is not None and self.given.get(need.cls, {}).get(need.agent) == name:
            del self.given[need.cls][need.agent]
            self._note(need, name, -1)

    def _change(self, name: str, by: int) -> None:
        self.loads[name] += by
        if not self.nodes[name].is_cordoned:
            self._sum += by
            self.unit = unit_for(self._sum, self._count)

    def _note(self, need: Need, node: str | None, by: int) -> None:
        if node is not None:
            for ranking in self._rankings.values():
                if ranking.kind.cls == need.cls:
                    ranking.note(self, need.agent, node, by)
