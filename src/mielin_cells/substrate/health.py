"""What a store's settings mean: what a power cut would lose, and which of them lose or stop what agents need.  Pure.

An adapter fills `Facts` with what it can see; what it cannot see is None or empty, and said as such.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

DEFAULT_SYNC_S: Final = 120.0
"""NATS's sync_interval where nobody has set it."""

VERSION_MIN, VERSION_ADVISED = (2, 12, 0), (2, 14, 0)
ADVISED: Final = 3
"""Replicas on a cluster: so many that one server may be lost."""
FULL_WARN, FULL_WRONG = 0.8, 0.95
"""Of a limit."""
CLOCK_S: Final = 1.0
ENTRY_ROOM: Final = 772 * 1024
"""The largest entry with its headers."""

WRONG, WARNING = "wrong", "warning"


class Finding(msgspec.Struct, frozen=True):
    level: str
    """`wrong`: it loses or stops something; `warning`: it may."""
    what: str
    """What, why, and what to do."""


class StreamFacts(msgspec.Struct, frozen=True):
    """A stream as its server describes it."""

    name: str
    config: dict[str, Any]
    state: dict[str, Any]
    cluster: dict[str, Any] | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    """nats, sqlite or memory."""
    where: str
    deployment: str = ""
    servers: int = 1
    """Of the cluster, as far as the server tells."""
    version: str = ""
    sync_s: float | None = None
    """Seconds between an acknowledgement and the disk, at most; 0: before it; None: not to be seen from here."""
    sync_from: str = ""
    """Who says so."""
    in_cluster: bool = False
    payload_max: int = 0
    streams: list[StreamFacts] = []
    missing: list[str] = []
    """Streams of the deployment that are not there."""
    lost: list[str] = []
    """Agents that the index of owners does not name at their owners."""
    account: dict[str, Any] = {}
    clock_s: float = 0.0
    """By how much the server's clock is ahead of this machine's, as far as the way there allows to say."""
    settings: dict[str, str] = {}
    """Of a file."""
    troubles: list[str] = []
    """What the adapter has found wrong by itself."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    power_cut: str
    """What a power cut would lose, in one sentence."""
    where: str
    kind: str
    version: str
    deployment: str
    servers: int
    shards: int
    replicas: int
    storage: str
    sync: str
    findings: list[Finding]

    @property
    def is_well(self) -> bool:
        return all(finding.level != WRONG for finding in self.findings)


def judged(facts: Facts) -> Health:
    replicas = min((int(one.config.get("num_replicas", 1)) for one in facts.streams), default=1)
    storages = sorted({str(one.config.get("storage", "file")) for one in facts.streams}) or ["file"]
    storage = "memory" if facts.kind == "memory" else ", ".join(storages)
    findings = [Finding(WRONG, trouble) for trouble in facts.troubles]
    if facts.kind == "nats":
        findings += [
            *_of_server(facts),
            *_of_replicas(facts),
            *(finding for one in facts.streams for finding in _of_stream(one, facts)),
        ]
    lost = _power_cut(facts, replicas, storage)
    return Health(
        power_cut=lost, where=facts.where, kind=facts.kind, version=facts.version, deployment=facts.deployment,
        servers=facts.servers, shards=_shards(facts), replicas=replicas, storage=storage, sync=_sync(facts),
        findings=sorted(findings, key=lambda one: one.level != WRONG),
    )  # fmt: skip


def _shards(facts: Facts) -> int:
    counts = [str(one.config.get("metadata", {}).get("mielin.shards", "")) for one in facts.streams]
    return max((int(count) for count in counts if count.isdecimal()), default=1)


def _sync(facts: Facts) -> str:
    if facts.kind == "sqlite":
        return ", ".join(f"{name} {value}" for name, value in facts.settings.items())
    if facts.sync_s is None:
        return "not to be seen from here"
    return f"{'always' if facts.sync_s == 0 else _span(facts.sync_s)} (says {facts.sync_from})"


def _span(seconds: float) -> str:
    if seconds < 60 or seconds % 60:
        return f"{seconds:g} seconds" if seconds != 1 else "second"
    return f"{seconds / 60:g} minutes" if seconds != 60 else "minute"


def _power_cut(facts: Facts, replicas: int, storage: str) -> str:
    if facts.kind == "memory" or "memory" in storage:
        return "A power cut, or the end of the process that holds it, loses everything: the store is in memory."
    if facts.kind == "sqlite":
        return _power_cut_of_file(facts)
    if any(one.config.get("persist_mode") == "async" for one in facts.streams if not is_index(one.name)):
        return "A power cut, or a kill of the server, loses acknowledged work: persist_mode is async."
    if facts.sync_s == 0:
        return "A power cut loses nothing that was acknowledged, if the disk keeps its word: each write is synced before its answer."
    span = _span(DEFAULT_SYNC_S if facts.sync_s is None else facts.sync_s)
    said = (
        f"sync_interval cannot be seen from here (its default is {_span(DEFAULT_SYNC_S)})"
        if facts.sync_s is None
        else f"sync_interval is {'the default' if facts.sync_s == DEFAULT_SYNC_S else span}"
    )
    if replicas > 1:
        return (
            f"A power cut of fewer than {replicas // 2 + 1} of the {replicas} servers with a copy loses nothing that was "
            f"acknowledged; of so many at once, at most the last {span} of acknowledged work: {said}."
        )
    return f"A power cut loses at most the last {span} of acknowledged work of this server: {said} and there is one replica."


def _power_cut_of_file(facts: Facts) -> str:
    if facts.sync_s == 0:
        return "A power cut loses nothing that was acknowledged, if the disk keeps its word: transactions are synced before answers."
    why = (
        'sync is "process"'
        if facts.sync_s is not None
        else 'how it is opened cannot be seen from here, and sync may be "process"'
    )
    return (
        f"A power cut loses what was acknowledged and the system had not yet written, usually its last half minute: {why}; the end of "
        "the process loses nothing."
    )


# ---- a server ------------------------------------------------------------------------------------------------


def _of_server(facts: Facts) -> list[Finding]:
    findings = []
    version = _version(facts.version)
    if version < VERSION_MIN:
        findings.append(
            Finding(WRONG, f"The server has version {facts.version}; 2.12.0 or newer is needed. Upgrade it.")
        )
    elif version < VERSION_ADVISED:
        findings.append(Finding(
            WARNING, f"The server has version {facts.version}: before 2.14 a stream runs on after an error of its disk, and early "
            "2.12 patches may lose replicated writes of a process that was stopped for a while. Upgrade it to 2.14 or newer.",
        ))  # fmt: skip
    if facts.payload_max < ENTRY_ROOM:
        findings.append(
            Finding(
                WRONG,
                f"The server takes messages up to {facts.payload_max} bytes; set max_payload to {ENTRY_ROOM} or more.",
            )
        )
    lost = [name for name in facts.missing if not is_index(name)]
    if lost != facts.missing:
        findings.append(Finding(
            WARNING, "The index of which node owns which agent is gone. It holds nothing of its own: the next node that starts makes "
            "it anew, or `mielin doctor --fix` does.",
        ))  # fmt: skip
    if facts.lost:
        some = ", ".join([*facts.lost[:3], *(["..."] if len(facts.lost) > 3 else [])])
        findings.append(Finding(
            WARNING, f"The index of which node owns which agent has lost {len(facts.lost)} agents ({some}). Failover and nodes that "
            "start find them later than others, by comparing all logs. `mielin doctor --fix` makes the index anew.",
        ))  # fmt: skip
    if lost and facts.streams:
        names = ", ".join(lost)
        findings.append(
            Finding(WRONG, f"Streams of the deployment are gone: {names}. Stop, and restore them from a backup.")
        )
    elif lost:
        findings.append(Finding(WARNING, "There is no deployment on this server yet; its first node makes it."))
    used, limits = facts.account, facts.account.get("limits", {})
    findings += _fullness("The account's storage", int(used.get("storage", 0)), int(limits.get("max_storage", -1)))
    if abs(facts.clock_s) > CLOCK_S:
        findings.append(Finding(
            WARNING, f"The server's clock is {abs(facts.clock_s):.1f} s {'ahead of' if facts.clock_s > 0 else 'behind'} this "
            "machine's. Nothing is decided by clocks, but timers of agents that move are early or late by as much; set them by NTP.",
        ))  # fmt: skip
    if facts.streams and facts.sync_s != 0:
        alone = min(int(one.config.get("num_replicas", 1)) for one in facts.streams) == 1
        what = "A power cut" if alone else "A power cut of one server together with a partition or a pause of others"
        instead = ", or keep 3 replicas on machines that do not fail together" if alone else ""
        findings.append(Finding(
            WARNING, f"{what} may lose acknowledged work: set `jetstream {{ sync_interval: always }}` (`mielin up` does){instead}.",
        ))  # fmt: skip
    return findings


def _version(text: str) -> tuple[int, ...]:
    numbers = text.lstrip("v").partition("-")[0].split(".")
    return tuple(int(number) for number in numbers if number.isdecimal())


def _fullness(what: str, used: int, limit: int) -> list[Finding]:
    share = used / limit if limit > 0 else 0.0
    if share < FULL_WARN:
        return []
    text = f"{what} is {share:.0%} full ({used} of {limit} bytes): when it is, nothing is written and agents wait. Raise the limit."
    return [Finding(WRONG if share >= FULL_WRONG else WARNING, text)]


def _of_stream(stream: StreamFacts, facts: Facts) -> list[Finding]:
    config, state, name = stream.config, stream.state, stream.name
    findings = [Finding(level, f"Stream {name}: {text}.") for level, is_so, text in _rules(stream) if is_so]
    findings += _fullness(f"Stream {name}", int(state.get("bytes", 0)), int(config.get("max_bytes", -1)))
    lost = (state.get("lost") or {}).get("msgs") or []
    if lost:
        findings.append(Finding(
            WRONG, f"Stream {name}: the server says that it has lost {len(lost)} records (of damaged blocks). Stop; restore a backup.",
        ))  # fmt: skip
    replicas = int(config.get("num_replicas", 1))
    if facts.in_cluster and replicas == 1:
        first = "Of two servers none may be lost: add one, then " if facts.servers == ADVISED - 1 else ""
        findings.append(Finding(
            WARNING, f"Stream {name} has one replica on a cluster: losing its server stops every agent. "
            f"{first}`mielin doctor --fix --replicas {ADVISED}` raises it to {ADVISED}.",
        ))  # fmt: skip
    if facts.in_cluster and stream.cluster is not None:
        findings += _of_copies(name, replicas, stream.cluster)
    return findings


def _of_replicas(facts: Facts) -> list[Finding]:
    """An order that was interrupted, or given to one stream by other means, leaves them unlike."""
    counts = {one.name: int(one.config.get("num_replicas", 1)) for one in facts.streams}
    if len(set(counts.values())) < 2:
        return []
    unlike = ", ".join(f"{name} {count}" for name, count in counts.items())
    most = max(counts.values())
    return [
        Finding(
            WARNING,
            f"Streams have unlike replicas ({unlike}): `mielin doctor --fix --replicas {most}` makes them alike.",
        )
    ]


def _of_copies(name: str, replicas: int, cluster: dict[str, Any]) -> list[Finding]:
    findings = []
    if not cluster.get("leader"):
        findings.append(Finding(WRONG, f"Stream {name} has no leader now: nothing is written. See to its servers."))
    for copy in cluster.get("replicas") or []:
        if copy.get("offline") or not copy.get("current", True):
            state = "offline" if copy.get("offline") else f"behind by {copy.get('lag', 'some')} records"
            findings.append(Finding(WARNING, f"Stream {name}: its copy on {copy.get('name', 'a server')} is {state}."))
    if replicas % 2 == 0:
        findings.append(
            Finding(
                WARNING, f"Stream {name} has {replicas} replicas: an even number outlasts no more losses than one less."
            )
        )
    return findings


def is_index(name: str) -> bool:
    """A stream that is filled from the agents' logs, and can be again."""
    return name.split("-")[1:2] == ["own"]


