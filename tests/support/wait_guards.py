"""Guards of external waits (rule T5), taken away one at a time."""

from __future__ import annotations

from typing import Any

from mielin_cells.errors import WaitOver
from mielin_cells.log.message import Mail, Message
from mielin_cells.log.undo import Undoing
from mielin_cells.log.waits.kept import Waits
from mielin_cells.log.waits.resolving import RESOLVE, Resolve
from mielin_cells.log.waits.tokens import WaitName
from mielin_cells.node.activation.effects import Effects
from mielin_cells.node.waits.desk import Desk
from support.guards import Patch, guard


@guard(within=200)
def the_first_outcome_stands(patch: Patch) -> None:
    """Whoever resolves a wait that its turn still has open replaces the outcome."""
    resolved = Desk._resolved

    def anew(self: Desk, name: WaitName, resolve: Resolve) -> bytes | None:
        waits = self._ledger.waits
        if waits is not None and name.key in self.open:
            waits.stood.pop(name.key, None)
        return resolved(self, name, resolve)

    patch.setattr(Desk, "_resolved", anew)
    patch.setattr("mielin_cells.log.rules.wrong_waits", lambda waits, changes: "")


@guard(within=200)
def early_words_are_held(patch: Patch) -> None:
    """Whoever resolves a wait before its turn, run again, has come to it is told that it is over."""
    resolved = Desk._resolved

    def refused(self: Desk, name: WaitName, resolve: Resolve) -> bytes | None:
        answer = resolved(self, name, resolve)
        if answer is None:
            raise WaitOver(f"Wait {name.name!r} is not open.", wait=name.name)
        return answer

    patch.setattr(Desk, "_resolved", refused)


@guard(within=40)
def outcomes_outlive_an_undo(patch: Patch) -> None:
    """An undo takes the outcomes of waits back, whoever was told of them."""
    fields = Undoing.fields

    def undone(self: Undoing, now: object) -> dict[str, object]:
        back = self.back.ledger.waits
        return {**fields(self, now), "waits": None if back is None else Waits({}, dict(back.later))}  # type: ignore[arg-type]

    patch.setattr(Undoing, "fields", undone)


@guard(within=100)
def an_outcome_is_recorded_before_it_is_told(patch: Patch) -> None:
    """Whoever resolves a wait hears at once that it stands, before the record that says so."""
    take = Effects.take

    def told(self: Effects, mail: Mail, message: Message, *args: Any, **options: Any) -> None:
        take(self, mail, message, *args, **options)
        answer = args[1] if len(args) > 1 else None
        if message.handler == RESOLVE and answer is not None:
            core = self._core
            core.home.begin(core._let_out({(mail.reply_to, mail.sender): {message.n: answer}}))

    patch.setattr(Effects, "take", told)
