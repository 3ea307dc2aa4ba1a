"""Random legal histories of an agent, and their folds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hypothesis import strategies as st

from mielin_cells.log.commit import AskCall, Commit, DeadLetter, Input, Out, StepCall, TurnCall
from mielin_cells.log.delta import PAGE_BYTES, BufferDelta, StateDelta, TableDelta
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import AgentState, Phase
from mielin_cells.log.message import client_sender
from mielin_cells.log.records import AnyRecord, Asked, Stepped, decode_record, encode_record
from support.agent_log import (
    NODE,
    TARGET,
    THIRD,
    accepted,
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
from support.agent_log import (
    following as next_of,
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
    takes: list[Input] = []
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
    made: list[TurnCall] = [AskCall("guide", n, "hello", b"body", "guide.hello")]
    number = next_of(fold, "alice")
    sent = Out("guide", "Guide", n, "hello", b"", True, "alice", number, 0)
    return Asked(**head(fold), sender="alice", input=number, out=sent, at=known(fold), calls=made)


def step(fold: Fold) -> Stepped:
    made: list[TurnCall] = [StepCall("model", b"%d" % fold.seq)]
    return Stepped(**head(fold), sender="alice", input=next_of(fold, "alice"), at=known(fold), calls=made)


def known(fold: Fold) -> int:
    """Outcomes of the open turn that the log has."""
    turn = fold.turn
    return len(turn.calls) if turn is not None and (turn.sender, turn.n) == ("alice", next_of(fold, "alice")) else 0


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
