"""How messages end whose turns do not: with an error for an answer, or among the dead letters."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from mielin_cells.errors import described
from mielin_cells.log.message import Answer, Mail, Message, encode_answer, sender_text
from mielin_cells.log.records import DeadLetter
from mielin_cells.node.activation import outcomes
from mielin_cells.node.activation.inbox import Arrival

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Host
    from mielin_cells.node.activation.turn import Turn

logger = logging.getLogger("mielin_cells.intake")


class Endings:
    """Of one host."""

    __slots__ = ("_host",)

    def __init__(self, host: Host) -> None:
        self._host = host

    def misfit(self, mail: Mail, message: Message) -> None:
        """Closes a message that fits no handler.  A tell, which nobody waits for, is kept as a dead letter."""
        error = outcomes.misfit(self._host.fold.agent, self._host.spec.name, mail, message)
        if not message.ask:
            cause = f"{error.code}: {error.message}"
            self.bury(DeadLetter(0, mail.sender, message.n, message.handler, cause, 0, [], message.args))
        self._host.intake.take(
            mail, message, None, encode_answer(Answer(None, error.to_wire())) if message.ask else None
        )

    def fail(self, arrival: Arrival, mail: Mail, message: Message, turn: Turn, error: BaseException, ran: int) -> None:
        """The error is the answer of an ask, stored like any; nobody hears of a tell's: its message is a dead letter."""
        again = self._host.fold.ledger.again.get((mail.sender, message.n)) if self._host.fold.ledger.again else None
        if not message.ask or (again is not None and again.taken):  # the answer that stands is another
            self.bury_failed(arrival, mail, message, turn, error, ran)
            return
        declared = outcomes.is_declared(self._host.spec.handlers.get(message.handler), error)
        logger.log(
            logging.DEBUG if declared else logging.INFO, "agent %s: %s raised, which is its answer to %s: %s",
            self._host.fold.agent, message.handler, sender_text(mail.sender), described(error),
            exc_info=None if declared else error,
        )  # fmt: skip
        self._host.intake.take(mail, message, turn, self._told(message, error, ran))

    def bury_failed(
        self, arrival: Arrival, mail: Mail, message: Message, turn: Turn, error: BaseException, ran: int
    ) -> None:
        """The message goes to the dead letters with its cause, and the agent goes on."""
        cause, asks = described(error), [made.label for made in turn.made]
        self.bury(DeadLetter(arrival.seq, mail.sender, message.n, message.handler, cause, ran, asks, message.args))
        logger.warning(
            "agent %s: %s of %s is a dead letter: %s", self._host.fold.agent, message.handler, sender_text(mail.sender),
            cause, exc_info=error,
        )  # fmt: skip
        self._host.intake.take(mail, message, turn, self._told(message, error, ran) if message.ask else None)

    def _told(self, message: Message, error: BaseException, ran: int) -> bytes:
        name = message.handler
        path = f"{self._host.spec.name}.{name}"
        return outcomes.told(self._host.fold.agent, path, name, self._host.spec.handlers.get(name), error, ran)

    def bury(self, letter: DeadLetter) -> None:
        letter = msgspec.structs.replace(letter, at=self._host.home.wall())
        self._host.batch.dead.append(letter)
        self._host.batch.touched = True
        self._host.fold.ledger.bury(letter)
