"""Random legal histories: whoever folds them, from wherever, has the same agent; and the seal tells any difference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from agent_log import (
    NODE,
    TARGET,
    THIRD,
    accepted,
    after,
    claimed,
    cleared,
    commit,
    committed,
    content,
    created,
    failed,
    handed_off,
    head,
    out,
    paused,
    resumed,
    returned,
    snapshot,
    suspended,
    taken,
    terminated,
)
from agent_log import (
    following as next_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mielin_cells.core.fold import Fold, Phase
from mielin_cells.core.lifecycle import AgentState
from mielin_cells.core.message import client_sender
from mielin_cells.core.records import (
    Accepted,
    AnyRecord,
    Asked,
    AskMade,
    Claimed,
    Commit,
    DeadLetter,
    HandedOff,
    Made,
    Out,
    Returned,
    Snapshot,
    StepMade,
    Stepped,
    Taken,
    decode_record,
    encode_record,
)
from mielin_cells.core.state import PAGE_BYTES, BufferDelta, StateDelta, StoredState, TableDelta
from mielin_cells.errors import RecordInvalid

QUICK = settings(
    max_examples=35, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
AGENTS = ("alice", "bob")
CLIENTS = (client_sender("s1"), client_sender("s2"))


class Entry(NamedTuple):
    seq: int
    record: AnyRecord


@st.composite
def deltas(draw: st.DrawFn) -> StateDelta | None:
    small = st.binary(max_size=4)
    match draw(st.integers(0, 4)):
        case 0:
            return None
        case 1:
            return StateDelta(plain={draw(st.sampled_from("ab")): draw(small)})
        case 2:
            sets = draw(st.dictionaries(small, small, max_size=3))
            dels = [key for key in draw(st.lists(small, max_size=2, unique=True)) if key not in sets]
            return StateDelta(tables={draw(st.sampled_from("cd")): TableDelta(sets, dels)})
        case 3:
            size = draw(st.integers(0, 2 * PAGE_BYTES))
            page = draw(small)[:size]
            return StateDelta(buffers={"e": BufferDelta(size, {0: page} if page else {}, draw(st.none() | st.just(0)))})
        case _:
            return StateDelta(removed=[draw(st.sampled_from("abcde"))])


@st.composite
def commits(draw: st.DrawFn, fold: Fold, runs: bool) -> Commit:
    """A commit that an owner of `fold` could write."""
    ledger = fold.ledger
    takes: list[Taken] = []
    marks = {sender: peer.mark for sender, peer in ledger.peers.items()}
    for _ in range(draw(st.integers(0, 3)) if runs else 0):
        sender = draw(st.sampled_from(AGENTS + CLIENTS))
        answer = draw(st.none() | st.binary(max_size=3))
        if sender in CLIENTS:
            peer, n, low = ledger.peers.get(sender), draw(st.integers(1, 50)), draw(st.integers(0, 5))
            if peer is None and ledger.horizon >= fold.seq:
                continue  # nobody can have begun since the last session was forgotten
            start = peer.start if peer is not None else draw(st.integers(ledger.horizon + 1, fold.seq))
            known = (peer.answers.keys(), peer.low) if peer is not None else (set[int](), 0)
            if n not in known[0] and n >= known[1] and not any(one.sender == sender for one in takes):
                takes.append(taken(n, sender, answer, low, start))
        else:
            marks[sender] = marks.get(sender, 0) + 1
            takes.append(taken(marks[sender], sender, answer, draw(st.integers(0, marks[sender]))))
    numbers = dict(ledger.numbers)
    outs: list[Out] = []
    for _ in range(draw(st.integers(0, 3)) if runs else 0):
        to = draw(st.sampled_from(("guide", "porter")))
        numbers[to] = numbers.get(to, 0) + 1
        outs.append(out(numbers[to], to, k=len(outs)))
    letters = [DeadLetter(draw(st.integers(0, 9)), "x", 1, "h", "c", 1, [], b"")] * draw(st.integers(0, 1))
    cursor = ledger.cursor + draw(st.integers(0, 3))
    may_hold = [*ledger.held, *range(ledger.cursor + 1, cursor + 1)]
    held = draw(st.none() | st.lists(st.sampled_from(may_hold), max_size=3, unique=True)) if may_hold else None
    released = {
        to: draw(st.integers(ledger.released.get(to, 0), n)) for to, n in ledger.numbers.items() if draw(st.booleans())
    }
    forgot = [s for s in CLIENTS if s in ledger.peers and draw(st.integers(0, 5)) == 0]
    return commit(
        *takes, outs=tuple(outs), state=draw(deltas()), cursor=cursor, held=held, released=released,
        dead=letters, forgot=forgot,
    )  # fmt: skip


def ask(fold: Fold) -> Asked:
    n = fold.ledger.next_number("guide")
    made: list[Made] = [AskMade("guide", n, "hello", b"body", "guide.hello")]
    number = next_of(fold, "alice")
    sent = Out("guide", "Guide", n, "hello", b"", True, "alice", number, 0)
    return Asked(**head(fold), sender="alice", input=number, out=sent, at=known(fold), made=made)


def step(fold: Fold) -> Stepped:
    made: list[Made] = [StepMade("model", b"%d" % fold.seq)]
    return Stepped(**head(fold), sender="alice", input=next_of(fold, "alice"), at=known(fold), made=made)


def known(fold: Fold) -> int:
    """Outcomes of the open turn that the log has."""
    turn = fold.turn
    return len(turn.made) if turn is not None and (turn.sender, turn.n) == ("alice", next_of(fold, "alice")) else 0


@st.composite
def following(draw: st.DrawFn, fold: Fold, ends: bool) -> AnyRecord:
    """A record that may follow."""
    state, works = fold.lifecycle.state, fold.may_run
    makers: list[Callable[[], AnyRecord]] = [
        lambda: claimed(fold, draw(st.sampled_from((NODE, TARGET, THIRD))), fold.seq)
    ]
    if fold.phase is Phase.PROBATION:
        makers += [lambda: accepted(fold, fold.migration), lambda: returned(fold, fold.migration)] * 2
        return draw(st.sampled_from(makers))()
    makers += [lambda: committed(fold, draw(commits(fold, works)))] * 6
    to = TARGET if fold.owner == NODE else NODE
    seal = draw(st.none() | commits(fold, works))
    makers += [lambda: handed_off(fold, f"m-{fold.seq}", to, seal)] * 2
    makers += [lambda: cleared(fold, *(letter.key for letter in fold.ledger.dead[::2]), (99, "nobody", 1))]
    makers += [lambda: snapshot(fold)]
    if works:
        makers += [
            lambda: ask(fold),
            lambda: step(fold),
            lambda: suspended(fold),
            lambda: paused(fold),
            lambda: failed(fold),
        ]
    elif state is not AgentState.CREATED:
        makers += [lambda: resumed(fold)] * 3
    if ends and not fold.ledger.pending:
        makers += [lambda: terminated(fold)]
    return draw(st.sampled_from(makers))()


@st.composite
def histories(draw: st.DrawFn) -> list[Entry]:
    fold = Fold("museum/1")
    entries = [Entry(draw(st.integers(1, 3)), created(fold))]
    fold.apply(*entries[0])
    length = draw(st.integers(1, 25))
    while len(entries) < length and fold.phase is not Phase.TERMINATED:
        record = draw(following(fold, len(entries) > length - 2))
        stored = decode_record(encode_record(record), "here")
        entries.append(Entry(fold.seq + draw(st.integers(1, 3)), stored))
        fold.apply(*entries[-1])
    return entries


def folded(entries: list[Entry], fold: Fold | None = None) -> Fold:
    fold = Fold("museum/1") if fold is None else fold
    for entry in entries:
        fold.apply(*entry)
    return fold


def everything(fold: Fold) -> object:
    """Content, and the order of sessions, by which they are forgotten."""
    return content(fold), [s for s in fold.ledger.peers if s in CLIENTS], fold.ledger.clients


@QUICK
@given(histories())
def test_a_load_from_any_snapshot_equals_the_fold_from_the_start(history: list[Entry]) -> None:
    whole = folded(history)
    for at, (seq, record) in enumerate(history):
        if isinstance(record, Snapshot):
            assert record.small is not None
            loaded = Fold.of_snapshot(seq, record, StoredState.decode_small(record.small))
            assert everything(loaded) == everything(folded(history[: at + 1]))
            assert everything(folded(history[at + 1 :], loaded)) == everything(whole)
            assert loaded.seal_digest() == whole.seal_digest()


@QUICK
@given(histories())
def test_each_reader_has_the_digest_that_the_source_sealed(history: list[Entry]) -> None:
    """I8: the target compares its own fold, after the seal, with what the handover says."""
    reader = Fold("museum/1")
    for seq, record in history:
        before = copy.deepcopy(reader)
        reader.apply(seq, record)
        if isinstance(record, HandedOff):
            if record.seal is not None:  # the owner's ledger and state are ahead of its log by the seal
                before.ledger.apply(record.seal)
                if record.seal.state is not None:
                    before.state.apply(record.seal.state)
            assert reader.seal_digest() == before.seal_digest()


@QUICK
@given(histories())
def test_the_outcome_of_each_migration_follows_from_its_log_alone(history: list[Entry]) -> None:
    """Rule 7, written down again over the bare records."""
    expected: dict[str, str] = {}
    opened = None
    for _, record in history:
        if isinstance(record, HandedOff):
            opened = record.migration
        elif opened is not None and isinstance(record, (Accepted, Returned, Claimed)):
            expected[opened] = "completed" if isinstance(record, Accepted) else "rolled_back"
            opened = None
    fold = folded(history)
    assert fold.outcomes == dict(list(expected.items())[-16:])
    assert (fold.migration or None) == opened


@QUICK
@given(histories(), st.data())
def test_a_record_out_of_its_place_is_refused_and_changes_nothing(history: list[Entry], data: st.DataObject) -> None:
    fold = folded(history)
    before = everything(fold)
    _, record = data.draw(st.sampled_from(history))
    forgeries: list[dict[str, Any]] = [
        {"agent": "other"}, {"prev": fold.seq + 1}, {"prev": record.prev}, {"prev": fold.seq, "epoch": fold.epoch + 2},
    ]  # fmt: skip
    forged = data.draw(st.sampled_from(forgeries))
    with pytest.raises(RecordInvalid):
        fold.apply(fold.seq + 1, msgspec.structs.replace(record, **forged))
    assert everything(fold) == before


@QUICK
@given(histories())
def test_an_owner_that_settles_its_own_records_has_what_readers_have(history: list[Entry]) -> None:
    owner = Fold("museum/1")
    for seq, record in history:
        made = getattr(record, "commit", None) or getattr(record, "seal", None)
        owner.check(seq, record)
        if made is not None:
            owner.ledger.apply(made)
        change = getattr(record, "state", None) if made is None else made.state
        if change is not None:
            owner.state.apply(change)
        if isinstance(record, Asked):
            owner.ledger.send(record.out)
        owner.settled(seq, record)
    assert everything(owner) == everything(folded(history))


# ---- the seal tells any difference ----

STATE = StateDelta(plain={"a": b"1"}, tables={"t": TableDelta({b"k": b"v"}, [])})
BASE = commit(
    taken(1, "alice", b"a"), taken(7, CLIENTS[0], b"b", 3, 1), outs=(out(2), out(3)), state=STATE, cursor=5,
    held=[4], released={"guide": 1}, dead=[DeadLetter(3, "x", 1, "h", "c", 1, [], b"")],
)  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "mark": {"taken": [BASE.taken[0], taken(2, "alice"), BASE.taken[1]]},
    "answer": {"taken": [taken(1, "alice", b"x"), BASE.taken[1]]},
    "no answer": {"taken": [taken(1, "alice"), BASE.taken[1]]},
    "low": {"taken": [BASE.taken[0], taken(7, CLIENTS[0], b"b", 4, 1)]},
    "start": {"taken": [BASE.taken[0], taken(7, CLIENTS[0], b"b", 3, 2)]},
    "client's number": {"taken": [BASE.taken[0], taken(8, CLIENTS[0], b"b", 3, 1)]},
    "sender": {"taken": [taken(1, "alicf", b"a"), BASE.taken[1]]},
    "number": {"outs": [out(2), out(3), out(4)]},
    "output": {"outs": [out(2), out(3, k=1)]},
    "cursor": {"cursor": 6},
    "held": {"held": [3]},
    "not held": {"held": []},
    "released": {"released": {}},
    "dead": {"dead": []},
    "horizon": {"forgot": [CLIENTS[0]]},
    "plain": {"state": StateDelta(plain={"a": b"2"}, tables={"t": TableDelta({b"k": b"v"}, [])})},
    "table": {"state": StateDelta(plain={"a": b"1"}, tables={"t": TableDelta({b"k": b""}, [])})},
    "empty field": {"state": StateDelta(plain={"a": b"1", "b": b""}, tables={"t": TableDelta({b"k": b"v"}, [])})},
    "kind": {"state": StateDelta(plain={"a": b"1", "t": b""})},
    "buffer": {"state": StateDelta(plain={"a": b"1"}, buffers={"t": BufferDelta(0, {})})},
}


def sealed(what: Commit) -> bytes:
    return after(lambda f: committed(f, commit(outs=(out(1),))), lambda f: committed(f, what)).seal_digest()


def test_all_that_differs_seals_differently() -> None:
    digests = {name: sealed(msgspec.structs.replace(BASE, **change)) for name, change in OTHERS.items()}
    digests["base"] = sealed(BASE)
    assert len(set(digests.values())) == len(digests)


def test_the_order_in_which_things_came_does_not_matter() -> None:
    first, second = taken(1, "alice"), taken(1, "bob", b"x")
    assert sealed(commit(first, second, held=[1, 2], cursor=2)) == sealed(commit(second, first, held=[2, 1], cursor=2))
