"""Where an agent may go, as the table of members says.  No node is asked; `policy.placement` decides."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from random import Random
from typing import NoReturn

from msgspec.structs import replace

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.errors import NoNodeFits
from mielin_cells.log.policy import Policy
from mielin_cells.membership.members import NOBODY, STARTING, Member, Status, Table, selectors_of
from mielin_cells.policy.placement.board import Board
from mielin_cells.policy.placement.values import NO_PLACES, Candidate, Finding, Need, Placement, Places, Verdict
from mielin_cells.policy.selectors import Selector
from mielin_cells.rpc.planned import Planned

PATIENCE_S = 0.25
"""For who only needs some nodes: one that takes longer after the last answer is busy or frozen."""

ANY = Need()
"""An agent of which nothing is known."""

PLAIN = ("out of service", "class", "full")
"""Rules that count without any policy."""

UNREAD = "its attributes cannot be read now, and where it may run depends on them"

SHOWN = 3
"""Reasons in one sentence."""


def need_of(agent: Planned) -> Need:
    """An agent that has a log, as placement sees it."""
    return Need(agent.agent, agent.cls, agent.version, agent.policy, agent.size_bytes)


def sentence(node: str, finding: Finding) -> str:
    """Why a rule rules a node out."""
    facts = ", ".join(f"{name} is {_shown(value)}" for name, value in finding.values.items())
    if finding.rule in ("class", "architecture", "full", "out of service"):
        return finding.why
    if finding.rule == "require":
        says = "is not known" if finding.holds is None else "does not hold"
        return f"on {node}, {finding.text} {says}{': ' + (finding.why or facts) if finding.why or facts else ''}"
    return f"on {node}, it is to be {finding.rule} {finding.text}: {finding.why}"


def _shown(value: object) -> str:
    return "absent" if value is None else f'"{value}"' if isinstance(value, str) else f"{value}"


def reasons_of(placement: Placement) -> list[str]:
    """Why each node is ruled out, for those that are; the first reason of each."""
    found = list[str]()
    for verdict in placement.verdicts:
        finding = next((one for one in verdict.findings if one.rules_out), None)
        if finding is not None:
            found.append(sentence(verdict.node, finding))
    return found


def nowhere(placement: Placement) -> str:
    """Why no node is chosen, in one clause."""
    reasons = reasons_of(placement)
    if not reasons:
        return "no node takes agents now"
    more = f"; and {len(reasons) - SHOWN} more nodes" if len(reasons) > SHOWN else ""
    asked = (one for verdict in placement.verdicts for one in verdict.findings if one.rules_out)
    says = "takes it" if all(one.rule in PLAIN for one in asked) else "meets its policy"
    return f"no node {says}: {'; '.join(reasons[:SHOWN])}{more}"


def raise_nowhere(placement: Placement, need: Need, only: Verdict | None = None) -> NoReturn:
    """Raises `NoNodeFits`; `only`: the node that was named."""
    if only is not None:
        placement = replace(placement, verdicts=[only])
    reasons, where = reasons_of(placement), f"cannot run on {only.node}" if only is not None else "has no place"
    raise NoNodeFits(
        f"Agent {need.agent!r} {where}: {nowhere(placement)}. Nothing was changed.", agent=need.agent, reasons=reasons[:SHOWN]
    )  # fmt: skip


def candidate(info: NodeInfo) -> Candidate:
    """The node as placement sees it."""
    return Candidate(
        name=info.name, incarnation=info.incarnation, is_starting=info.state == STARTING, is_cordoned=info.is_cordoned,
        classes=info.classes, architecture=info.architecture, cores=info.cores, memory_bytes=info.memory_bytes,
        labels=info.labels, facts=info.facts,
    )  # fmt: skip


def announced(members: Iterable[Member]) -> dict[str, Policy]:
    """By class, the policy of its newest version that a node knows."""
    newest = dict[str, tuple[int, Policy]]()
    for member in members:
        for cls, policy in member.about.policies.items():
            version = member.about.classes.get(cls, 0)
            if cls not in newest or version > newest[cls][0]:
                newest[cls] = version, policy
    return {cls: policy for cls, (_, policy) in newest.items()}


class Spread:
    """Chooses a node for one agent after the other, and counts those that each was just given.

    Nodes that are equal otherwise are chosen by name, or with `rng` in an order of chance: many clients that spawn one agent each
    know nothing of one another.
    """

    def __init__(self, nodes: Iterable[NodeInfo] = (), rng: Random | None = None) -> None:
        self._board = Board()
        self._but: frozenset[str] = frozenset()
        """A node that is known, and never chosen."""
        self._read: tuple[Table, int, str] | None = None
        """The table, up to where it was taken in, and without which node."""
        self._known: dict[str, tuple[Member, Candidate]] = {}
        self.selectors: tuple[Selector, ...] = ()
        """Policies by label selectors, as `follow` has read."""
        self.policies: dict[str, Policy] = {}
        """By class, the policy that nodes of its newest version have announced, as `follow` has read."""
        self.update(nodes, rng)

    def update(self, nodes: Iterable[NodeInfo], rng: Random | None = None) -> None:
        """Takes in what is known now.  What a node was given counts until another number is known of it."""
        infos = [*nodes]
        self._take([candidate(info) for info in infos], {info.name: info.agents for info in infos}, rng)
        self._read = None

    def _take(self, nodes: list[Candidate], loads: dict[str, int], rng: Random | None) -> None:
        order = self._board.order
        for node in nodes:
            if node.name not in order:
                order[node.name] = rng.random() if rng is not None else 0.0
        self._board.update(nodes, loads)

    def follow(self, table: Table, rng: Random | None, but: str = "") -> Spread:
        """Takes in the nodes of the table, in an order of chance where others choose too.  `but` is none to choose from."""
        if self._read is not None and self._read[0] is table and self._read[1:] == (table.seq, but):
            return self  # it says nothing new, and costs nothing with any number of nodes
        members = [member for member in table if member.status in (Status.JOINED, Status.SERVING)]
        before, self._known = self._known, {}
        for member in members:
            known = before.get(member.name)
            if known is None or known[0] is not member:
                known = member, candidate(member.info())
            self._known[member.name] = known
        nodes = [node for _, node in self._known.values()]
        self.policies, self.selectors = announced(members), selectors_of(table)
        # Without a leader all are in one process, and nobody else chooses.
        self._take(nodes, {member.name: member.agents for member in members}, None if table.leader == NOBODY else rng)
        self._read, self._but = (table, table.seq, but), frozenset({but} - {""})
        return self

    def __bool__(self) -> bool:
        return any(not node.is_cordoned and name not in self._but for name, node in self._board.nodes.items())

    @property
    def names(self) -> list[str]:
        """The nodes that take agents."""
        there = self._board.nodes.items()
        return sorted(name for name, node in there if not node.is_cordoned and name not in self._but)

    def fits(self, name: str, need: Need = ANY) -> bool:
        """True if the node meets the conditions of the agent that look neither at loads nor at other agents."""
        return self._board.fits(name, need)

    def choose(self, but: Collection[str] = (), need: Need = ANY, places: Places = NO_PLACES) -> str | None:
        """The node for the agent, which counts as given to it; None if there is none but those."""
        return self._board.choose(need, {*but, *self._but} if self._but else but, places)

    def explain(self, but: Collection[str] = (), need: Need = ANY, places: Places = NO_PLACES) -> Placement:
        """As `choose`, with every rule on every node; nothing is given."""
        return self._board.explain(need, {*but, *self._but}, places)

    def takes(self, node: str, need: Need = ANY) -> None:
        """It is given one more agent."""
        self._board.takes(node, need)

    def leaves(self, node: str) -> None:
        """One of its agents does not count: the one that is to be placed."""
        if self._board.loads.get(node, 0) > 0:
            self._board.gives_back(node)

    def gives_back(self, node: str, need: Need = ANY) -> None:
        """It has not taken the agent."""
        self._board.gives_back(node, need)
