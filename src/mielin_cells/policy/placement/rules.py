"""What each rule says about one node.  `static` does not look at loads and at other agents, so its answers can be kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mielin_cells.errors import ExpressionInvalid
from mielin_cells.log.policy import Affinity, Preference
from mielin_cells.policy.expression import names
from mielin_cells.policy.expression.parser import parse
from mielin_cells.policy.facts import Value
from mielin_cells.policy.placement.values import Candidate, Finding, Need, Places, Term


def static(need: Need, node: Candidate) -> Iterator[Finding]:
    """The rules whose answers depend on the agent's class and policy, and on what the node says of itself."""
    yield from _service(node)
    yield _class(need, node)
    policy = need.policy
    if policy.preferred_architectures:
        yield _architecture(need, node)
    if policy.require or policy.prefer:
        facts = {"node": node.scope(), "agent": need.scope()}
        for rule in policy.require:
            yield _require(rule, facts)
        for preference in policy.prefer:
            yield _prefer(preference, facts)


def _service(node: Candidate) -> Iterator[Finding]:
    if node.is_cordoned:
        yield Finding(
            rule="out of service", holds=False, is_required=True, why=f"{node.name} is cordoned or is about to stop"
        )


def _class(need: Need, node: Candidate) -> Finding:
    have = node.classes.get(need.cls)
    holds, why = True, ""
    if not need.cls or not node.classes:
        why = "its class is not known here" if not need.cls else f"{node.name} has not said which classes it knows"
    elif have is None:
        holds, why = False, f"{node.name} does not know the class {need.cls}"
    elif have < need.version:
        holds, why = False, f"{node.name} has {need.cls} version {have}, and its state is of version {need.version}"
    values: dict[str, Value | None] = {f"node.classes.{need.cls}": have} if need.cls else {}
    return Finding(rule="class", text=need.cls, holds=holds, is_required=True, why=why, values=values)


def _architecture(need: Need, node: Candidate) -> Finding:
    wanted = need.policy.preferred_architectures
    holds = node.architecture in wanted if node.architecture else None
    return Finding(
        rule="architecture", text=" or ".join(wanted), holds=holds, is_required=True,
        why="" if holds else f"{node.name} is {node.architecture or 'of an unknown architecture'}",
        values={"node.architecture": node.architecture or None},
    )  # fmt: skip


def _require(rule: str, facts: Mapping[str, names.Facts]) -> Finding:
    try:
        answer = parse(rule).evaluate(facts)
    except ExpressionInvalid as error:
        return Finding(rule="require", text=rule, holds=None, is_required=True, why=error.message)
    truth = answer.truth
    why = answer.why if truth is None else ""
    if truth is None and not why:
        why = "it is no condition"
    return Finding(rule="require", text=rule, holds=truth, is_required=True, why=why, values=answer.values)


def _prefer(preference: Preference, facts: Mapping[str, names.Facts]) -> Finding:
    rule, weight = preference.that, float(preference.weight)
    try:
        answer = parse(rule).evaluate(facts)
    except ExpressionInvalid as error:
        return Finding(rule="prefer", text=rule, holds=None, why=error.message)
    number = answer.number
    if number is None:
        why = answer.why or "it is neither a condition nor a number"
        return Finding(rule="prefer", text=rule, holds=None, why=why, values=answer.values)
    return Finding(rule="prefer", text=rule, holds=number != 0, points=number * weight, values=answer.values)


# ---- other agents --------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """What is known of other agents, and of the nodes that they are on."""

    places: Places
    nodes: Mapping[str, Candidate]

    def domain(self, node: str, by: str) -> str | None:
        """The part of the deployment in which a node is; None if it does not say."""
        if not by:
            return node
        known = self.nodes.get(node)
        return known.labels.get(by) if known is not None else None


class Peers:
    """The agents of one affinity, counted by domain."""

    __slots__ = ("_affinity", "_counts", "_field", "_is_near", "_there")

    def __init__(self, need: Need, affinity: Affinity, field: Field, *, is_near: bool) -> None:
        self._affinity = affinity
        self._is_near = is_near
        self._field = field
        there = field.places.get(Term.of(affinity), {}).items()
        others = [node for one, node in there if one != need.agent and node in field.nodes]  # else its node is gone
        self._there = len(others)
        self._counts = Counter(field.domain(node, affinity.by) for node in others)
        del self._counts[None]

    def holds(self, node: str) -> bool | None:
        if not self._there:
            return True
        domain = self._field.domain(node, self._affinity.by)
        if domain is None:
            return None
        return (self._counts[domain] > 0) is self._is_near

    def points(self, node: str) -> float:
        domain, affinity = self._field.domain(node, self._affinity.by), self._affinity
        if affinity.required or not self._there or domain is None:
            return 0.0
        here = self._counts[domain]
        return float(affinity.weight * here / self._there if self._is_near else -affinity.weight * here)

    def rules_out(self, node: str) -> bool:
        return self._affinity.required and self.holds(node) is not True

    def finding(self, node: str) -> Finding:
        affinity, domain = self._affinity, self._field.domain(node, self._affinity.by)
        here = self._counts[domain] if domain is not None else 0
        why = f"{here} of {self._there} are there"
        if not self._there:
            why = "none of them is known to run yet"
        elif domain is None:
            why = f"{node} has no label {affinity.by}"
        whom = f"agent {affinity.agent}" if affinity.agent else affinity.where
        return Finding(
            rule="near" if self._is_near else "apart", text=f"{whom} by {affinity.by}" if affinity.by else whom,
            holds=self.holds(node), is_required=affinity.required, points=self.points(node), why=why,
            values={f"node.labels.{affinity.by}" if affinity.by else "node.name": domain, "there": here, "known": self._there},
        )  # fmt: skip


def around(need: Need, field: Field) -> list[Peers]:
    """The rules about the agents that it should be near to, or apart from."""
    near = [Peers(need, one, field, is_near=True) for one in need.policy.near]
    return near + [Peers(need, one, field, is_near=False) for one in need.policy.apart]
