"""What a ledger's digest is of, besides its senders and receivers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mielin_cells.log.inboxes.places import copied
from mielin_cells.log.message import DROPPED
from mielin_cells.settings import ANSWERS_BYTES_MAX


def rest_of(ledger: Any) -> tuple[object, ...]:
    """Of a `Ledger`: what has the same contents has the same bytes, whatever its history.  What it never had is not there."""
    pending = [[out for _, out in sorted(outs.items())] for _, outs in sorted(ledger.pending.items())]
    replays = sorted(ledger.replays.values(), key=lambda one: (one.sender, one.n))
    timers = [timer for _, timer in sorted(ledger.timers.items())]
    rest: tuple[object, ...] = (
        pending, ledger.dead, ledger.horizon, replays, ledger.replayed, ledger.corrects, timers,
    )  # fmt: skip
    if ledger.topics is not None:
        rest = (*rest, ledger.topics.content())
    if ledger.keys is not None:
        rest = (*rest, "keys", list(ledger.keys.kept.values()))
    if ledger.family is not None:
        rest = (*rest, "family", ledger.family.content())
    if ledger.inboxes is not None:
        rest = (*rest, "inboxes", sorted(copied(ledger.inboxes).items()))
    if ledger.cancels is not None:
        rest = (*rest, "cancels", ledger.cancels.content())
    if ledger.waits is not None:
        rest = (*rest, "waits", ledger.waits.content())
    return rest


def make_room(ledger: Any, changed: Callable[[str], None]) -> None:
    """Drops answers, those of the quietest senders first, down to three quarters of the limit."""
    for sender, peer in ledger.peers.items():
        for n, answer in peer.answers.items():
            if ledger.answer_bytes <= ANSWERS_BYTES_MAX * 3 // 4:
                return
            if len(answer) > len(DROPPED):
                peer.answers[n] = DROPPED
                ledger.answer_bytes += len(DROPPED) - len(answer)
                changed(sender)
