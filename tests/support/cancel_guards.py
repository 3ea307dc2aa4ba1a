"""Guards of cancels (rule T4), taken away one at a time."""

from __future__ import annotations

from mielin_cells.log.commit import AskCall
from mielin_cells.log.ledger import Ledger
from mielin_cells.node.activation import effects
from mielin_cells.node.activation.core import Core
from mielin_cells.node.activation.priorities.cancelling import cancel_asks
from mielin_cells.node.activation.turn import Turn
from support.guards import Patch, guard


@guard(within=40)
def asks_of_cancelled_turns_are_cancelled(patch: Patch) -> None:
    """The asks of a cancelled message go on: what an earlier owner asked, and what this one did."""

    def none(core: Core, sender: str, n: int, turn: Turn | None) -> list[AskCall]:
        return []

    patch.setattr(effects, "open_asks", none)


@guard(within=100)
def cancels_are_kept_until_their_messages_come(patch: Patch) -> None:
    """A cancel that was taken before its message is forgotten."""
    why = Ledger.why_unrun

    def forgetful(self: Ledger, sender: str, message: object, now: float, has_begun: bool, is_over: bool) -> str:
        cancels, self.cancels = self.cancels, None
        try:
            return why(self, sender, message, now, has_begun, is_over)  # type: ignore[arg-type]
        finally:
            self.cancels = cancels

    patch.setattr(Ledger, "why_unrun", forgetful)


@guard(within=40)
def cancels_leave_after_their_commit(patch: Patch) -> None:
    """The cancels of a cancelled message's asks leave at once, before the commit that takes it is there."""
    cancel = cancel_asks

    def at_once(core: Core, asks: list[AskCall]) -> None:
        before = len(core.batch.outs)
        cancel(core, asks)
        for out in core.batch.outs[before:]:
            core.outbox.push(out)

    patch.setattr(effects, "cancel_asks", at_once)
