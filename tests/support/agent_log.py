"""Records for tests: the next record of each kind that the protocol allows after a fold, and folds that tell a story.

`over` replaces fields of the head, to make a record that must be refused.
"""

from __future__ import annotations

from typing import Any

from mielin_cells.log.commit import AskCall, Commit, Input, LetterKey, Out, StepCall, TurnCall
from mielin_cells.log.delta import StateDelta
from mielin_cells.log.fold import Fold, snapshot_fields
from mielin_cells.log.lifecycle import AgentError, Phase
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
    Resumed,
    Returned,
    Snapshot,
    Stepped,
    Suspended,
    Terminated,
    Undone,
)
from mielin_cells.log.undo import Undoing

AGENT = "museum/1"
NODE, TARGET, THIRD = "n1", "n2", "n3"
TARGET_INCARNATION = 20


def head(fold: Fold, **over: Any) -> dict[str, Any]:
    """What the owner's next record begins with; in probation, the target's."""
    incarnation = TARGET_INCARNATION if fold.phase is Phase.PROBATION else fold.incarnation
    return {
        "agent": fold.agent, "epoch": fold.epoch, "node": fold.owner, "incarnation": incarnation,
        "nonce": fold.seq.to_bytes(12, "big"), "prev": fold.seq, "snap": fold.snap, **over,
    }  # fmt: skip


def created(fold: Fold, **over: Any) -> Created:
    start = {"epoch": 1, "node": NODE, "incarnation": 10, **over}
    return Created(**head(fold, **start), cls="Museum", version=1, state=StateDelta(plain={"visits": b"\x00"}), at=1.0)


def commit(
    *taken: Input, outs: tuple[Out, ...] = (), state: StateDelta | None = None, cursor: int = 0, **more: Any
) -> Commit:
    rest: dict[str, Any] = {"held": None, "released": {}, "dead": [], "forgot": [], "version": 1, "digest": b"", **more}
    return Commit(cursor=cursor, inputs=list(taken), outs=list(outs), state=state, **rest)


def taken(
    n: int = 1, sender: str = "visitor", answer: bytes | None = None, low: int = 0, start: int = 0,
    given_up: tuple[int, ...] = (),
) -> Input:  # fmt: skip
    return Input(sender, n, low, start, answer, list(given_up))


def out(n: int = 1, to: str = "guide", ask: bool = False, input: int = 1, k: int = 0) -> Out:
    return Out(to, "Guide", n, "hello", b"\x90", ask, "visitor", input, k)


def committed(fold: Fold, what: Commit | None = None, **over: Any) -> Committed:
    return Committed(**head(fold, **over), commit=commit(cursor=fold.ledger.cursor) if what is None else what)


def asked(fold: Fold, n: int = 1, **over: Any) -> Asked:
    made, number = AskCall("guide", n, "hello", b"body", "guide.hello"), following(fold)
    sent = out(n, ask=True, input=number)
    return Asked(**head(fold, **over), sender="visitor", input=number, out=sent, at=0, calls=[made])


def stepped(fold: Fold, name: str = "model", at: int = 0, **over: Any) -> Stepped:
    made: list[TurnCall] = [StepCall(name, b"answer")]
    return Stepped(**head(fold, **over), sender="visitor", input=following(fold), at=at, calls=made)


def following(fold: Fold, sender: str = "visitor") -> int:
    """The number that the agent `sender` sends next."""
    peer = fold.ledger.peers.get(sender)
    return peer.mark + 1 if peer is not None else 1


def snapshot(fold: Fold, **over: Any) -> Snapshot:
    return Snapshot(
        **head(fold, **over), **snapshot_fields(fold), ledger=fold.ledger.copy(), part="", parts=[],
        small=fold.state.encode_small(), since=fold.seq, digest=fold.state.digest(), snapshots=list(fold.snapshots), at=2.0,
    )  # fmt: skip


def suspended(fold: Fold, **over: Any) -> Suspended:
    return Suspended(**head(fold, **over), reason="operator")


def paused(fold: Fold, **over: Any) -> Paused:
    return Paused(**head(fold, **over))


def resumed(fold: Fold, **over: Any) -> Resumed:
    return Resumed(**head(fold, **over))


def failed(fold: Fold, fatal: bool = False, **over: Any) -> Failed:
    return Failed(**head(fold, **over), error=AgentError(message="on_arrive raised", code="OSError", fatal=fatal))


def terminated(fold: Fold, **over: Any) -> Terminated:
    return Terminated(**head(fold, **over))


def cleared(fold: Fold, *letters: LetterKey, **over: Any) -> Cleared:
    return Cleared(**head(fold, **over), letters=list(letters))


def undone(fold: Fold, back: Fold | None = None, *seen: tuple[int, AnyRecord], to: str = THIRD, **over: Any) -> Undone:
    """To the fold as of an earlier record, `seen` being what followed it; to the last record if none is given."""
    undoing = Undoing(fold if back is None else back)
    for seq, record in seen:
        undoing.saw(seq, record)
    return Undone(**head(fold, **over), goes_to=to, migration="m-1", corrects=False, **undoing.fields(fold))


def handed_off(fold: Fold, migration: str = "", to: str = "", seal: Commit | None = None, **over: Any) -> HandedOff:
    migration, to = migration or f"m-{len(fold.handed) + 1}", to or (NODE if fold.owner == TARGET else TARGET)
    return HandedOff(**head(fold, **over), to=to, migration=migration, seal=seal, digest=fold.seal_digest())


def accepted(fold: Fold, migration: str = "", **over: Any) -> Accepted:
    return Accepted(**head(fold, **over), migration=migration or fold.migration or "m-1")


def returned(fold: Fold, migration: str = "", to: str | None = None, **over: Any) -> Returned:
    migration = migration or fold.migration or "m-1"
    return Returned(**head(fold, **over), to=to or fold.source, migration=migration, cause="healthy() answered False")


def claimed(fold: Fold, node: str = THIRD, incarnation: int = 30, **over: Any) -> Claimed:
    at = {"epoch": fold.epoch + 1, "node": node, "incarnation": incarnation, **over}
    return Claimed(**head(fold, **at), cause="silence")


def after(*makers: Any) -> Fold:
    """The fold after `Created` and the records that the makers compose, each at the place after the last."""
    fold = Fold(AGENT)
    for make in (created, *makers):
        record: AnyRecord = make(fold)
        fold.apply(fold.seq + 1, record)
    return fold


def content(fold: Fold) -> object:
    """Everything that a fold tells, comparable."""
    tables = {
        name: sorted(entry for number in range(4096) for entry in table.items_in(number))
        for name, table in fold.state.tables.items()
    }
    buffers = {name: (b.size, [(n, b.page(n)) for n in b.pages_from(0)]) for name, b in fold.state.buffers.items()}
    plain = (
        "seq",
        "snap",
        "epoch",
        "owner",
        "incarnation",
        "phase",
        "source",
        "migration",
        "cls",
        "version",
        "claims",
        "wish",
        "born",
    )
    facts = {name: getattr(fold, name) for name in plain}
    flags = (
        fold.lifecycle, fold.status, fold.turn, dict(fold.outcomes), dict(fold.handed), list(fold.undone), list(fold.snapshots)
    )  # fmt: skip
    return facts, flags, fold.ledger.copy(), dict(fold.state.plain), tables, buffers
