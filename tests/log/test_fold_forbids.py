"""What the protocol forbids, a reader of the log refuses, naming the rule, and changes nothing: rules 3, 7, 9 to 18, 20.

Each forgery is made behind a random legal history, so it is wrong whatever came before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from support.agent_log import (
    AGENT,
    after,
    asked,
    claimed,
    commit,
    committed,
    following,
    handed_off,
    out,
    snapshot,
    stepped,
    suspended,
    taken,
    terminated,
    undone,
)
from support.histories import CLIENTS, Entry, everything, folded, histories

from mielin_cells.errors import RecordInvalid
from mielin_cells.log.commit import EndedTurn, Fired, ReplayCounts, ReplayInput, Sent
from mielin_cells.log.fold import Fold
from mielin_cells.log.ledger import Peer
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.message import client_sender
from mielin_cells.log.records import AnyRecord, SnapshotRef, StandbySet

Forge: TypeAlias = Callable[[Fold], AnyRecord | None]
"""The next record, wrong; None if it cannot be made wrong here."""

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
STRANGER = client_sender("stranger")


def commits(**what: Any) -> Forge:
    return lambda fold: committed(fold, commit(**{"cursor": fold.ledger.cursor, **what}))


def takes(*makers: Callable[[Fold], Any]) -> Forge:
    return lambda fold: (
        committed(fold, commit(*(make(fold) for make in makers), cursor=fold.ledger.cursor)) if fold.may_run else None
    )


def known(fold: Fold) -> tuple[str, int] | None:
    """A number that a client's session has had taken."""
    return next(((s, n) for s, p in fold.ledger.peers.items() if p.is_client for n in p.answers), None)


def repeated(fold: Fold) -> AnyRecord | None:
    found = known(fold)
    return committed(fold, commit(taken(found[1], found[0]), cursor=fold.ledger.cursor)) if found else None


def held_again(fold: Fold) -> AnyRecord | None:
    done = set(range(1, fold.ledger.cursor + 1)) - set(fold.ledger.held)
    return commits(held=[min(done)])(fold) if done else None


def released_less(fold: Fold) -> AnyRecord | None:
    low = [(to, n) for to, n in fold.ledger.released.items() if n]
    return commits(released={low[0][0]: low[0][1] - 1})(fold) if low else None


def ended(at: int) -> Forge:
    return lambda fold: (
        committed(
            fold,
            commit(
                taken(following(fold)), cursor=fold.ledger.cursor, ended=[EndedTurn("visitor", following(fold), at, [])]
            ),
        )
        if fold.may_run
        else None
    )


def ask(**over: Any) -> Forge:
    def forge(fold: Fold) -> AnyRecord | None:
        if not fold.may_run:
            return None
        right = asked(fold, fold.ledger.next_number("guide"))
        change = {name: make(right) if callable(make) else make for name, make in over.items()}
        return msgspec.structs.replace(right, **change)

    return forge


def step(number: Callable[[Fold], int]) -> Forge:
    return lambda fold: msgspec.structs.replace(stepped(fold), input=number(fold)) if fold.may_run else None


def handed_again(fold: Fold) -> AnyRecord | None:
    return handed_off(fold, next(iter(fold.handed))) if fold.handed else None


def pictured(**over: Any) -> Forge:
    """A snapshot with a ledger that is not the agent's."""

    def forge(fold: Fold) -> AnyRecord:
        right = snapshot(fold)
        change = {name: make(right.ledger) for name, make in over.items()}
        return msgspec.structs.replace(right, ledger=msgspec.structs.replace(right.ledger, **change))

    return forge


def shot(**over: Any) -> Forge:
    return lambda fold: msgspec.structs.replace(snapshot(fold), **over)


def back(**over: Any) -> Forge:
    return lambda fold: msgspec.structs.replace(undone(fold), **over)


