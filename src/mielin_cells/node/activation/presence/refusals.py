"""The answers that callers get from an agent in ERROR."""

from __future__ import annotations

from mielin_cells.errors import CellError, RetryError
from mielin_cells.log.ledger import Verdict
from mielin_cells.log.message import Answer, Mail, encode_answer
from mielin_cells.node.activation.core import Core
from mielin_cells.node.activation.delays import Delays
from mielin_cells.node.activation.priorities.inboxes import Inboxes
from mielin_cells.tasks.supervision import Backoff


class Refusals:
    __slots__ = ("_core", "_delays", "_inboxes", "_is_giving")

    def __init__(self, core: Core, inboxes: Inboxes, delays: Delays) -> None:
        self._core = core
        self._inboxes = inboxes
        self._delays = delays
        self._is_giving = False

    def give_soon(self) -> None:
        if not self._is_giving:
            self._is_giving = True
            self._core.home.begin(self._give())

    async def _give(self) -> None:
        """Tells the callers that wait for an agent in ERROR about the error, if the log still names this owner.

        Another node may have claimed the agent, and an operator resumed it, while this node could not reach the store.
        """
        core, backoff = self._core, Backoff()
        try:
            while core.is_open and self._core.fold.lifecycle.error is not None:
                try:
                    await core.writer.check_owner()
                except RetryError:
                    await backoff.wait()
                except CellError as error:
                    core.lose(error)
                else:
                    self._answer()
                    return
        finally:
            self._is_giving = False

    def _answer(self) -> None:
        """Answers each waiting ask with the error, once.  The messages stay in the inbox, so this is not a stored answer."""
        error = self._core.error
        if error is None:
            return
        refusal = encode_answer(Answer(None, error.to_wire()))
        put_off = (arrival for sender in self._delays.senders.values() for arrival in sender.arrivals)
        for arrival in (*(one for inbox in self._inboxes.all() for one in inbox.queue), *put_off):
            mail = arrival.mail
            if arrival.is_told or not isinstance(mail, Mail):
                continue
            arrival.is_told = True
            answers = dict[int, bytes]()
            for message in mail.messages[arrival.index :]:
                if message.ask:
                    verdict, n = arrival.inbox.verdict(mail, message), message.n
                    is_open = verdict in (Verdict.APPLY, Verdict.HOLD)
                    answers[n] = refusal if is_open else self._core.answer_again(mail.sender, n, verdict) or refusal
            if answers:
                self._core.reply(mail.reply_to, mail.sender, answers)
