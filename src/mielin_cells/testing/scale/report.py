"""The figures of several sizes side by side, and what of them is not as it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ROWS = (
    ("beats_sent", "heartbeats sent"),
    ("beats_heard", "heartbeats heard"),
    ("beats_heard_most", "heartbeats heard, by the node that hears most"),
    ("member_calls", "calls to the logs of membership"),
    ("member_entries", "entries of those that were read"),
    ("pings", "requests that ask who is there"),
    ("index_calls", "calls to the index of owners"),
    ("index_entries", "entries of the index that were read"),
    ("logs_listed", "agents' logs listed"),
    ("log_reads", "calls that read agents' logs"),
    ("log_entries", "records of agents' logs that were read"),
    ("log_appends", "appends to agents' logs"),
    ("inbox_calls", "calls to agents' inboxes"),
)
FLAT = tuple(name for name, _ in ROWS if name != "beats_heard_most")
"""What is to stay the same for each node.  Somebody has to hear all nodes: the leader of failover, and its deputies."""

SMALL = 0.5
"""Counts for each node and second below it are not compared: they are some calls of one node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Against the smallest size."""

    growth: float = 1.2
    time: float = 2.0


def shortfalls(results: Sequence[dict[str, Any]], limits: Limits) -> list[str]:
    """What was lost, what grows with the number of nodes, and what takes longer; in sentences."""
    first, missed = results[0], list[str]()
    for result in results:
        missed += [f"{result['nodes']} nodes: {violation}" for violation in result["violations"][:5]]
    for result in results[1:]:
        for window in ("idle", "busy"):
            for name, words in ROWS:
                was, now = first[window][name], result[window][name]
                if name in FLAT and now > max(was, SMALL) * limits.growth:
                    missed.append(
                        f"{words}, {window}: {was:g} with {first['nodes']} nodes, {now:g} with {result['nodes']}"
                    )
        for name in ("drain_s", "failover_s"):
            if result[name] > limits.time * first[name]:
                missed.append(
                    f"{name.removesuffix('_s')}: {first[name]:.2f} s with {first['nodes']} nodes, {result[name]:.2f} s with "
                    f"{result['nodes']}"
                )
    return missed


def render(results: Sequence[dict[str, Any]]) -> str:
    """As a table of Markdown."""
    head = "| for each node and virtual second | " + " | ".join(
        f"{result['nodes']:,} nodes, {result['agents']:,} agents" for result in results
    )
    lines = [f"{head} |", "|-" * (len(results) + 1) + "|"]
    for window, at in (("idle", "at rest"), ("busy", "with one ask for each node and second")):
        for name, words in ROWS:
            cells = [f"{result[window][name]:,.2f}" for result in results]
            if any(float(cell.replace(",", "")) for cell in cells):
                lines.append(f"| {words}, {at} | " + " | ".join(cells) + " |")
    for name, words in (("drain", "drained"), ("failover", "killed")):
        cells = [f"{result['lost_at_once']} in {result[name + '_s']:.2f} s" for result in results]
        lines.append(
            f"| nodes {words} at once, virtual time until others serve all their agents | " + " | ".join(cells) + " |"
        )
    zeros = [f"{len(result['violations'])} of {result['agents']:,}" for result in results]
    lines.append("| agents lost, doubled or without a living owner | " + " | ".join(zeros) + " |")
    lines.append("| processor time of the simulation | " + " | ".join(
        f"{sum(result['cpu_s'].values()):.0f} s" for result in results) + " |")  # fmt: skip
    return "\n".join(lines)
