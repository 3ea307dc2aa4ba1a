"""A world of two machines, one log and lost answers, small enough to be walked through completely.

The source's and the target's machines are the real ones; what performs their effects is written here from the protocol.  A
log is a tuple of records in words ("Claimed K"); `owner_of` folds it with the real fold, which refuses what rule 3 forbids.
Faults come from a budget: an answer that is lost (the record lands, lands later, or never), a crash of either side, a
suspicion (a third node claims), a commit, an operator's or a deadline's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from mielin_cells.log.lifecycle import Phase as LogPhase
from mielin_cells.migration import source as s
from mielin_cells.migration import target as t
from mielin_cells.migration.progress import MigrationPhase as Phase
from mielin_cells.migration.refusal import as_refusal
from mielin_cells.migration.target import TargetPhase
from support.agent_log import accepted, after, claimed, committed, handed_off, returned

Log = tuple[str, ...]
LIMITS = s.Limits(rounds_max=1, lag_records_max=0, lag_bytes_max=0)
OWN_CLAIM, OWN_HANDOVER = "Claimed S", "HandedOff S"
FAILED: tuple[s.Event, ...] = (s.Cancel(), s.Deadline(), s.Broken("X", "x"))


class Budget(NamedTuple):
    lost: int = 0
    crashes: int = 0
    suspicions: int = 0
    commits: int = 0


class World(NamedTuple):
    left: Budget
    log: Log = ()
    flight: frozenset[tuple[int, str]] = frozenset()
    """Appends that nobody waits for any more: each may still land where it expects to, or never."""
    serving: frozenset[str] = frozenset("S")
    source: s.Source | None = s.Source("m-1", LIMITS)
    source_waits: str = ""
    source_seen: int = 0
    ended: str = ""
    target: t.Target | None = None
    target_waits: str = ""
    target_seen: int = 0
    mail: frozenset[str] = frozenset()
    """Hints from source to target."""
    new_target: type[t.Target] = t.Target


@cache
def owner_of(log: Log) -> tuple[str, LogPhase]:
    """Owner and phase, by the real fold.  Raises if the log is not a legal one."""
    names = {"n1": "S", "n2": "T", "n3": "K"}
    nodes = {name: node for node, name in names.items()}
    fold = after()
    for record in log:
        kind, _, who = record.rstrip("'").partition(" ")
        node: dict[str, Any] = {"node": nodes[who]}
        match kind:
            case "HandedOff":
                fold.apply(fold.seq + 1, handed_off(fold, **node))
            case "Accepted":
                fold.apply(fold.seq + 1, accepted(fold, **node))
            case "Returned":
                fold.apply(fold.seq + 1, returned(fold, **node))
            case "Claimed":
                fold.apply(fold.seq + 1, claimed(fold, nodes[who], 100 + fold.seq))
            case _:
                fold.apply(fold.seq + 1, committed(fold, **node))
    return names[fold.owner], fold.phase


def outcome_of(log: Log) -> str:
    """Rule 7, for the one migration there is, planned before the first record; "" while it is open."""
    ownership = [record.split()[0] for record in log if not record.startswith("Committed")]
    if "HandedOff" not in ownership:
        return "rolled_back" if ownership else ""
    ends = ownership[ownership.index("HandedOff") + 1 :]
    if ownership[0] != "HandedOff":
        return "rolled_back"
    return "" if not ends else "completed" if ends[0] == "Accepted" else "rolled_back"


# ---- the source's driver ----


def source_on(w: World, event: s.Event) -> World:
    assert w.source is not None
    machine, effects = w.source.on(event)
    w = w._replace(source=machine, source_waits="" if effects else w.source_waits)
    for effect in effects:
        w = _source_performs(w, effect)
    if machine.phase.is_end:
        w = w._replace(source=None)  # what it leaves is a node that serves the agent, or has no copy of it
    return w


def _source_performs(w: World, effect: s.Effect) -> World:
    match effect:
        case s.StopIntake():
            return w._replace(serving=w.serving - {"S"}, source_waits="StopIntake")
        case s.AskCopy():
            return w._replace(mail=w.mail | {"copy"}, source_waits="AskCopy")
        case s.HandOver():
            assert OWN_HANDOVER not in w.log
            assert not any(record == OWN_HANDOVER for _, record in w.flight), "a handover is sent once (rule 6)"
            return w._replace(source_waits="HandOver")
        case s.ResumeIntake():
            known = w.log[: w.source_seen]
            assert owner_of(known) == ("S", LogPhase.RUN), f"resumes what it does not own: {known}"
            assert OWN_HANDOVER in known or not w.flight & {(w.source_seen, OWN_HANDOVER)}, "may still be handed over"
            return w._replace(serving=w.serving | {"S"})
        case s.FreeCopy():
            assert w.log[w.source_seen - 1].startswith("Accepted")
            return w
        case s.Refold():
            return w._replace(serving=w.serving - {"S"})
        case s.ReleaseTarget():
            return w._replace(mail=w.mail | {"release"})
        case s.End(outcome=outcome):
            return w._replace(ended=outcome)
        case _:
            return w._replace(source_waits=type(effect).__name__)


def source_steps(w: World) -> Iterator[World]:
    if w.source is None:
        return
    waits, seen = w.source_waits, w.source_seen
    fenced = len(w.log) > seen
    if w.source.phase is Phase.PLANNED:
        yield source_on(w, s.Begin())
    if waits in ("AskPrepare", "AskCopy", "StopIntake"):
        yield from (source_on(w, event) for event in FAILED)
        if fenced:
            yield source_on(w, s.Overtaken(False))
    if waits == "AskPrepare":
        yield source_on(w, s.Refused((as_refusal("full"),)))
        if w.target is None:
            yield source_on(w._replace(target=w.new_target("m-1"), target_seen=0), s.Prepared())
    elif waits == "AskCopy":
        yield source_on(w, s.Copied(9, 9))
        if w.target is not None and w.target.phase is TargetPhase.COPYING:
            yield source_on(w, s.Copied(0, 0))
    elif waits == "StopIntake":
        yield source_on(w, s.Quiet())
    elif waits == "HandOver":
        yield from _hand_over(w)
    elif waits == "ClaimBack":
        yield from _claim_back(w)
    elif waits == "WatchLog":
        yield source_on(w, s.Deadline())
        if fenced:
            yield source_on(w._replace(source_seen=seen + 1), _seen(w.log[seen]))


def _seen(record: str) -> s.Event:
    kind, _, who = record.partition(" ")
    match kind:
        case "Accepted":
            return s.SeenAccepted()
        case "Returned":
            return s.SeenReturned("x")
        case _:
            return s.SeenClaimed(who)


def _hand_over(w: World) -> Iterator[World]:
    seen = w.source_seen
    if len(w.log) > seen:
        yield source_on(w, s.Overtaken(False))
    else:
        yield source_on(w._replace(log=(*w.log, OWN_HANDOVER), source_seen=seen + 1), s.HandedOver())
    if w.left.lost:
        lost = w._replace(flight=w.flight | {(seen, OWN_HANDOVER)}, left=w.left._replace(lost=w.left.lost - 1))
        yield source_on(lost, s.Doubtful())
        yield source_on(lost, s.Deadline())


def _claim_back(w: World) -> Iterator[World]:
    """The same bytes until the outcome is known (rule 1)."""
    seen = w.source_seen
    assert w.source is not None
    if len(w.log) == seen:
        landed = w._replace(log=(*w.log, OWN_CLAIM))
        yield source_on(landed._replace(source_seen=seen + 1), s.ClaimedBack())
        if w.left.lost:
            yield landed._replace(left=w.left._replace(lost=w.left.lost - 1))
    elif w.log[seen] == OWN_CLAIM:
        yield source_on(w._replace(source_seen=seen + 1), s.ClaimedBack())
    elif w.log[seen] == OWN_HANDOVER:
        yield source_on(w._replace(source_seen=seen + 1), s.Overtaken(True))
    else:
        yield source_on(w, s.Overtaken(False))


# ---- the target's driver ----


def target_on(w: World, event: t.Event) -> World:
    assert w.target is not None
    machine, effects = w.target.on(event)
    w = w._replace(target=machine, target_waits="" if effects else w.target_waits)
    for effect in effects:
        match effect:
            case t.Serve():
                assert w.log[w.target_seen - 1] == "Accepted T"
                w = w._replace(serving=w.serving | {"T"})
            case t.Drop() | t.FoldAndTail():
                pass
            case _:
                w = w._replace(target_waits=type(effect).__name__)
    return w._replace(target=None) if machine.phase.is_end else w


def target_steps(w: World) -> Iterator[World]:
    if w.target is None:
        return
    phase, seen = w.target.phase, w.target_seen
    if "copy" in w.mail:
        yield target_on(w._replace(mail=w.mail - {"copy"}), t.CopyAsked())
    if "release" in w.mail:
        yield target_on(w._replace(mail=w.mail - {"release"}), t.Released())
    yield target_on(w, t.Expired())
    if w.target_waits == "Verify":
        yield target_on(w, t.Verified())
        yield target_on(w, t.NotVerified("x"))
    if phase in (TargetPhase.COPYING, TargetPhase.PROBATION) and len(w.log) > seen:
        read, record = w._replace(target_seen=seen + 1), w.log[seen]
        if record.startswith("Committed"):
            yield read
        else:
            yield target_on(read, t.HandoverSeen() if record == OWN_HANDOVER else t.Overtaken())
    if w.target_waits in ("Accept", "Return"):
        mine = "Accepted T" if w.target_waits == "Accept" else "Returned T"
        if len(w.log) == seen:
            landed = w._replace(log=(*w.log, mine))
            yield target_on(landed._replace(target_seen=seen + 1), t.Acknowledged())
            if w.left.lost:
                yield landed._replace(left=w.left._replace(lost=w.left.lost - 1))
        elif w.log[seen] == mine:
            yield target_on(w._replace(target_seen=seen + 1), t.Acknowledged())
        else:
            yield target_on(w, t.Overtaken())


# ---- nodes, as rule 4 has them, and faults ----


def node_steps(w: World) -> Iterator[World]:
    """A node without the agent in memory looks at the log; one that serves notices that the log has moved."""
    owner, phase = owner_of(w.log)
    end = len(w.log)
    if w.source is None:
        if "S" in w.serving and w.source_seen < end:
            yield w._replace(serving=w.serving - {"S"})
        if "S" not in w.serving and (owner, phase) == ("S", LogPhase.RUN):
            yield w._replace(log=(*w.log, "Claimed S'"), serving=w.serving | {"S"}, source_seen=end + 1)
    if w.target is None:
        if "T" in w.serving and w.target_seen < end:
            yield w._replace(serving=w.serving - {"T"})
        if "T" not in w.serving and owner == "T":
            if phase is LogPhase.PROBATION:
                yield target_on(w._replace(target=w.new_target("m-1"), target_seen=end), t.HandoverSeen())
            else:
                yield w._replace(log=(*w.log, "Claimed T'"), serving=w.serving | {"T"}, target_seen=end + 1)
    if "K" in w.serving and owner != "K":
        yield w._replace(serving=w.serving - {"K"})


def faults(w: World) -> Iterator[World]:
    left = w.left
    for expect, record in w.flight:
        if expect == len(w.log):
            yield w._replace(log=(*w.log, record), serving=w.serving | {"K"} if record == "Claimed K" else w.serving)
    if left.suspicions:
        flight = w.flight | {(len(w.log), "Claimed K")}
        yield w._replace(flight=flight, left=left._replace(suspicions=left.suspicions - 1))
    if left.crashes:
        crashed = w._replace(left=left._replace(crashes=left.crashes - 1))
        if w.source is not None or "S" in w.serving:
            sent = {"HandOver": OWN_HANDOVER, "ClaimBack": OWN_CLAIM}.get(w.source_waits)
            flight = w.flight | ({(w.source_seen, sent)} if sent else set())
            yield crashed._replace(source=None, source_waits="", serving=w.serving - {"S"}, flight=flight)
        if w.target is not None or "T" in w.serving:
            sent = {"Accept": "Accepted T", "Return": "Returned T"}.get(w.target_waits)
            flight = w.flight | ({(w.target_seen, sent)} if sent else set())
            yield crashed._replace(target=None, target_waits="", serving=w.serving - {"T"}, flight=flight)
    if left.commits:
        for name, seen in (("S", w.source_seen), ("T", w.target_seen)):
            if name in w.serving and seen == len(w.log):
                made = w._replace(log=(*w.log, f"Committed {name}"), left=left._replace(commits=left.commits - 1))
                yield made._replace(source_seen=seen + 1) if name == "S" else made._replace(target_seen=seen + 1)


def steps(w: World) -> Iterator[World]:
    """What happens without a fault."""
    yield from source_steps(w)
    yield from target_steps(w)
    yield from node_steps(w)
