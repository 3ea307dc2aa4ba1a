"""What is to be reached, by row: told on the page whether or not the row could be measured."""

from __future__ import annotations

from typing import NamedTuple


class Bar(NamedTuple):
    """`key` and `sync` name the row; `part` measures it."""

    key: str
    part: str
    what: str
    bar: str
    syncs: tuple[str, ...] = ("",)


BOTH = ("always", "lazy")

BARS = (
    Bar("pause-p50", "pause", "pause, 1 KiB state, 1,000 messages/s, p50", "at most 2 times the floor", BOTH),
    Bar("pause-p99", "pause", "pause, 1 KiB state, 1,000 messages/s, p99", "at most 4 times the floor's p99", BOTH),
    Bar("pause-100m", "sizes", "pause, 100 MiB state, 1 % of it changing per second",
        "at most 3 times the 1 KiB pause", BOTH),
    Bar("pause-1g", "sizes", "pause, 1 GiB `Buffer`, 10 changes/s", "at most 5 times the 1 KiB pause", BOTH),
    Bar("total-1g", "sizes", "whole move of 1 GiB", "at most 1.5 times appending the same bytes in parts", BOTH),
    Bar("away-ray", "away", "unavailability in a move of 1 MiB, against Ray's by hand", "at least 200 times shorter", BOTH),
    Bar("away-paglets", "away", "unavailability in a move of 1 MiB, against paglets'", "at least 200 times shorter", BOTH),
    Bar("ask-p50", "asks", "durable ask from another process, p50", "at most 1.3 times its floor", BOTH),
    Bar("ask-pipelined", "asks", "durable asks from another process, pipelined", "at least 0.8 of the floor's", BOTH),
    Bar("ask-ray", "asks", "durable asks per second, against Ray's, which keep nothing", "more than Ray", BOTH),
    Bar("ask-xoscar", "asks", "durable asks per second, against xoscar's, which keep nothing", "more than xoscar", ("lazy",)),
    Bar("turns-dbos", "dbos", "durable turns per second on SQLite, against dbos' durable steps, both synced the same",
        "at least 20 times as many", ("always",)),
    Bar("local-pykka", "inprocess", "asks in one process, in memory, pipelined, against pykka", "more than pykka"),
    Bar("local-autogen", "inprocess", "asks in one process, in memory, pipelined, against autogen-core",
        "at least 10 times as many"),
    Bar("local-one", "inprocess", "an ask in one process, one after another, against pykka", "at most 3 times pykka's time"),
    Bar("turn-table", "turns", "a turn that changes one key of a 100 MiB `Table`",
        "at most 2 times the turn of a 1 KiB agent"),
    Bar("idle-memory", "idle", "memory of a node for each idle agent", "at most 10 KiB", ("lazy",)),
    Bar("idle-count", "idle", "idle agents on one node", "100,000", ("lazy",)),
    Bar("spawn", "idle", "agents created per second, on one node", "at least 2,000", ("lazy",)),
    Bar("asleep-memory", "asleep", "memory of a node for each agent that has left memory", "at most half of one in memory", ("lazy",)),
    Bar("asleep-wake", "asleep", "ask that wakes an agent of 1 KiB, against a durable ask", "at most 2 times", ("lazy",)),
    Bar("timers-many", "timers", "a timer that is set and fires, with 90,000 others on the node against 100",
        "at most 2 times"),
    Bar("drain-always", "drain", "agents of 1 KiB moved off a node per second, all of them", "at least 150", ("always",)),
    Bar("drain-lazy", "drain", "agents of 1 KiB moved off a node per second, all of them", "at least 300", ("lazy",)),
    Bar("failover", "failover", "failover of 3,000 agents, from detection to the last one's answer",
        "at most 3 times the bare takeover floor", BOTH),
    Bar("scale-idle-cpu", "scale", "an idle deployment, server and nodes together", "under 2 % of a core", ("lazy",)),
    Bar("scale-idle-bytes", "scale", "what the server of an idle deployment sends", "under 50 KB/s", ("lazy",)),
    Bar("scale-idle-growth", "scale", "cost of an idle deployment, against one with 1,000 agents", "at most 1.2 times",
        ("lazy",)),
    Bar("scale-restart-reads", "scale", "what the server sends to a node that starts again, with others' agents against without",
        "at most 1.2 times", ("lazy",)),
    Bar("scale-restart-first", "scale", "restart of a node, from its first answer to that of one of its agents",
        "at most 1 s", ("lazy",)),
    Bar("scale-restart-all", "scale", "restart of a node, until it has taken all of its agents",
        "at most 3 times the bare takeover floor", ("lazy",)),
    Bar("scale-failover-cpu", "scale", "processor time of all processes for the failover of an agent", "at most 1 ms", BOTH),
    Bar("scale-takeover-asks", "scale", "p99 of asks to nodes that take over the agents of another one, against before",
        "at most 3 times", ("lazy",)),
    Bar("scale-agents", "scale", "spawn and ask, as agents grow", "at most 1.1 times", ("lazy",)),
    Bar("scale-members", "scale", "spawn and ask, as known members grow", "at most 1.1 times", ("lazy",)),
    Bar("topics-deliveries", "topics", "messages published to 10,000 subscribers on 3 nodes, deliveries per second",
        "at least 20,000/s", ("lazy",)),
    Bar("topics-publisher", "topics", "an ask that publishes to 10,000 subscribers, against one that publishes nothing",
        "at most 1.5 times", ("lazy",)),
    Bar("stream-first", "talk", "the first part of a stream, against a durable ask", "at most 1.5 times", ("lazy",)),
    Bar("stream-parts", "talk", "parts of 100 bytes of one stream, per second", "at least 10,000/s", ("lazy",)),
    Bar("read-busy", "talk", "a shared read while a turn of 1 s runs, against an ask at rest", "at most 1 time", ("lazy",)),
    Bar("tell-agents", "talk", "tells between agents of one process, in memory, against pipelined asks", "at least 0.6 of them"),
    Bar("place-many", "placing", "100,000 agents with policies placed on 1,000 simulated nodes", "under 10 s"),
    Bar("place-solver", "placing", "highest load after placing agents one by one, against the least that OR-tools finds",
        "at most 1.1 times"),
    Bar("policies-all", "policies", "20 policies judged on 10,000 agents of a node", "under 1 s of one core"),
    Bar("policies-change", "policies", "the same for one fact that changes, against all", "at most 0.1 times"),
    Bar("policies-critical", "policies", "agents of a node that gets too hot, until the last is served elsewhere", "within 2 s",
        ("lazy",)),
    Bar("find-page", "words", "a page of 10 agents found by an attribute among 10,000, against a durable ask",
        "at most 5 times", ("lazy",)),
    Bar("wait-resolve", "words", "two calls that open a wait and resolve it, against a durable ask", "at most 6 times", ("lazy",)),
    Bar("expired-memory", "words", "what a node's memory grows by while it takes 1,000,000 expired messages",
        "at most 64 MiB", ("lazy",)),
    Bar("queue-insert", "manager", "recovery manager with 1,000,000 pending: one insert", "under 50 µs"),
    Bar("queue-due", "manager", "recovery manager with 1,000,000 pending: one due item found and taken", "under 50 µs"),
    Bar("start-import", "start", "`import mielin_cells`", "under 120 ms, on a quiet machine"),
    Bar("start-help", "start", "`mielin --help`", "under 300 ms, on a quiet machine"),
)  # fmt: skip


def find(key: str) -> Bar:
    return next(bar for bar in BARS if bar.key == key)
