"""What a record may contain, given all before it: the protocol's rules about contents, as a reader of the log checks them.

Each function returns what is wrong, in words and with the number of the rule, or "".  An owner's own ledger is ahead of its
log by the record that it composes, so only readers ask.
"""

from __future__ import annotations

from mielin_cells.log.commit import AskCall, Commit, Input, OpenTurn, Out
from mielin_cells.log.ledger import Ledger
from mielin_cells.log.message import is_client, sender_text
from mielin_cells.log.records import Asked, Stepped, Undone


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
        or (
            _wrong_rest(ledger, turn, commit)
            if commit.forgot or commit.ended or commit.replayed or commit.fired
            else ""
        )
    )


def wrong_inputs(ledger: Ledger, takes: list[Input], seq: int) -> str:
    """Rules 10, 14 and 15: each number once; an agent's without a gap; no session that was forgotten, or has not begun."""
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
        known = ledger.peers.keys() | {one.sender for one in commit.inputs}
        if len(set(commit.forgot)) < len(commit.forgot) or not all(
            is_client(one) and one in known for one in commit.forgot
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
    out, call = record.out, record.calls[-1] if record.calls else None
    if not out.ask or (out.sender, out.input) != (sender, n):
        return "what it sends is no ask of its turn (rule 12)"
    if not isinstance(call, AskCall) or (call.to, call.n) != (out.to, out.n):
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
    if len({(one.sender, one.n) for one in record.replays}) < len(record.replays):
        return "it has one message taken twice (rule 16)"
    if any(sent.n > ledger.numbers.get(sent.to, 0) for one in record.replays for sent in one.sent):
        return "it tells of messages that were never sent (rule 17)"
    return ""
