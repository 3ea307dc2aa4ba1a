"""The one function of placement: conditions, then the spread over labels, then points, of which the load of a node is a part.

`place` looks at every node and says everything.  `board` gives the same answer for one agent after the other, faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from msgspec.structs import replace

from mielin_cells.policy.placement.rules import Field, around, static
from mielin_cells.policy.placement.values import NO_PLACES, Candidate, Finding, Need, Placement, Places, Term, Verdict


def unit_of(nodes: Iterable[Candidate], loads: Mapping[str, int]) -> int:
    """As many agents as one point outweighs: those of an average node that is in service, rounded up to a power of two."""
    there = [loads.get(node.name, 0) for node in nodes if not node.is_cordoned]
    return unit_for(sum(there), len(there))


def unit_for(agents: int, nodes: int) -> int:
    unit = 1
    while unit * nodes < agents:
        unit *= 2
    return unit


def cost_of(load: int, unit: int, points: float) -> float:
    """What is less is better."""
    return load / unit - points


def place(
    need: Need, nodes: Iterable[Candidate], loads: Mapping[str, int], *, but: Collection[str] = (),
    order: Mapping[str, float] | None = None, places: Places = NO_PLACES, taken: Mapping[str, int] | None = None,
) -> Placement:  # fmt: skip
    """Where an agent goes, with the verdict on every node.  Equal inputs give equal answers.

    `but`: nodes that are not asked.  `order`: decides between nodes that are equal otherwise, before their names.  `places`: where the
    agents of `terms_of(need)` are.  `taken`: agents that each node was given since it said how many more it takes.
    """
    order, taken = order or {}, taken or {}
    known = {node.name: node for node in nodes}
    field = Field(places, known)
    peers = around(need, field)
    unit = unit_of(known.values(), loads)
    verdicts, costs = dict[str, Verdict](), dict[str, float]()
    for name, node in sorted(known.items()):
        load = loads.get(name, 0)
        findings = [*static(need, node), *full(node, taken.get(name, 0)), *(one.finding(name) for one in peers)]
        points = sum(one.points for one in findings[: len(findings) - len(peers)])
        points += sum(one.points(name) for one in peers)
        costs[name] = cost_of(load, unit, points)
        findings.append(Finding(rule="agents", points=-load / unit, values={"agents": load, "agents a point": unit}))
        fits = not any(one.rules_out for one in findings)
        verdicts[name] = Verdict(node=name, fits=fits, points=-costs[name], agents=load, findings=findings)
    able = [name for name, verdict in verdicts.items() if verdict.fits and name not in but]
    for name in but:
        if name in verdicts and verdicts[name].fits:
            verdicts[name] = replace(verdicts[name], is_left="it is left out")
    if need.policy.spread:
        able = _spread(need, able, field, verdicts)
    best = min(able, key=lambda name: (known[name].is_starting, costs[name], order.get(name, 0.0), name), default=None)
    for name in able:
        if best is not None and name != best:
            verdicts[name] = replace(
                verdicts[name], is_left=_lost(known[name], known[best], verdicts[name], verdicts[best])
            )
    return Placement(node=best, verdicts=list(verdicts.values()), unit=unit)


def full(node: Candidate, taken: int) -> list[Finding]:
    slots = node.facts.slots
    if slots is None:
        return []
    why = ""
    if taken >= slots:
        more = f"{slots} more agents, and was given {taken} since it said so" if slots else "no more agents: it is full"
        why = f"{node.name} takes {more}"
    return [
        Finding(
            rule="full", holds=taken < slots, is_required=True, why=why, values={"node.slots": slots, "given": taken}
        )
    ]


def _lost(node: Candidate, best: Candidate, mine: Verdict, its: Verdict) -> str:
    if node.is_starting and not best.is_starting:
        return "it still takes its own agents"
    if mine.points < its.points:
        return f"{best.name} has {its.points - mine.points:.3g} points more"
    return f"{best.name} is as good, and comes first"


# ---- spread over labels --------------------------------------------------------------------------------------


def domain_of(node: Candidate, labels: Iterable[str]) -> tuple[str | None, ...]:
    return tuple(node.labels.get(label) for label in labels)


def emptiest(
    domains: Collection[tuple[str | None, ...]], counts: Mapping[tuple[str | None, ...], int], depth: int
) -> set[tuple[str | None, ...]]:
    """Of the domains of several labels, those with the fewest agents by the first label, and of them by the first two, and so on.

    A node without a label is in no domain of it, and is chosen only if all are without it.
    """
    left = set(domains)
    for length in range(1, depth + 1):
        left = {one for one in left if one[length - 1] is not None} or left
        fewest = min((counts.get(one[:length], 0) for one in left), default=0)
        left = {one for one in left if counts.get(one[:length], 0) == fewest}
    return left


def count_domains(
    agents: Iterable[str], nodes: Mapping[str, Candidate], labels: tuple[str, ...]
) -> Counter[tuple[str | None, ...]]:
    """How many agents there are in each domain of the first label, of the first two, and so on; `agents` gives their nodes."""
    counts = Counter[tuple[str | None, ...]]()
    for name in agents:
        node = nodes.get(name)
        if node is not None:
            domain = domain_of(node, labels)
            counts.update(domain[:length] for length in range(1, len(labels) + 1))
    return counts


def _spread(need: Need, able: list[str], field: Field, verdicts: dict[str, Verdict]) -> list[str]:
    """Those of the nodes in the domains with the fewest agents of the class; notes at all of them what was counted."""
    labels = need.policy.spread
    there = field.places.get(Term("class", need.cls), {})
    counts = count_domains((node for agent, node in there.items() if agent != need.agent), field.nodes, labels)
    left = emptiest({domain_of(field.nodes[name], labels) for name in able}, counts, len(labels))
    for name, verdict in verdicts.items():
        domain = domain_of(field.nodes[name], labels)
        is_in, here = domain in left, counts.get(domain[:1], 0)
        unknown = next((label for label, value in zip(labels, domain, strict=True) if value is None), None)
        why = f"{name} has no label {unknown}" if unknown is not None else ""
        said = Finding(
            rule="spread", text=", ".join(labels), holds=None if unknown is not None else is_in, why=why,
            values={
                **{f"node.labels.{label}": value for label, value in zip(labels, domain, strict=True)},
                f"{need.cls or 'agents'} there": here,
            },
        )  # fmt: skip
        is_left = verdict.is_left
        if name in able and not is_in:
            is_left = why or f"{labels[0]} {domain[0]} has {here} {need.cls} already, and another has fewer"
        verdicts[name] = replace(verdict, findings=[*verdict.findings, said], is_left=is_left)
    return [name for name in able if domain_of(field.nodes[name], labels) in left]
