"""Random legal histories: whoever folds them, from wherever, has the same agent; and the seal tells any difference."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.agent_log import (
    after,
    commit,
    committed,
    out,
    taken,
)
from support.histories import CLIENTS, Entry, everything, folded, histories

from mielin_cells.errors import RecordInvalid
from mielin_cells.log.commit import Commit, DeadLetter
from mielin_cells.log.delta import BufferDelta, StateDelta, TableDelta
from mielin_cells.log.fold import Fold
from mielin_cells.log.records import Accepted, Asked, Claimed, HandedOff, Returned, Snapshot
from mielin_cells.log.state import StoredState

QUICK = settings(
    max_examples=35, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


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
            for out in record.outs:
                owner.ledger.send(out)
        owner.settled(seq, record)
    assert everything(owner) == everything(folded(history))


# ---- the seal tells any difference ----

STATE = StateDelta(plain={"a": b"1"}, tables={"t": TableDelta({b"k": b"v"}, [])})
BASE = commit(
    taken(1, "alice", b"a"), taken(7, CLIENTS[0], b"b", 3, 1), outs=(out(2), out(3)), state=STATE, cursor=5,
    held=[4], released={"guide": 1}, dead=[DeadLetter(3, "x", 1, "h", "c", 1, [], b"")],
)  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "mark": {"inputs": [BASE.inputs[0], taken(2, "alice"), BASE.inputs[1]]},
    "answer": {"inputs": [taken(1, "alice", b"x"), BASE.inputs[1]]},
    "no answer": {"inputs": [taken(1, "alice"), BASE.inputs[1]]},
    "low": {"inputs": [BASE.inputs[0], taken(7, CLIENTS[0], b"b", 4, 1)]},
    "start": {"inputs": [BASE.inputs[0], taken(7, CLIENTS[0], b"b", 3, 2)]},
    "client's number": {"inputs": [BASE.inputs[0], taken(8, CLIENTS[0], b"b", 3, 1)]},
    "sender": {"inputs": [taken(1, "alicf", b"a"), BASE.inputs[1]]},
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
