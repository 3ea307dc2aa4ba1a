"""Messages that resolve waits, as the intake comes to them, and while a turn waits (rule T5)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any, Protocol

from mielin_cells.errors import Fenced, RetryError, WaitOver, described
from mielin_cells.log.inboxes.lines import CRITICAL, priority_of
from mielin_cells.log.ledger import Verdict
from mielin_cells.log.message import Answer, Mail, Message, encode_answer, is_client
from mielin_cells.log.waits.resolving import RESOLVE, decode_resolve
from mielin_cells.log.waits.tokens import WaitName, wait_of
from mielin_cells.node.activation.core import Core
from mielin_cells.node.activation.delays import Delays, Fate
from mielin_cells.node.activation.inbox import Arrival
from mielin_cells.node.activation.priorities.inboxes import Inboxes
from mielin_cells.node.activation.priorities.stored import is_stored
from mielin_cells.node.waits.desk import Desk, Effects
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.waits")


class Runner(Protocol):
    """What runs the turns."""

    turn: Any


class Resolves(Desk):
    """Of one agent.  A message whose wait is not open yet is held by its position, as one that has come too early is (rule 10)."""

    def __init__(self, core: Core, inboxes: Inboxes, runner: Runner, effects: Effects, delays: Delays) -> None:
        super().__init__(core, effects)
        self._core = core
        self._inboxes = inboxes
        self._runner = runner
        self._delays = delays
        self._held: dict[Arrival, WaitName] = {}
        """By held entry, the wait that it is for."""
        self._looking: asyncio.Task[None] | None = None
        self._looks_again = False

    async def come_to(self, arrival: Arrival, mail: Mail, message: Message) -> Fate:
        core = self._core
        try:
            is_taken = await self.take(mail, message, self._may_take)
            if is_taken is not False:
                return Fate.TAKEN if is_taken else Fate.STOPPED
            name = wait_of(decode_resolve(message.args).token)
            is_lost = await self._is_lost(name, arrival.seq)
        except RetryError as error:
            logger.info("agent %s: the store did not answer about a wait; trying again: %s", core.fold.agent, error)
            await Backoff().wait()
            return Fate.STOPPED
        if not self._may_take():
            return Fate.STOPPED
        if is_lost:
            self._give_up(mail, message, name)
            return Fate.TAKEN
        arrival.inbox.hold(arrival, core.batch)
        self._held[arrival] = name
        return Fate.PUT_OFF

    def _may_take(self) -> bool:
        return self._core.is_open and not self._core.is_stopping

    async def _is_lost(self, name: WaitName, until: int) -> bool:
        """True if the message whose turn made the wait is not taken, and is not stored any more: a store was put back, or lost power.

        It was stored before the token was given out, so before `until`, where the `Resolve` is.  An agent sends it once more, as its
        log says; a client does not.
        """
        fold = self._core.fold
        place, turn = (name.sender, name.n), fold.turn
        is_coming = place in fold.ledger.replays or (turn is not None and (turn.sender, turn.n) == place)
        if is_coming or not is_client(name.sender):
            return False
        inbox = self._inboxes.use(priority_of(name.sender))
        return not await is_stored(self._core.home.log, inbox, *place, until)

    def _give_up(self, mail: Mail, message: Message, name: WaitName) -> None:
        core, agent = self._core, self._core.fold.agent
        logger.warning(
            "agent %s: the store does not have the message any more whose turn made wait %r", agent, name.name
        )
        error = WaitOver(
            f"Wait {name.name!r} of agent {agent!r} is over: the store has lost the call whose turn made it. Nothing was done; if "
            "the call is made once more, so is the wait.", wait=name.name,
        )  # fmt: skip
        self._effects.take(mail, message, None, encode_answer(Answer(None, error.to_wire())) if message.ask else None)
        core.commit_soon()

    def come_back(self) -> None:
        """After turns: what was held is looked at again if its wait is open, has an outcome, or is over."""
        for arrival, name in list(self._held.items()):
            if self.is_decided(name):
                del self._held[arrival]
                arrival.inbox.come_again(arrival)

    # ---- while a turn waits ----------------------------------------------------------------------------------

    def look(self) -> None:
        """Takes what resolves a wait of the turn that waits, before all other messages."""
        if not self._may_look():
            return
        self._looks_again = True
        if self._looking is None:
            self._looking = self._core.start(self._look())

    async def _look(self) -> None:
        try:
            while self._looks_again and self._may_look():
                self._looks_again = False
                for mail, message in [*self._messages()]:
                    await self._take_early(mail, message)
        except RetryError as error:
            logger.info("agent %s: messages to its waits were not read: %s", self._core.fold.agent, described(error))
            await Backoff().wait()
            self._looks_again = True
        finally:
            self._looking = None
        if self._looks_again:
            self.look()

    def _may_look(self) -> bool:
        return self._runner.turn is not None and self._core.may_send

    async def _take_early(self, mail: Mail, message: Message) -> None:
        """The inbox comes to the message once more, and finds it taken: its cursor is not moved here."""
        core = self._core
        if mail.sender not in core.fold.ledger.peers:
            try:
                if mail.start > core.fold.seq and not await core.writer.reaches(mail.start):
                    return
            except Fenced as error:
                core.lose(error)
                return
        _ = await self.take(
            mail, message, lambda: self._may_look() and self._inboxes.verdict(mail, message) is Verdict.APPLY
        )

    def _messages(self) -> Iterator[tuple[Mail, Message]]:
        """What has come by the critical inbox."""
        inbox = self._inboxes.others.get(CRITICAL) if self._inboxes.others is not None else None
        if inbox is None:
            return
        put_off = (arrival for sender in self._delays.senders.values() for arrival in sender.arrivals)
        aside = [arrival for arrival in (*self._delays.early, *put_off) if arrival.inbox is inbox]
        for arrival in (*inbox.queue, *inbox.kept(), *aside):
            mail = arrival.mail
            if isinstance(mail, Mail):
                for message in mail.messages[arrival.index :]:
                    if message.handler == RESOLVE and inbox.verdict(mail, message) is Verdict.APPLY:
                        yield mail, message


def desk_of(core: Any) -> Resolves:
    """The waits of an activation; they are looked after once there is one."""
    if core.desk is None:
        core.desk = Resolves(core, core.inbox, core.runner, core.intake.effects, core.intake.delays)
    desk: Resolves = core.desk
    return desk
