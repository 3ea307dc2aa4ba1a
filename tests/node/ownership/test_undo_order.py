"""After an undo nobody passes a message that fails: what was sent stands, and must come from the same states again (seed 70340)."""

from __future__ import annotations

from support.agent_log import after, taken, undone

from mielin_cells.log.commit import ReplayInput
from mielin_cells.node.activation.delays import stays_first


def test_a_message_that_fails_stays_first_until_all_that_an_undo_took_back_is_taken() -> None:
    fold = after()
    assert not stays_first(fold, "visitor", 1)
    fold = after(undone)
    for n in (1, 2):
        fold.ledger.replays["visitor", n] = ReplayInput("visitor", n, True, [], {}, [])
    assert stays_first(fold, "visitor", 1)
    assert stays_first(fold, "another", 7)
    for n in (1, 2):
        one = taken(n)
        fold.ledger.take(one.sender, one.n, one.low, one.start, one.answer)
    assert not stays_first(fold, "another", 7)