FORGERIES: dict[str, Forge] = {
    "cursor goes back": lambda f: commits(cursor=f.ledger.cursor - 1)(f) if f.ledger.cursor else None,
    "hole in an agent's numbers": takes(lambda f: taken(following(f) + 1)),
    "agent's number again": takes(lambda f: taken(following(f) - 1)),
    "agent's number twice in one commit": takes(lambda f: taken(following(f)), lambda f: taken(following(f))),
    "agent's marks go back": takes(lambda f: taken(following(f)), lambda f: taken(following(f) - 1)),
    "client's number again": lambda f: repeated(f) if f.may_run else None,
    "client's number twice in one commit": takes(*[lambda f: taken(60, STRANGER, start=f.ledger.horizon + 1)] * 2),
    "client's number below its low": takes(
        lambda f: taken(60, STRANGER, low=50, start=f.ledger.horizon + 1),
        lambda f: taken(40, STRANGER, start=f.ledger.horizon + 1),
    ),
    "client's number that it has given up": takes(
        lambda f: taken(60, STRANGER, start=f.ledger.horizon + 1, given_up=(59,)),
        lambda f: taken(59, STRANGER, start=f.ledger.horizon + 1),
    ),
    "agent that gives numbers up": takes(lambda f: taken(following(f), given_up=(9,))),
    "forgotten session": takes(lambda f: taken(1, STRANGER, start=f.ledger.horizon)),
    "session that has not begun": takes(lambda f: taken(1, STRANGER, start=f.seq + 1)),
    "hole in sent numbers": lambda f: commits(outs=(out(f.ledger.next_number("guide") + 1),))(f),
    "sent number again": lambda f: commits(outs=(out(f.ledger.next_number("guide") - 1),))(f),
    "sent numbers out of order": lambda f: commits(
        outs=tuple(out(f.ledger.next_number("guide") + k) for k in (1, 0))
    )(f),
    "released what was not sent": lambda f: commits(released={"guide": f.ledger.next_number("guide")})(f),
    "released what this commit sends": lambda f: commits(
        outs=(out(f.ledger.next_number("guide")),), released={"guide": f.ledger.next_number("guide")}
    )(f),
    "released mark goes back": released_less,
    "held ahead of the cursor": lambda f: commits(held=[f.ledger.cursor + 1])(f),
    "held what was done": held_again,
    "held twice": lambda f: commits(cursor=f.ledger.cursor + 1, held=[f.ledger.cursor + 1] * 2)(f),
    "forgot a stranger": commits(forgot=[STRANGER]),
    "forgot an agent": commits(forgot=["alice"]),
    "outcomes of a turn that are not there": ended(1),
    "replayed what was not undone": commits(replayed=ReplayCounts(1)),
    "fired and not gone": commits(fired=[Fired("t", "visitor", 1, 0)]),
    "seal with a cursor that goes back": lambda f: handed_off(f, seal=commit(cursor=f.ledger.cursor - 1))
    if f.ledger.cursor
    else None,
    "seal with a hole": lambda f: handed_off(
        f, seal=commit(cursor=f.ledger.cursor, outs=(out(f.ledger.next_number("guide") + 1),))
    ),
    "handover to itself": lambda f: handed_off(f, to=f.owner),
    "handover to nobody": lambda f: msgspec.structs.replace(handed_off(f), to=""),
    "handover of a migration that handed over": handed_again,
    "ask with a hole": ask(out=lambda r: msgspec.structs.replace(r.out, n=r.out.n + 1)),
    "ask that is a tell": ask(out=lambda r: msgspec.structs.replace(r.out, ask=False)),
    "ask of another turn": ask(out=lambda r: msgspec.structs.replace(r.out, input=r.out.input + 1)),
    "ask that its turn has not made": ask(calls=[]),
    "ask of a number not yet to be taken": ask(input=lambda r: r.input + 1),
    "step of a number that was taken": step(lambda f: following(f) - 1),
    "step of a number not yet to be taken": step(lambda f: following(f) + 1),
    "snapshot with another cursor": pictured(cursor=lambda image: image.cursor + 1),
    "snapshot with another mark": pictured(peers=lambda image: {**image.peers, "x": Peer(False, 1)}),
    "snapshot with other numbers": pictured(numbers=lambda image: {**image.numbers, "x": 1}),
    "snapshot with other releases": pictured(released=lambda image: {**image.released, "x": 1}),
    "snapshot with another output": pictured(pending=lambda image: {**image.pending, "x": {99: out(99, "x")}}),
    "snapshot with another horizon": pictured(horizon=lambda image: image.horizon + 1),
    "snapshot of another state": shot(digest=bytes(32)),
    "snapshot of another class": shot(cls="Other"),
    "snapshot of another outcome": shot(outcomes={"m": "completed"}),
    "snapshot that keeps what is gone": lambda f: shot(snapshots=[SnapshotRef(f.seq + 7, 0, 0, "", 0.0)])(f),
    "snapshot without a state": shot(small=None, parts=[]),
    "undone with a cursor ahead": lambda f: back(cursor=f.ledger.cursor + 1)(f),
    "undone with marks ahead": lambda f: back(marks={s: p.mark + 1 for s, p in f.ledger.peers.items() if not p.is_client})(f)
    if any(not p.is_client for p in f.ledger.peers.values())
    else None,
    "undone with the mark of a stranger": back(marks={"nobody": 0}),
    "undone with the mark of a client": back(marks={CLIENTS[0]: 0}),
    "undone with nobody to go on": back(goes_to=""),
    "undone that holds ahead": lambda f: back(held=[f.ledger.cursor + 1])(f),
    "undone with letters that are not there": back(unburied=[(1, "nobody", 1)]),
    "undone with one input twice": back(replays=[ReplayInput("alice", 1, True, [], {}, [])] * 2),
    "undone that was never sent": back(
        replays=[ReplayInput("alice", 1, True, [Sent("nobody", 0, 1, "h", b"", False)], {}, [])]
    ),
    "terminated with something to send": lambda f: terminated(f) if f.ledger.pending else None,
    "a negative number of copies": lambda f: StandbySet(**_head(f), copies=-1),
}  # fmt: skip


