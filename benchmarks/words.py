"""The page's prose: how it is measured, what each peer is given, what limits a bar that is not met."""

from __future__ import annotations

METHOD = (
    "- The parts run one after another, each in a process of its own. Figures that are compared are measured within one part,",
    "  alternating, after a warm-up. Figures are medians; `benchmarks/results.json` has the spread.",
    "- A floor is what the server alone takes for the unavoidable steps, at the same sync setting. An otherwise idle process makes",
    "  dependent conditional appends of one entry each, and one delivery between two connections. In that of a pause the first append",
    "  names another owner, which the server indexes.",
    "- Every benchmark checks that nothing it sent was lost, doubled or reordered. A run that fails this check does not count.",
    "- Pause: the time on the source's clock from stopping the intake to reading `Accepted`. Unavailability: the longest wait of a",
    "  client that asks continuously. Memory: the growth of the node's resident memory.",
    "- Nodes, server, client and peers run on this machine and share its processors.",
)

PEER_WORDS = {
    "ray": (
        "two Ray nodes on the loopback. Ray cannot move an actor and stores nothing. The benchmark reads the actor's "
        "state, kills it, "
        "creates another one with that state on the other node, and calls that one; nobody answers in between. Calls: plain "
        "and async actors, one and two of each, with 1,024 calls outstanding; the best counts. Usage reports are off."
    ),
    "xoscar": (
        "a pool of two processes on the loopback. The move is made by hand as with Ray: read, destroy, create in the other process, "
        "call. Nothing is stored, and a crash in between loses the actor."
    ),
    "paglets": "two hosts on the loopback, without mesh and discovery: `dispatch` to the other host, and one call there.",
    "dbos": (
        "SQLite with a write-ahead log and full sync, as ours. A step that returns is stored. One workflow, 8 in threads, 8 and 64 "
        "async; the best counts."
    ),
    "autogen-core": "its runtime in one process, on uvloop; `send_message` to 16 agents.",
    "pykka": "16 actors, each in a thread, with 1,024 futures outstanding.",
}

LIMITS: dict[str, str] = {
    "ask-p50": (
        "The floor is one process that never waits for another process to be woken. An ask wakes the server twice, the "
        "owner and the "
        "client, one after the other. The bar shows the cost beside it: two bare processes share the floor's steps, and "
        "decode, number, run and store nothing."
    ),
    "away-ray": (
        "A client waits for the pause and for the ask that the pause delayed. Synced, a 200th of Ray's move is less "
        "than the floors of "
        "those two together. Lazy, the target reads the log on the two cores that the ask needs."
    ),
    "away-paglets": (
        "A 200th of paglets' move is about the time of one durable ask without any move, and less than the floors of "
        "the pause and the "
        "ask together. No move that keeps every message can reach it."
    ),
    "local-pykka": (
        "Pykka hands an object to a thread. Nothing is encoded, numbered, stored or compared, and everything is lost "
        "at the end. Our "
        "encodings, and a task that waits for another one, alone take most of Pykka's time (the bar shows the rate). The remaining "
        "time would have to suffice to number, judge, store and commit each ask with a digest of the state, and to answer it."
    ),
    "scale-idle-cpu": (
        "The server takes 1.4 to 1.7 % of a core with three nodes connected, and each node 0.8 to 1.3 %: a thread of its own sends "
        "and hears heartbeats twice a second, and the node looks for what is silent, late or without work."
    ),
    "local-autogen": "See pykka: durability costs about ten microseconds.",
    "local-one": (
        "One ask passes through the event loop several times: call, mail, inbox, turn, commit, answer. Two of these "
        "are batches of SQLite."
    ),
    "failover": (
        "All processors are busy; the bar shows what an agent costs the server, its new node and the client together. "
        "The bare takeover "
        "asks no node, reads one entry of a log, finds an empty inbox, runs nothing and answers nobody. Synced, waiting for the "
        "disk is most of it; lazy, there is no such wait."
    ),
    "pause-100m": "There are few pauses at this size, and each one that meets another process on its core is long.",
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
