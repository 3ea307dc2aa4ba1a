"""Whether a record may be the next one of a log: its place, its author, its phase, and what it says.

`RULES` says for each kind in which phase it may stand, who may write it in which epoch, and what lifecycle it leads to; the fold
and the simulator's checkers read it.  The rules about contents are asked by readers only: an owner's own ledger is ahead of its
log by the record that it composes.  Each of these returns what is wrong, in words and with the number of the rule, or "".
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from mielin_cells.errors import EpochOutOfOrder, InvalidTransition, LogGap, NotTheOwner, RecordInvalid, WrongAgent
from mielin_cells.log.commit import AskCall, Commit, Input, OpenTurn, Out
from mielin_cells.log.family.rules import wrong_family
from mielin_cells.log.family.tree import Family, FamilyChange
from mielin_cells.log.image import IN_SNAPSHOT, Image
from mielin_cells.log.inboxes.places import wrong_held, wrong_places, wrong_way_back
from mielin_cells.log.ledger import Ledger
from mielin_cells.log.lifecycle import AgentState, Lifecycle, Phase
from mielin_cells.log.message import is_client, sender_text
from mielin_cells.log.records import (
    Accepted,
    AnyRecord,
    Asked,
    Claimed,
    Cleared,
    Committed,
    Created,
    Failed,
    HandedOff,
    Paused,
    Record,
    Resumed,
    Returned,
    Snapshot,
    StandbySet,
    Stepped,
    Suspended,
    Terminated,
    Undone,
)
from mielin_cells.log.topics.subs import Subs, Subscribed, Took, TopicChange, Unsubscribed
from mielin_cells.log.waits.kept import WAIT_CHANGES, WaitChange, wrong_waits


class Rule(NamedTuple):
    phases: tuple[Phase, ...] = (Phase.RUN,)
    """In these it may stand.  In RUN only the owner's own incarnation may write, in PROBATION any of the named node's."""
    takes_over: bool = False
    """Any node may write it, and its epoch is the next one; every other record is its owner's, in the owner's epoch."""
    starts: bool = False
    """True if the record makes an agent that was only created a running one."""
    state: AgentState | None = None
    """The lifecycle after it; None: unchanged."""
    may_wait: bool = True
    """True if the record may stand between an undo and the claim that the undo calls for (rule 16)."""


RULES: Final[dict[type[Record], Rule]] = {
    Created: Rule((Phase.NONE,), takes_over=True),
    Claimed: Rule((Phase.RUN, Phase.PROBATION), takes_over=True),
    Accepted: Rule((Phase.PROBATION,)),
    Returned: Rule((Phase.PROBATION,)),
    Committed: Rule(starts=True),
    Asked: Rule(may_wait=False),
    Stepped: Rule(may_wait=False),
    Snapshot: Rule(may_wait=False),
    HandedOff: Rule(may_wait=False),
    Undone: Rule(may_wait=False),
    Suspended: Rule(starts=True, state=AgentState.SUSPENDED),
    Paused: Rule(starts=True, state=AgentState.PAUSED),
    Failed: Rule(starts=True, state=AgentState.ERROR),
    Resumed: Rule(state=AgentState.RUNNING),
    Terminated: Rule(state=AgentState.TERMINATED),
    Cleared: Rule(),
    StandbySet: Rule(),
}
"""Every kind but `Spilled`, which stands for another record and is never folded itself."""


def check(image: Image, seq: int, record: AnyRecord) -> None:
    """Raises a `RecordInvalid` if `record` cannot be the one at `seq`, after the last one folded."""
    where = f"The log of agent {image.agent!r} at {seq}"
    facts: dict[str, object] = {"subject": image.agent, "seq": seq}
    if record.agent != image.agent:
        raise WrongAgent(f"{where} holds a record of {record.agent!r}.", have=record.agent, need=image.agent, **facts)
    if record.prev != image.seq or seq <= image.seq:
        raise LogGap(
            f"{where} follows {record.prev}, but the last record read is {image.seq}; read again from a snapshot.",
            have=image.seq, need=record.prev, **facts,
        )  # fmt: skip
    if image.phase is Phase.TERMINATED:
        raise RecordInvalid(f"{where} follows Terminated.", **facts)
    rule = RULES.get(type(record))
    if rule is None:
        raise RecordInvalid(f"{where} is a reference to a record in parts, which was not assembled.", **facts)
    expected = image.epoch + rule.takes_over
    if record.epoch != expected:
        raise EpochOutOfOrder(
            f"{where} is of epoch {record.epoch}, not {expected}.", have=record.epoch, need=expected, **facts
        )
    if image.phase not in rule.phases:
        raise RecordInvalid(f"{where} is {type(record).__name__} in phase {image.phase.value}.", **facts)
    if rule.takes_over:
        return
    if isinstance(record, (Accepted, Returned)) and record.migration != image.migration:
        raise RecordInvalid(f"{where} ends migration {record.migration}; {image.migration} is in probation.", **facts)
    if isinstance(record, Returned) and record.to != image.source:
        raise RecordInvalid(f"{where} returns to {record.to}; {image.source} handed over.", **facts)
    if record.node != image.owner:
        raise NotTheOwner(
            f"{where} is by {record.node}; {image.owner} owns.", author=record.node, owner=image.owner, **facts
        )
    if image.phase is Phase.RUN and record.incarnation != image.incarnation:
        raise NotTheOwner(
            f"{where} is by incarnation {record.incarnation} of {record.node}; incarnation {image.incarnation} owns.",
            author=record.node, owner=image.owner, **facts,
        )  # fmt: skip
    wrong = _out_of_order(image, record, rule)
    if wrong:
        raise RecordInvalid(f"{where} {wrong}.", **facts)
    try:
        next_lifecycle(image.lifecycle, record, rule)
    except InvalidTransition as error:
        raise RecordInvalid(f"{where}: {error.message}", **facts) from error


def _out_of_order(image: Image, record: AnyRecord, rule: Rule) -> str:
    """What is wrong with a record of the right epoch and author, from what stands open now."""
    commit = commit_of(record)
    runs = isinstance(record, (Asked, Stepped)) or (commit is not None and bool(commit.inputs))
    if runs and not image.lifecycle.state.accepts_work:
        return f"holds a turn of an agent that is {image.lifecycle.state.value}"
    if runs and image.wish is not None:
        return f"holds a turn behind one that ordered the agent's own {image.wish.order}"
    if image.goes_to and (runs or not rule.may_wait):
        what = "holds a turn" if runs else f"is {type(record).__name__}"
        return f"{what} of an agent that {image.goes_to} was to claim first (rule 16)"
    if isinstance(record, HandedOff):
        if record.to in ("", record.node):
            return f"hands over to {record.to!r}, and {record.node} owns (rule 3)"
        if record.migration in image.handed or record.migration in image.outcomes:
            return f"hands over as {record.migration} a second time (rule 7)"
    if isinstance(record, Undone) and not image.is_ancestor(record.to):
        return f"goes back to {record.to}, which is trimmed or undone itself"
    if isinstance(record, (Asked, Stepped)) and not 0 <= record.at <= len(image.calls_before(record)):
        return f"goes on after outcome {record.at} of a turn, which is not there"
    return ""


def next_lifecycle(life: Lifecycle, record: Record, rule: Rule) -> Lifecycle:
    if rule.starts and life.state is AgentState.CREATED:
        life = life.to(AgentState.RUNNING)
    if rule.state is None:
        return life
    if not isinstance(record, Failed):
        return life.to(rule.state)
    error, before = record.error, life.error
    if before is not None:
        fatal = error.fatal or before.fatal
        error = msgspec.structs.replace(error, attempts=before.attempts + 1, fatal=fatal)
    if life.state is AgentState.ERROR:  # a resume that failed: same state, one more attempt
        return msgspec.structs.replace(life, error=error)
    return life.to(AgentState.ERROR, error)


def wrong_contents(image: Image, seq: int, record: AnyRecord, commit: Commit | None) -> str:
    """What is wrong with what a checked record says, for a reader; "" if nothing is."""
    if commit is not None:
        return wrong_commit(image.ledger, image.turn, commit, seq)
    match record:
        case Asked() | Stepped():
            return wrong_turn(image.ledger, record)
        case Undone():
            return wrong_undone(image.ledger, record)
        case Snapshot():
            return _wrong_snapshot(image, record)
        case Terminated():
            return "not all that it sent is released (rule 20)" if image.ledger.pending else ""
        case StandbySet():
            return f"there cannot be {record.copies} copies" if record.copies < 0 else ""
        case _:
            return ""


def _wrong_snapshot(image: Image, record: Snapshot) -> str:
    """Rule 18: it carries what the log before it says, and keeps no snapshot that was given up."""
    if any(getattr(record, name) != getattr(image, name) for name in IN_SNAPSHOT) or record.ledger != image.ledger:
        return "it is not what the log before it says (rule 18)"
    if record.digest != image.state.digest():
        return "its digest is not that of the state before it (rule 18)"
    before = {one.seq for one in image.snapshots} | {0}
    kept_seqs = [one.seq for one in record.snapshots]
    if kept_seqs != sorted(set(kept_seqs)) or not before.issuperset(kept_seqs):
        return f"it keeps the snapshots {kept_seqs}, of {sorted(before)} (rule 18)"
    if not 0 <= record.since <= record.prev or bool(record.parts) == (record.small is not None):
        return "it does not say where its state is (rule 18)"
    return ""


def commit_of(record: AnyRecord) -> Commit | None:
    if isinstance(record, HandedOff):
        return record.seal
    return record.commit if isinstance(record, Committed) else None


def wrong_commit(ledger: Ledger, turn: OpenTurn | None, commit: Commit, seq: int) -> str:
    """Of a commit in the record at `seq`."""
    # An operator has accepted that the inbox lost its entries (quarantine): it is read from its beginning.
    reads_anew = not commit.cursor and commit.held == []
    if commit.cursor < ledger.cursor and not reads_anew:
        return f"its cursor {commit.cursor} is behind {ledger.cursor} (rule 10)"
    return (
        (wrong_inputs(ledger, commit.inputs, seq) if commit.inputs else "")
        or (wrong_outs(ledger, commit.outs) if commit.outs else "")
        or (_wrong_released(ledger, commit.released) if commit.released else "")
        or (_wrong_held(ledger, commit.held, commit.cursor) if commit.held else "")
        or (_wrong_changes(ledger, commit.changes) if commit.changes else "")
        or (wrong_places(ledger.inboxes, commit.inboxes) if commit.inboxes else "")
        or (
            _wrong_rest(ledger, turn, commit)
            if commit.forgot or commit.ended or commit.replayed or commit.fired
            else ""
        )
    )


def wrong_inputs(ledger: Ledger, takes: list[Input], seq: int) -> str:
    """Rules 10, 14 and 15: each number once; an agent's without a gap; no session that was forgotten, or has not begun;
    nothing that a client had given up before."""
    peers, replays = ledger.peers, ledger.replays
    marks: dict[str, int] = {}
    lows: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()
    for one in takes:
        sender, n = one.sender, one.n
        peer = peers.get(sender)
        if not is_client(sender):
            mark = marks.get(sender, peer.mark if peer is not None else 0)
            if n != mark + 1:
                return f"it takes number {n} of {sender} after {mark} (rule 10)"
            if one.given_up:
                return f"it says that {sender} has given up numbers, which only a client does (rule 15)"
            marks[sender] = n
            continue
        key = sender, n
        if key in seen:
            return f"it takes number {n} of {sender_text(sender)} twice (rule 15)"
        seen.add(key)
        low = lows.get(sender, peer.low if peer is not None else 0)
        if key not in replays:
            if n < low or (peer is not None and n in peer.answers):
                return f"it takes number {n} of {sender_text(sender)} again, or below {low} (rule 15)"
            if peer is None and not ledger.horizon < one.start < seq and sender not in lows:
                return (
                    f"it takes a message of {sender_text(sender)}, which began at {one.start}; sessions from "
                    f"{ledger.horizon + 1} to {seq - 1} may be new (rule 15)"
                )
        lows[sender] = max(low, one.low)
        seen.update((sender, number) for number in one.given_up if (sender, number) not in replays)
    return ""


def wrong_outs(ledger: Ledger, outs: list[Out]) -> str:
    """Rule 10: contiguous, and never given twice."""
    given: dict[str, int] = {}
    for out in outs:
        to, n = out.to, out.n
        last = given.get(to) or ledger.numbers.get(to, 0)
        if n != last + 1:
            return f"it sends number {n} to {to} after {last} (rule 10)"
        given[to] = n
    return ""


def _wrong_released(ledger: Ledger, released: dict[str, int]) -> str:
    """Rules 9 and 11: only what the log holds already can have been stored, and a mark never falls."""
    for to, n in released.items():
        mark, last = ledger.released.get(to, 0), ledger.numbers.get(to, 0)
        if not mark <= n <= last:
            return f"it releases what was sent to {to} up to {n}; {mark} is released and {last} was sent (rule 11)"
    return ""


def _wrong_held(ledger: Ledger, held: list[int], cursor: int) -> str:
    wrong = wrong_held(ledger.cursor, ledger.held, cursor, held)
    return f"{wrong} (rule 10)" if wrong else ""


def _wrong_changes(ledger: Ledger, changes: list[TopicChange | FamilyChange | WaitChange]) -> str:
    topics = [change for change in changes if isinstance(change, (Took, Subscribed, Unsubscribed))]
    waits = [change for change in changes if isinstance(change, WAIT_CHANGES)]
    return (
        wrong_topics(ledger.topics, topics)
        or wrong_waits(ledger.waits, waits)
        or (wrong_family(ledger.family or Family(), changes) if len(topics) + len(waits) < len(changes) else "")
    )


def wrong_topics(subs: Subs | None, changes: list[TopicChange]) -> str:
    """Rule T8: of a topic only what a subscription has not had, in order."""
    after = subs if subs is not None else Subs()
    if not all(isinstance(change, Took) for change in changes):
        after = after.copy()
    cursors: dict[str, list[int]] = {}
    for change in changes:
        if not isinstance(change, Took):
            after.apply(change)
            cursors = {}
            continue
        sub = after.by_key.get(change.key)
        if sub is None or sub.parked or not 0 <= change.shard < len(sub.cursor):
            return f"it takes a message for subscription {change.key!r}, which is not there (rule T8)"
        cursor = cursors.setdefault(change.key, [*sub.cursor])
        if change.seq <= cursor[change.shard] and not change.begins_anew(sub):
            return f"subscription {change.key!r} takes entry {change.seq} after {cursor[change.shard]} (rule T8)"
        cursor[change.shard] = change.seq
        if after is not subs:
            after.apply(change)
    return ""


def _wrong_rest(ledger: Ledger, turn: OpenTurn | None, commit: Commit) -> str:
    if commit.forgot:
        sessions = ledger.peers.keys() | {one.sender for one in commit.inputs}
        if len(set(commit.forgot)) < len(commit.forgot) or not all(
            is_client(one) and one in sessions for one in commit.forgot
        ):
            return "it forgets a session that is not known (rule 15)"
    for ended in commit.ended:
        is_open = turn is not None and (turn.sender, turn.n) == (ended.sender, ended.input)
        if not 0 <= ended.at <= (len(turn.calls) if turn is not None and is_open else 0):
            return f"it goes on after outcome {ended.at} of a turn, which is not there (rule 13)"
    if commit.replayed is not None and not ledger.replays:
        return "it tells of messages that were taken again, and none were to be (rule 17)"
    gone = set(commit.gone)
    if any(fired.id not in gone for fired in commit.fired):
        return "a timer has fired and is still there"
    return ""


def wrong_turn(ledger: Ledger, record: Asked | Stepped) -> str:
    """Rules 12 and 13: the input is one that may be taken next, and what is sent is the last that the turn has made."""
    sender, n = record.sender, record.input
    peer = ledger.peers.get(sender)
    if not is_client(sender):
        mark = peer.mark if peer is not None else 0
        if n != mark + 1:
            return f"it is of a turn for number {n} of {sender} after {mark} (rule 10)"
    elif peer is not None and (n in peer.answers or n < peer.low) and (sender, n) not in ledger.replays:
        return f"it is of a turn for number {n} of {sender_text(sender)}, which was taken (rule 15)"
    if not isinstance(record, Asked):
        return ""
    outs = record.outs
    made = [(call.to, call.n) if isinstance(call, AskCall) else None for call in record.calls[-len(outs) :]]
    if any(not out.ask or (out.sender, out.input) != (sender, n) for out in outs):
        return "what it sends is no ask of its turn (rule 12)"
    if made != [(out.to, out.n) for out in outs]:
        return "what it sends is not the last that its turn has made (rule 12)"
    return wrong_outs(ledger, outs)


def wrong_undone(ledger: Ledger, record: Undone) -> str:
    """Rule 16: cursor, marks and held go back; numbers do not."""
    if not record.goes_to:
        return "it names no node that is to go on (rule 16)"
    if record.cursor > ledger.cursor or any(one > record.cursor for one in record.held):
        return f"it goes back to position {record.cursor} of the inbox from {ledger.cursor} (rule 16)"
    if wrong := wrong_way_back(ledger.inboxes, record.inboxes):
        return f"{wrong} (rule 16)"
    for sender, mark in record.marks.items():
        peer = ledger.peers.get(sender)
        if peer is None or peer.is_client or not 0 <= mark <= peer.mark:
            return f"it takes the mark of {sender_text(sender)} to {mark}, which was never below (rule 16)"
    if not {letter.key for letter in ledger.dead}.issuperset(record.unburied):
        return "it takes back dead letters that are not there (rule 16)"
    if len({(one.sender, one.n) for one in record.replays}) < len(record.replays):
        return "it has one message taken twice (rule 16)"
    if any(sent.n > ledger.numbers.get(sent.to, 0) for one in record.replays for sent in one.sent):
        return "it tells of messages that were never sent (rule 17)"
    return ""