def _head(fold: Fold) -> dict[str, Any]:
    record = suspended(fold)
    return {name: getattr(record, name) for name in ("agent", "epoch", "node", "incarnation", "nonce", "prev", "snap")}


def refused(fold: Fold, record: AnyRecord) -> str:
    with pytest.raises(RecordInvalid) as caught:
        fold.apply(fold.seq + 1, record)
    return caught.value.message


def test_behind_any_history_it_is_refused_and_changes_nothing() -> None:
    made = Counter[str]()

    @QUICK
    @given(history=histories())
    def forged(history: list[Entry]) -> None:
        fold = folded(history)
        assume(fold.phase is Phase.RUN)
        before = everything(fold)
        for name, forge in FORGERIES.items():
            record = forge(fold)
            if record is not None:
                made[name] += 1
                assert refused(fold, record), name
        assert everything(fold) == before

    forged()
    assert made.keys() == FORGERIES.keys()


def test_nothing_but_a_claim_goes_on_for_an_agent_that_went_back() -> None:
    """Rule 16: no turn, no snapshot and no handover until the node that it was sent to has claimed it."""
    for forge in (snapshot, handed_off, undone, asked, stepped, lambda f: committed(f, commit(taken()))):
        fold = after(undone)
        assert "(rule 16)" in refused(fold, forge(fold))
        fold.apply(fold.seq + 1, claimed(fold))
        assert fold.goes_to == ""


def test_records_that_break_a_rule_are_refused_with_its_number() -> None:
    fold = after(lambda f: committed(f, commit(cursor=100)))
    wrong = {
        "rule 10": (commits(cursor=3), commits(outs=(out(5),)), commits(outs=(out(2),))),
        "rule 11": (commits(released={"b": 99}),),
        "rule 3": (lambda f: handed_off(f, to=f.owner),),
    }
    for rule, forgeries in wrong.items():
        for forge in forgeries:
            record = forge(fold)
            assert record is not None
            assert f"({rule})" in refused(fold, record)
    assert fold.agent == AGENT
