"""The metrics that a node has: their names, types, labels and meanings.

Names follow the conventions of Prometheus: base units, and `_total` for counters.  Every metric has the label `node` besides its own.
Counters begin at zero when the node's process begins.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

Kind: TypeAlias = Literal["gauge", "counter", "histogram"]

NODE = "node"
"""The label that every metric has, before its own."""

SHOWN = tuple(range(7, 27, 2))
"""Which of the powers of two, in microseconds, are bounds of a histogram's buckets: 128 us to 34 s, each four times the one before."""


class Family(msgspec.Struct, frozen=True):
    name: str
    """Without `_total`."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    """Its own, behind `node`."""

    @property
    def shown(self) -> str:
        """The name that queries use."""
        return self.name + {"counter": "_total", "histogram": "_bucket", "gauge": ""}[self.kind]


class Sample(msgspec.Struct, array_like=True, frozen=True):
    """One value of a family, as it travels from a node."""

    family: str
    value: float = 0.0
    labels: tuple[str, ...] = ()
    """Values of the family's own labels, in their order."""
    buckets: tuple[int, ...] = ()
    """Of a histogram: how many values were below each of the bounds of `SHOWN`, and how many there were in all."""


def bounds() -> list[float]:
    """The upper bounds of a histogram's buckets, in seconds, without the last, which is infinite."""
    return [2**power / 1e6 for power in SHOWN]


_GAUGES: dict[str, tuple[str, ...]] = {
    "mielin_node_info": ("1 for each node that answers. The labels say what it is.", "package", "python", "architecture", "host"),
    "mielin_node_up": ("1 if the node answers, else 0. Only `mielin metrics` prints 0; a node that does not answer serves nothing.",),
    "mielin_node_start_time_seconds": ("When the node's process joined, in seconds since 1970.",),
    "mielin_node_incarnation": ("The node's incarnation. It grows each time a process takes the node's name.",),
    "mielin_node_starting": ("1 while the node takes over the agents that the log gives it, else 0.",),
    "mielin_node_cordoned": ("1 while the node takes no agents, because it is cordoned, drained or about to stop, else 0.",),
    "mielin_node_role": (
        "1 for the role that the node has in failover: leader, deputy or member. Exactly one node should be leader.", "role",
    ),
    "mielin_members": (
        "Nodes in the table of members, as this node has read it: joined, serving, suspected, doubted or left.", "status",
    ),
    "mielin_agents": (
        "Agents that the node owns, by class and state. Those that have left its memory count as Running.", "class", "state",
    ),
    "mielin_agents_idle": ("Agents that the node owns and that have left its memory until something wakes them.",),
    "mielin_agents_unloadable": ("Agents that the log gives this node and that it cannot run. `mielin show AGENT` says why.",),
    "mielin_agents_free": ("Agents that the node takes until it has `agents_max`. Absent without that limit.",),
    "mielin_standby_copies": ("Standby copies of other nodes' agents that this node keeps.",),
    "mielin_inbox_messages": ("Messages that wait in the inboxes of the node's agents, at the last look.",),
    "mielin_inbox_oldest_seconds": ("How long the oldest of these messages has waited.",),
    "mielin_dead_letters": ("Dead letters that the node's agents keep.",),
    "mielin_migrations_open": ("Migrations that are open, from this node (out) and to it (in).", "direction"),
    "mielin_store_round_trip_seconds": ("Median of the last five round trips to the store.",),
    "mielin_store_failing_seconds": ("For how long the store has refused this node or has not answered; 0 while it answers.",),
    "mielin_machine_cpu_ratio": ("Share of the machine's cores that is in use, 0 to 1.",),
    "mielin_machine_load": ("Load average of one minute for each core.",),
    "mielin_machine_memory_ratio": ("Share of the machine's memory that is in use, 0 to 1.",),
    "mielin_machine_memory_free_bytes": ("Memory that programs can still have.",),
    "mielin_machine_disk_ratio": ("Share of the disk of the node's data that is in use, 0 to 1.",),
    "mielin_machine_disk_free_bytes": ("Free bytes of that disk.",),
    "mielin_machine_battery_ratio": ("Charge of the battery, 0 to 1. Absent without a battery.",),
    "mielin_machine_on_mains": ("1 while the machine does not run on its battery, else 0.",),
    "mielin_machine_temperature_celsius": ("The hottest sensor of the machine.",),
    "mielin_node_cost_per_hour": ("What the node costs, as `[node]` of `mielin.toml` or a sensor says.",),
    "mielin_sensor": ("What a sensor of the app says, if that is a number, true (1) or false (0).", "sensor"),
    "mielin_sensor_failing": ("1 for each sensor that raises or does not answer.", "sensor"),
}  # fmt: skip

_COUNTERS: dict[str, tuple[str, ...]] = {
    "mielin_turns": ("Turns that have ended.", "class"),
    "mielin_turns_failed": ("Of these, turns that ended with an error that the handler does not declare.", "class"),
    "mielin_dead_letters_made": ("Messages that became dead letters.", "class"),
    "mielin_log_appends": ("Records that the node has appended to the logs of agents that it runs or has run.",),
    "mielin_log_appended_bytes": ("Bytes of these records.",),
    "mielin_migrations": (
        "Migrations from this node that have ended, by outcome: completed, rolled_back or gave_up.", "outcome",
    ),
    "mielin_takeovers": ("Agents that other nodes took over from nodes that were gone, at the request of this node as leader.",),
    "mielin_loop_failures": (
        "Failures of the node's own loops and duties, which are tried again. The log has the reason.", "loop",
    ),
    "mielin_trace_calls": (
        "Calls of the tracer: given, failed (it raised) or dropped (it was too slow); and malformed trace contexts.", "result",
    ),
}  # fmt: skip

_HISTOGRAMS: dict[str, tuple[str, ...]] = {
    "mielin_turn_duration_seconds": ("How long turns took, with their steps and waits. It has no sum.", "class"),
}


def _families(kind: Kind, said: dict[str, tuple[str, ...]]) -> dict[str, Family]:
    return {name: Family(name, kind, text, tuple(labels)) for name, (text, *labels) in said.items()}


FAMILIES: dict[str, Family] = {
    **_families("gauge", _GAUGES),
    **_families("counter", _COUNTERS),
    **_families("histogram", _HISTOGRAMS),
}
"""By name."""
