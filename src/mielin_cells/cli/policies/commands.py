"""`mielin why`, `why-not` and `place`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number

from mielin_cells.cli.command import command
from mielin_cells.cli.options import Agent
from mielin_cells.cli.show import Printer, counted, record, table
from mielin_cells.client.operator import Operator
from mielin_cells.client.policies import why as reasons
from mielin_cells.client.policies.why import COUNT_MAX, Explanation
from mielin_cells.deployment.codes import DONE, REFUSED
from mielin_cells.errors import UsageError
from mielin_cells.log.policy import Affinity, Policy
from mielin_cells.membership.selection import sentence
from mielin_cells.policy.placement.values import Finding, Verdict

NODES_SHOWN = 20

HOLDS = {True: "yes", False: "no", None: "not known"}


@command
async def why(
    operator: Operator,
    printer: Printer,
    agent: Agent,
    /,
    *,
    all_nodes: Annotated[bool, Parameter(name="--all", help="All nodes, with each rule on each of them.")] = False,
) -> int:
    found = await reasons.why(operator.client, agent)

    def text() -> str:
        chosen = found.placement.node
        here = found.placement.of(found.node)
        parts = [
            record(
                {
                    "agent": agent, "class": f"{found.cls} version {found.version}", "runs on": found.node,
                    "policy": policy_text(found.policy), "from": "; ".join(found.source), "belongs": _belongs(found),
                }
            )
        ]  # fmt: skip
        parts.append(_nodes(found, all_nodes))
        shown = found.placement.verdicts if all_nodes else [one for one in (here,) if one is not None]
        parts.extend(f"{verdict.node}:\n{_rules(verdict)}" for verdict in shown)
        if here is None and chosen is None:
            parts.append("no node may run it now")
        return "\n\n".join(parts)

    printer.show(found, text)
    return DONE


def _belongs(found: Explanation) -> str:
    chosen, here = found.placement.node, found.placement.of(found.node)
    if chosen is None:
        return "nowhere: every node is ruled out"
    if chosen == found.node:
        return "there: it would be placed there now"
    if here is None:
        return f"{chosen}: {found.node} is not in service"
    if not here.fits:
        return f"{chosen}: {_first(here)}; it stays until something moves it"
    return f"{chosen} would be chosen now: {here.is_left}; an agent is not moved for that alone"


def _first(verdict: Verdict) -> str:
    finding = next((one for one in verdict.findings if one.rules_out), None)
    return sentence(verdict.node, finding) if finding is not None else ""


def _nodes(found: Explanation, all_nodes: bool) -> str:
    verdicts = sorted(
        found.placement.verdicts,
        key=lambda one: (one.node != found.placement.node, one.node != found.node, not one.fits, -one.points, one.node),
    )
    shown = verdicts if all_nodes else verdicts[:NODES_SHOWN]
    rows = [
        {
            "node": one.node, "fits": "yes" if one.fits else "no", "agents": one.agents,
            "points": f"{one.points:.3g}" if one.fits else "",
            "why": ("chosen" if one.node == found.placement.node else one.is_left) if one.fits else _first(one),
        }
        for one in shown
    ]  # fmt: skip
    if not rows:
        return "no node is in service"
    more = len(verdicts) - len(shown)
    return table(rows) + (f"\nand {counted(more, 'node')} more; --all shows them" if more else "")


def _rules(verdict: Verdict) -> str:
    return table([_rule(one) for one in verdict.findings])


def _rule(finding: Finding) -> dict[str, Any]:
    values = ", ".join(f"{name} {'absent' if value is None else value}" for name, value in finding.values.items())
    return {
        "rule": finding.rule, "as written": finding.text, "required": "yes" if finding.is_required else "",
        "holds": HOLDS[finding.holds], "points": f"{finding.points:.3g}" if finding.points else "", "values": values,
        "why": finding.why,
    }  # fmt: skip


@command
async def why_not(
    operator: Operator,
    printer: Printer,
    agent: Agent,
    node: Annotated[str, Parameter(help="The node.")],
    /,
) -> int:
    found, verdict = await reasons.why_not(operator.client, agent, node)

    def text() -> str:
        chosen = found.placement.node
        if not verdict.fits:
            says = f"{agent} may not run on {node}: {_first(verdict)}"
        elif found.node == node:
            says = f"{agent} runs on {node}"
        elif chosen == node:
            says = f"{agent} would be placed on {node} now; it runs on {found.node}, and an agent is not moved for that alone"
        else:
            says = f"{agent} may run on {node}, and is not placed there: {verdict.is_left}"
        return f"{says}\n\n{_rules(verdict)}"

    printer.show({"agent": agent, "runs_on": found.node, "policy": found.policy, "verdict": verdict}, text)
    return DONE


@command
async def place(
    operator: Operator,
    printer: Printer,
    cls: Annotated[str, Parameter(name="class", help="The agent class.")],
    /,
    *,
    dry_run: Annotated[bool, Parameter(help="Required: `mielin spawn` is what makes agents.")] = False,
    count: Annotated[int, Parameter(validator=Number(gte=1, lte=COUNT_MAX), help="How many new agents.")] = 1,
) -> int:
    if not dry_run:
        raise UsageError(f"`mielin place` only tries: add --dry-run. `mielin spawn {cls} ID` makes an agent.")
    found = await reasons.trial(operator.client, cls, count)

    def text() -> str:
        explanation = found.explanation
        head = record(
            {
                "class": f"{cls} version {explanation.version}", "policy": policy_text(explanation.policy),
                "from": "; ".join(explanation.source),
            }
        )  # fmt: skip
        if count == 1:
            return f"{head}\n\n{_nodes(explanation, False)}"
        rows = [{"node": node, "agents": agents} for node, agents in found.nodes.items()]
        left = f"\n{counted(found.left, 'agent')} would have no place" if found.left else ""
        return f"{head}\n\n{table(rows) if rows else _nodes(explanation, False)}{left}"

    printer.show(found, text)
    return DONE if not found.left else REFUSED


def policy_text(policy: Policy) -> str:
    """In one line; "none" if it asks for nothing."""
    parts = [f"require {rule}" for rule in policy.require]
    parts += [f"prefer {one.that} ({one.weight:g})" for one in policy.prefer]
    parts += [_affinity("near", one) for one in policy.near]
    parts += [_affinity("apart from", one) for one in policy.apart]
    if policy.preferred_architectures:
        parts.insert(0, f"architecture {' or '.join(policy.preferred_architectures)}")
    if policy.spread:
        parts.append(f"spread over {', '.join(policy.spread)}")
    if policy.immovable:
        parts.append("immovable")
    if policy.standby is not None:
        parts.append(f"standby {policy.standby}")
    others = msgspec.to_builtins(policy).keys() - {*KNOWN}
    return "; ".join([*parts, *sorted(others)]) or "none"


KNOWN = ("preferred_architectures", "require", "prefer", "near", "apart", "spread", "immovable", "standby")


def _affinity(word: str, affinity: Affinity) -> str:
    whom = affinity.agent or f"agents with {affinity.where}"
    by = f" by {affinity.by}" if affinity.by else ""
    return f"{word} {whom}{by} ({'required' if affinity.required else format(affinity.weight, 'g')})"
