"""The page's prose: how it is measured, what each peer is given, what limits a bar that is not met."""

from __future__ import annotations

METHOD = (
    "- Each part is a process of its own, one after another; what is compared is measured within one part, in turn, after a",
    "  warm-up. Medians, with the spread in `benchmarks/results.json`.",
    "- A floor is what the server alone takes for the steps that nobody can leave out, at the same sync setting: a process with",
    "  nothing else to do makes dependent conditional appends of one entry each, and one delivery between two connections.",
    "- Every benchmark checks what it has sent: nothing lost, nothing doubled, in order. A run in which that fails is no run.",
    "- Pause: the source's clock from stopping the intake to reading `Accepted`. Unavailability: the longest wait of a client that",
    "  asks without rest. Memory: what the node's resident memory has grown by.",
    "- Nodes, server, client and peers run on this machine and share its processors.",
)

PEER_WORDS = {
    "ray": (
        "two Ray nodes on the loopback. An actor cannot be moved and keeps nothing: its state is read, it is "
        "killed, another one is created on the other node with that state, and called; nobody answers from "
        "the reading to that answer. Calls: plain and async actors, one and two of them, 1,024 calls on their"
        " way; the best counts. Usage reports are off."
    ),
    "xoscar": (
        "a pool of two processes on the loopback; moved by hand as with Ray: read, destroy, create in the "
        "other process, call. Nothing is kept, and a crash in between loses the actor."
    ),
    "paglets": "two hosts on the loopback, mesh and discovery off; `dispatch` to the other host, and one call there.",
    "dbos": (
        "SQLite with a write-ahead journal, synced in full, as ours; a step that returns is stored. One "
        "workflow, 8 in threads, 8 and 64 async; the best counts."
    ),
    "autogen-core": "its runtime in one process; `send_message` to 16 agents, on uvloop.",
    "pykka": "16 actors, each a thread; futures, 1,024 of them on their way.",
}

LIMITS: dict[str, str] = {
    "ask-p50": (
        "The floor is one process that never waits for another one to be woken; an ask wakes the server "
        "twice, the owner and the client, one after the other. What that costs is measured beside it: two bare "
        "processes that share the floor's steps, and decode, number, run and keep nothing."
    ),
    "away-ray": (
        "A client's wait is the pause and the ask that waited for it. Synced, a 200th of Ray's move is less than the floors of "
        "these two together; lazily, the target's reading of the log takes from the two cores what the ask would need."
    ),
    "away-paglets": (
        "A 200th of paglets' move is about what one durable ask takes that meets no move at all, and less "
        "than the pause's floor and the ask's floor together: no move that keeps every message can be there."
    ),
    "local-pykka": (
        "Pykka hands an object to a thread: nothing is encoded, numbered, stored or compared, and all is gone at the end. "
        "With nothing but our encodings and a task that waits for another, most of pykka's time is gone (the rate is beside the "
        "bar); in the rest each ask would have to be numbered, judged, stored, committed with a digest of the state, and "
        "answered from the record."
    ),
    "local-autogen": "See pykka: what is kept costs about ten microseconds.",
    "local-one": (
        "One ask passes the event loop several times: call, mail, inbox, turn, commit, answer; two of these "
        "are batches of SQLite."
    ),
    "failover": (
        "All processors are busy: what an agent costs the server, its new node and the client together is beside the bar. The bare "
        "takeover asks nobody to take it, reads one entry of a log, finds no message in an inbox, runs nothing and answers nobody; "
        "synced, waiting for the disk is most of it, and lazily it is gone."
    ),
    "pause-100m": "Pauses are few at this size, and each that meets another process on its core is long.",
}
"""Shown only beside a bar that is not met; docs/performance.md has the figures."""

PLOTS = {
    "pause-size": "Pause against state size, with floor and peers",
    "pause-ecdf": "Distribution of pauses, and of a client's longest waits",
    "asks": "Asks per second and latency",
    "turn-size": "Turn against state size at a fixed change",
    "migrations": "Migrations per second",
    "failover": "Failover against number of agents",
    "memory": "Memory per agent",
    "queue": "Recovery queue against pending",
}
