"""Which node takes an agent that a plan moves: what the trigger asks, then the one function of placement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeAlias

from mielin_cells.policy.evaluation.wishes import Wish
from mielin_cells.policy.facts import Facts
from mielin_cells.policy.placement.place import place, unit_of
from mielin_cells.policy.placement.values import NO_PLACES, Candidate, Need, Placement, Places
from mielin_cells.policy.triggers.needs import Fits, check, score

SCORE_MAX = 115.0

POINTS = 25.0
"""So many points of the triggers' score outweigh as many agents as an average node has."""


class Node(NamedTuple):
    """A node that may take agents, as the table of members tells of it."""

    candidate: Candidate
    agents: int = 0

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def facts(self) -> Facts:
        return self.candidate.facts

    @property
    def is_open(self) -> bool:
        """It takes agents."""
        return not self.candidate.is_cordoned


class Choice(NamedTuple):
    target: str
    """"": no node takes it."""
    why: str


WhyFull: TypeAlias = Callable[[str], str]
"""Why a node has no place for one more; "" if it has."""


def choose(
    wish: Wish, source: str, nodes: Iterable[Node], coming: Counter[str], but: Mapping[str, str], why_full: WhyFull,
    places: Places = NO_PLACES, need: Need | None = None,
) -> Choice:  # fmt: skip
    """`coming`: agents that open plans move to each node.  `but`: nodes that are not asked now, and why.  `places`: where the agents
    are that its policy looks at.  `need`: the agent as placement sees it, if more is known than the wish says."""
    there = {node.name: node for node in nodes}
    reasons, whys, unsure = dict[str, str](), dict[str, str](), set[str]()
    for name, node in there.items():
        answer, avoided = check(wish.needs, node.facts), check(wish.avoids, node.facts)
        whys[name] = answer.why
        if name == source:
            reasons[name] = ""
        elif wish.to and name != wish.to:
            reasons[name] = f"it is to go to {wish.to}"
        elif reason := but.get(name, "") or why_full(name):
            reasons[name] = reason
        elif Fits.NO in (answer.fits, avoided.fits):
            reasons[name] = answer.why if answer.fits is Fits.NO else avoided.why
        elif answer.fits is Fits.UNKNOWN:
            unsure.add(name)
    need = need or need_of(wish)
    loads = _loads(there.values(), coming)
    candidates = [node.candidate for node in there.values()]
    placement: Placement | None = None
    for excluded in ({*reasons, *unsure}, {*reasons}):
        if excluded.issuperset(there):
            continue
        placement = place(need, candidates, loads, but=excluded, places=places, taken=coming)
        if placement.node is not None:
            return Choice(placement.node, whys[placement.node])
    if placement is not None:
        reasons |= _ruled_out(placement, reasons)
    said = [f"{name}: {reason}" for name, reason in sorted(reasons.items()) if name != source]
    return Choice("", "; ".join(said) or "there is no other node")


def need_of(wish: Wish) -> Need:
    """The agent as placement sees it, by what its node says of it."""
    return Need(wish.agent, wish.cls, wish.version, wish.policy, wish.size_bytes)


def _loads(nodes: Iterable[Node], coming: Counter[str]) -> dict[str, int]:
    """The agents of each node, those that come, and the score of its facts counted as agents."""
    some = [*nodes]
    agents = {node.name: node.agents + coming[node.name] for node in some}
    unit = unit_of((node.candidate for node in some), agents)
    return {
        node.name: agents[node.name] + round(unit * (SCORE_MAX - score(node.facts)) / POINTS) for node in some
    }  # fmt: skip


def _ruled_out(placement: Placement, known: Mapping[str, str]) -> dict[str, str]:
    """By node, the first rule of the agent's policy that rules it out."""
    found = dict[str, str]()
    for verdict in placement.verdicts:
        finding = next((one for one in verdict.findings if one.rules_out), None)
        if finding is not None and verdict.node not in known:
            found[verdict.node] = finding.why or f"{finding.rule} {finding.text}".strip()
    return found
