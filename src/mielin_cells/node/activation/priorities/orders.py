"""Orders about messages, which come by the critical inbox and reach a turn that runs (rule T4)."""

from __future__ import annotations

from collections.abc import Callable

from mielin_cells.errors import RecordInvalid
from mielin_cells.log.inboxes.cancels import decode_cancel
from mielin_cells.log.inboxes.lines import CRITICAL
from mielin_cells.log.message import Mail, Message
from mielin_cells.node.activation.core import Core
from mielin_cells.node.activation.delays import Delays
from mielin_cells.node.activation.effects import Effects
from mielin_cells.node.activation.inbox import Arrival
from mielin_cells.node.activation.priorities.cancelling import cancels_in, keep
from mielin_cells.node.activation.priorities.inboxes import Inboxes
from mielin_cells.node.activation.runner import Runner


class Orders:
    __slots__ = ("_core", "_delays", "_effects", "_inboxes", "_runner", "_wake")

    def __init__(
        self,
        core: Core,
        inboxes: Inboxes,
        delays: Delays,
        runner: Runner,
        effects: Effects,
        wake: Callable[[str, int], None],
    ) -> None:
        """`wake` ends the wait of a message that failed, and that no other may overtake."""
        self._core = core
        self._inboxes = inboxes
        self._delays = delays
        self._runner = runner
        self._effects = effects
        self._wake = wake

    def notice(self, arrival: Arrival) -> None:
        """An entry of the critical inbox has come, perhaps while a turn runs: cancels in it reach that turn.

        They are taken in their turn all the same, since other orders may come before them.
        """
        for cancel in cancels_in(arrival):
            self._runner.cancel(cancel.sender, cancel.n)
            self._wake(cancel.sender, cancel.n)

    def sees_cancel(self, sender: str, n: int) -> bool:
        """True if a cancel of the message waits in the critical inbox."""
        critical = self._inboxes.others.get(CRITICAL) if self._inboxes.others is not None else None
        return critical is not None and any(
            (cancel.sender, cancel.n) == (sender, n) for arrival in critical.queue for cancel in cancels_in(arrival)
        )

    def take_cancel(self, mail: Mail, message: Message) -> None:
        """Takes a cancel of another message.  If that waits for its next run, it waits no longer."""
        try:
            cancel = decode_cancel(message.args)
        except RecordInvalid:
            self._effects.refuse(mail, message)
            return
        if keep(self._core, cancel):
            self._delays.hurry(cancel.sender, cancel.n)
        self._effects.take(mail, message, None, None)
