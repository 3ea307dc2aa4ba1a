"""Inputs that are to be taken once more after an undo."""

from __future__ import annotations

from mielin_cells.log.ledger import Ledger


def next_replay(ledger: Ledger) -> tuple[str, int] | None:
    """The input to take next, in the order in which inputs were taken before; None once all are."""
    return next((key for key, one in ledger.replays.items() if one.taken), None)


def unanswered(ledger: Ledger, to: str) -> int | None:
    """The lowest ask to `to` that has no outcome and whose turn is to be run once more: its answer is still wanted."""
    asks = [
        sent.n
        for one in ledger.open_before
        if (one.sender, one.n) in ledger.replays
        for sent in one.sent
        if sent.ask and sent.to == to and sent.answer is None
    ]
    return min(asks, default=None)