def _rules_of_index(config: dict[str, Any]) -> list[tuple[str, bool, str]]:
    partial = "so nodes overlook agents that they own until all logs are compared"
    return [
        (WRONG, bool(config.get("subjects")), "it has subjects, so clients can write to it; remove them"),
        (WRONG, not config.get("sources"), f"it is not fed from the agents' logs, {partial}; delete it, and it is made anew"),
        (WRONG, not config.get("allow_direct", False), "it has no allow_direct, so nothing can be read; set it"),
        (WARNING, bool(config.get("max_age", 0)), f"it has a max_age, {partial}; set it to 0"),
        (WARNING, int(config.get("max_msgs", -1)) > 0, f"it has max_msgs, {partial}; set it to -1"),
        (WARNING, int(config.get("max_msgs_per_subject", -1)) != 1, "its max_msgs_per_subject is not 1: it grows; set it to 1"),
        (WARNING, bool(config.get("deny_purge")), "it has deny_purge: entries of former owners stay for ever; unset it"),
    ]  # fmt: skip


def _rules(stream: StreamFacts) -> list[tuple[str, bool, str]]:
    config = stream.config
    if is_index(stream.name):
        return _rules_of_index(config)
    removed = "agents' records are removed by themselves"
    is_log = bool(config.get("republish")) or "-log-" in stream.name
    return [
        (WRONG, config.get("storage", "file") == "memory", "its storage is memory; use file"),
        (WRONG, config.get("retention", "limits") != "limits", f"by its retention {removed}; use limits"),
        (WRONG, config.get("discard", "new") != "new", "its discard is old: once it is full, old records go untold; use new"),
        (WRONG, bool(config.get("max_age", 0)), f"it has a max_age, so {removed}; set it to 0"),
        (WRONG, int(config.get("max_msgs_per_subject", -1)) > 0, f"it has max_msgs_per_subject, so {removed}; set it to -1"),
        (WRONG, int(config.get("max_msgs", -1)) > 0, "it has max_msgs: once there are so many, nothing is written; set it to -1"),
        (WRONG, 0 < int(config.get("max_msg_size", -1)) < ENTRY_ROOM, f"its max_msg_size is below {ENTRY_ROOM}; set it to -1"),
        (WRONG, bool(config.get("sealed")), "it is sealed: nothing can be written"),
        (WRONG, config.get("persist_mode") == "async", "its persist_mode is async: answers come before writes; leave it out"),
        (WRONG, not config.get("allow_direct", False), "it has no allow_direct, so nothing can be read; set it"),
        (WRONG, bool(config.get("mirror") or config.get("sources")), "it is fed from another stream, past every condition; end that"),
        (WRONG, bool(config.get("subject_transform")), "it has a subject_transform, so records are not where they are looked for"),
        (WRONG, is_log and not config.get("republish"), "it republishes nothing, so nodes hear of no message; restore that"),
        (WARNING, not config.get("deny_delete", False), "it has no deny_delete: a record can be removed from a log; set it"),
        (WARNING, bool(config.get("deny_purge")), "it has deny_purge: what agents no longer need is never removed; unset it"),
        (WARNING, bool(config.get("allow_rollup_hdrs")), "it has allow_rollup_hdrs: one message can remove a whole log; unset it"),
        (WARNING, bool(config.get("allow_msg_ttl")), "it has allow_msg_ttl: messages can be made to vanish; unset it"),
        (WARNING, int(config.get("duplicate_window", 0)) > 120 * 10**9,
         "its duplicate_window is above 2 minutes: a sender's id that comes again is swallowed for so long; set it to 1s"),
    ]  # fmt: skip
