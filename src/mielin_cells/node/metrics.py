"""A node's metrics, read where they stand when a monitor asks.  Nothing is counted for them alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from mielin_cells import tracing
from mielin_cells.membership.members import Status
from mielin_cells.metrics.families import SHOWN, Sample
from mielin_cells.policy.deploys.health import Turns
from mielin_cells.policy.facts import Facts

if TYPE_CHECKING:
    from mielin_cells.membership.announcement import Announcement
    from mielin_cells.membership.table import Members
    from mielin_cells.node.activation.activation import Activations
    from mielin_cells.node.activation.context import NodeContext
    from mielin_cells.node.facts import OwnFacts
    from mielin_cells.node.failover import Failover
    from mielin_cells.node.moves.admission import Copies
    from mielin_cells.node.moves.manager import Migrations
    from mielin_cells.node.ownership.standby import Standbys

SLICE = 500
"""Agents that are looked at before others run."""

OUTCOMES = ("completed", "rolled_back", "gave_up")

RUNNING = "Running"
"""The state of an agent that has left memory: only such agents leave it."""

_AS_THEY_ARE = {
    "slots": "mielin_agents_free",
    "waiting": "mielin_inbox_messages",
    "oldest_s": "mielin_inbox_oldest_seconds",
    "load": "mielin_machine_load",
    "memory_free_bytes": "mielin_machine_memory_free_bytes",
    "disk_free_bytes": "mielin_machine_disk_free_bytes",
    "mains": "mielin_machine_on_mains",
    "temperature_c": "mielin_machine_temperature_celsius",
    "cost_per_hour": "mielin_node_cost_per_hour",
}
_PERCENT = {name: f"mielin_machine_{name}_ratio" for name in ("cpu", "memory", "disk", "battery")}


class Measured(Protocol):
    """A node, as far as its metrics are about it."""

    name: str
    about: Announcement
    home: NodeContext
    members: Members
    activations: Activations
    standbys: Standbys
    copies: Copies
    migrations: Migrations
    failover: Failover
    facts: OwnFacts
    failures: Counter[str]

    @property
    def is_starting(self) -> bool: ...
    @property
    def is_cordoned(self) -> bool: ...
    @property
    def leads(self) -> bool: ...


async def read_metrics(node: Measured) -> list[Sample]:
    """On the node's loop.  The agents are looked at some at a time."""
    agents, dead = await _count_agents(node)
    plain = (_of_node, _of_members, _of_agents, _of_moves, _of_store, _of_turns, _of_loops)
    samples = [sample for part in plain for sample in part(node)]
    samples += (Sample("mielin_agents", count, key) for key, count in sorted(agents.items()))
    samples.append(Sample("mielin_dead_letters", dead))
    return samples + list(_of_facts(node.facts.current()))


async def _count_agents(node: Measured) -> tuple[Counter[tuple[str, str]], int]:
    """How many agents there are by class and state, and their dead letters."""
    activations, counts, dead = node.activations, Counter[tuple[str, str]](), 0
    live = iter(list(activations.live.values()))
    while some := list(islice(live, SLICE)):
        for fold in (one.fold for one in some):
            counts[fold.cls, fold.status.value] += 1
            dead += len(fold.ledger.dead)
        await asyncio.sleep(0)
    asleep = iter(list(activations.asleep.values()))
    while few := list(islice(asleep, SLICE)):
        for one in few:
            counts[one.cls, RUNNING] += 1
            dead += one.dead
        await asyncio.sleep(0)
    return counts, dead


def _of_node(node: Measured) -> Iterator[Sample]:
    about = node.about
    yield Sample("mielin_node_info", 1, (about.package, about.python, about.architecture, about.host))
    yield Sample("mielin_node_up", 1)
    if about.at:
        yield Sample("mielin_node_start_time_seconds", about.at)
    yield Sample("mielin_node_incarnation", node.home.incarnation)
    yield Sample("mielin_node_starting", float(node.is_starting))
    yield Sample("mielin_node_cordoned", float(node.is_cordoned))


def _of_members(node: Measured) -> Iterator[Sample]:
    table = node.members.table
    role = "leader" if node.leads else "deputy" if node.name in table.deputies else "member"
    yield Sample("mielin_node_role", 1, (role,))
    found = Counter(member.status for member in table)
    yield from (Sample("mielin_members", found[status], (status.value,)) for status in Status)


def _of_agents(node: Measured) -> Iterator[Sample]:
    yield Sample("mielin_agents_idle", len(node.activations.asleep))
    yield Sample("mielin_agents_unloadable", len(node.activations.unloadable))
    yield Sample("mielin_standby_copies", len(node.standbys.copies))
    yield Sample("mielin_takeovers", node.failover.taken)


def _of_moves(node: Measured) -> Iterator[Sample]:
    yield Sample("mielin_migrations_open", len(node.migrations.open), ("out",))
    yield Sample("mielin_migrations_open", len(node.copies.by_agent), ("in",))
    yield from (Sample("mielin_migrations", node.migrations.ended[outcome], (outcome,)) for outcome in OUTCOMES)


def _of_store(node: Measured) -> Iterator[Sample]:
    home, writers = node.home, [one.writer for one in node.activations.live.values()]
    yield Sample("mielin_log_appends", home.gone_records + sum(one.appended_records for one in writers))
    yield Sample("mielin_log_appended_bytes", home.gone_bytes + sum(one.appended_bytes for one in writers))
    yield Sample("mielin_store_failing_seconds", node.failover.refused_s())


def _of_turns(node: Measured) -> Iterator[Sample]:
    for name, turns in sorted(node.home.turns.items()):
        yield Sample("mielin_turns", turns.ended, (name,))
        yield Sample("mielin_turns_failed", turns.failed, (name,))
        yield Sample("mielin_dead_letters_made", turns.buried, (name,))
        yield Sample("mielin_turn_duration_seconds", 0.0, (name,), tuple(cumulative(turns)))


def cumulative(turns: Turns) -> Iterator[int]:
    """How many turns took less than each of the bounds, and how many there were in all."""
    yield from (sum(turns.took[: power + 1]) for power in SHOWN)
    yield sum(turns.took)


def _of_loops(node: Measured) -> Iterator[Sample]:
    """Loops are logged with their node's name in front, which is a label here."""
    yield from (
        Sample("mielin_loop_failures", count, (name.removeprefix(f"node {node.name}: "),))
        for name, count in sorted(node.failures.items())
    )
    for name in ("given", "failed", "dropped", "malformed"):
        yield Sample("mielin_trace_calls", tracing.counts[name], (name,))


def _of_facts(facts: Facts) -> Iterable[Sample]:
    """What is not known has no sample: it is no zero."""
    for name, value in facts.known().items():
        if name in facts.sensors:
            if isinstance(value, (bool, int, float)):
                yield Sample("mielin_sensor", float(value), (name,))
        elif isinstance(value, str):
            continue  # no fact of a node's own is text
        elif name in _PERCENT:
            yield Sample(_PERCENT[name], value / 100)
        elif name == "store_ms":
            yield Sample("mielin_store_round_trip_seconds", value / 1000)
        elif name in _AS_THEY_ARE:
            yield Sample(_AS_THEY_ARE[name], float(value))
    yield from (Sample("mielin_sensor_failing", 1, (name,)) for name in sorted(facts.failing))
