"""What a record may say, given all before it: the rules of the protocol about contents, as a reader of the log sees them.

Each function gives what is wrong, in words and with the number of the rule, or "".  An owner's own ledger is ahead of its log by
the record that it composes, so only readers ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mielin_cells.log.ledger import Ledger
from mielin_cells.log.message import is_client, sender_text
from mielin_cells.log.records import (
    Asked,
    AskMade,
    Commit,
    LedgerImage,
    OpenTurn,
    Out,
    Snapshot,
    Stepped,
    Taken,
    Undone,
)

if TYPE_CHECKING:
    from mielin_cells.log.fold import Fold


def wrong_commit(ledger: Ledger, turn: OpenTurn | None, commit: Commit, seq: int) -> str:
    """Of a commit in the record at `seq`."""
    reads_anew = (
        not commit.cursor and commit.held == []
    )  # an operator has accepted that the inbox lost what it had (`node.quarantine`)
    if commit.cursor < ledger.cursor and not reads_anew:
        return f"its cursor {commit.cursor} is behind {ledger.cursor} (rule 10)"
    return (
        (wrong_taken(ledger, commit.taken, seq) if commit.taken else "")
        or (wrong_outs(ledger, commit.outs) if commit.outs else "")
        or (_wrong_released(ledger, commit.released) if commit.released else "")
        or (_wrong_held(ledger, commit.held, commit.cursor) if commit.held else "")
        or (
            _wrong_rest(ledger, turn, commit)
            if commit.forgot or commit.ended or commit.replayed or commit.fired
            else ""
        )
    )


def wrong_taken(ledger: Ledger, takes: list[Taken], seq: int) -> str:
    """Rules 10, 14 and 15: each number once; an agent's without a gap; no session that was forgotten, or has not begun."""
    peers, again = ledger.peers, ledger.again
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
            marks[sender] = n
            continue
        key = sender, n
        if key in seen:
            return f"it takes number {n} of {sender_text(sender)} twice (rule 15)"
        seen.add(key)
        low = lows.get(sender, peer.low if peer is not None else 0)
        if key not in again:
            if n < low or (peer is not None and n in peer.answers):
                return f"it takes number {n} of {sender_text(sender)} again, or below {low} (rule 15)"
            if peer is None and not ledger.horizon < one.start < seq and sender not in lows:
                return (
                    f"it takes a message of {sender_text(sender)}, which began at {one.start}; sessions from "
                    f"{ledger.horizon + 1} to {seq - 1} may be new (rule 15)"
                )
        lows[sender] = max(low, one.low)
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
    before = set(ledger.held)
    if len(set(held)) < len(held) or any(one > cursor or (one <= ledger.cursor and one not in before) for one in held):
        return (
            f"it holds {sorted(held)} with its cursor at {cursor}, after {sorted(before)} at {ledger.cursor} (rule 10)"
        )
    return ""


def _wrong_rest(ledger: Ledger, turn: OpenTurn | None, commit: Commit) -> str:
    if commit.forgot:
        known = ledger.peers.keys() | {one.sender for one in commit.taken}
        if len(set(commit.forgot)) < len(commit.forgot) or not all(
            is_client(one) and one in known for one in commit.forgot
        ):
            return "it forgets a session that is not known (rule 15)"
    for ended in commit.ended:
        is_open = turn is not None and (turn.sender, turn.n) == (ended.sender, ended.input)
        if not 0 <= ended.at <= (len(turn.made) if turn is not None and is_open else 0):
            return f"it goes on after outcome {ended.at} of a turn, which is not there (rule 13)"
    if commit.replayed is not None and not ledger.again:
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
    elif peer is not None and (n in peer.answers or n < peer.low) and (sender, n) not in ledger.again:
        return f"it is of a turn for number {n} of {sender_text(sender)}, which was taken (rule 15)"
    if not isinstance(record, Asked):
        return ""
    out, made = record.out, record.made[-1] if record.made else None
    if not out.ask or (out.sender, out.input) != (sender, n):
        return "what it sends is no ask of its turn (rule 12)"
    if not isinstance(made, AskMade) or (made.to, made.n) != (out.to, out.n):
        return "what it sends is not the last that its turn has made (rule 12)"
    return wrong_outs(ledger, [out])


def wrong_undone(ledger: Ledger, record: Undone) -> str:
    """Rule 16: cursor, marks and held go back; numbers do not."""
    if not record.goes_to:
        return "it names no node that is to go on (rule 16)"
    if record.cursor > ledger.cursor or any(one > record.cursor for one in record.held):
        return f"it goes back to position {record.cursor} of the inbox from {ledger.cursor} (rule 16)"
    for sender, mark in record.marks.items():
        peer = ledger.peers.get(sender)
        if peer is None or peer.is_client or not 0 <= mark <= peer.mark:
            return f"it takes the mark of {sender_text(sender)} to {mark}, which was never below (rule 16)"
    if not {letter.key for letter in ledger.dead}.issuperset(record.unburied):
        return "it takes back dead letters that are not there (rule 16)"
    if len({(one.sender, one.n) for one in record.again}) < len(record.again):
        return "it has one message taken twice (rule 16)"
    if any(sent.n > ledger.numbers.get(sent.to, 0) for one in record.again for sent in one.sent):
        return "it tells of messages that were never sent (rule 17)"
    return ""


def wrong_snapshot(fold: Fold, record: Snapshot) -> str:
    """Rule 18: it carries what the log before it says, and keeps none that was given up."""
    said = (
        record.cls, record.version, record.lifecycle, record.turn, record.claims, record.outcomes, record.handed,
        [tuple(one) for one in record.undone], record.standby,
    )  # fmt: skip
    have = (
        fold.cls, fold.version, fold.lifecycle, fold.turn, fold.claims, fold.outcomes, fold.handed, fold.undone,
        fold.standby,
    )  # fmt: skip
    if said != have or not _is_image(record.ledger, fold.ledger):
        return "it is not what the log before it says (rule 18)"
    if record.digest != fold.state.digest():
        return "its digest is not that of the state before it (rule 18)"
    before = {one.seq for one in fold.kept} | {0}
    kept = [one.seq for one in record.kept]
    if kept != sorted(set(kept)) or not before.issuperset(kept):
        return f"it keeps the snapshots {kept}, of {sorted(before)} (rule 18)"
    if not 0 <= record.since <= record.prev or bool(record.parts) == (record.small is not None):
        return "it does not say where its state is (rule 18)"
    return ""


def _is_image(image: LedgerImage, ledger: Ledger) -> bool:
    """As `ledger.image() == image`, with no copy made of what may be much."""
    peers = ledger.peers
    said = (
        image.cursor, image.held, image.numbers, image.released, image.dead, image.horizon, image.replayed,
        image.corrects, {one.id: one for one in image.timers}, {(one.sender, one.n): one for one in image.again},
    )  # fmt: skip
    have = (
        ledger.cursor, sorted(ledger.held), ledger.numbers, ledger.released, ledger.dead, ledger.horizon,
        ledger.replayed, ledger.corrects, ledger.timers, ledger.again,
    )  # fmt: skip
    pending = {(out.to, out.n): out for out in ledger.unreleased()}
    return (
        said == have
        and {(out.to, out.n): out for out in image.pending} == pending
        and image.peers.keys() == peers.keys()
        and all(
            (one.mark, one.low, one.start, one.answers)
            == (peers[s].mark, peers[s].low, peers[s].start, peers[s].answers)
            for s, one in image.peers.items()
        )
    )
