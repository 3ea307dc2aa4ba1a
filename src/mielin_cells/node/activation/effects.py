"""What a turn comes to: its effect in ledger and batch, or, if it failed, an error for an answer or a dead letter."""

from __future__ import annotations

import logging
from typing import Any, TypeGuard

import msgspec

from mielin_cells import tracing
from mielin_cells.agents.cluster import Cluster
from mielin_cells.agents.live import Cell
from mielin_cells.agents.signature import HandlerSpec
from mielin_cells.agents.values.raises import Unsendable
from mielin_cells.errors import (
    PASSING,
    Cancelled,
    CellError,
    EpochRegression,
    Expired,
    HandlerFailed,
    InboxFull,
    KeyConflict,
    MessageTooLarge,
    NoSuchHandler,
    RetryError,
    TurnDeadlineExceeded,
    UsageError,
    WrongClass,
    described,
    is_ours,
    leaves,
    storable,
)
from mielin_cells.log.commit import (
    EXPIRED,
    FULL,
    DeadLetter,
    EndedTurn,
    Input,
    ReplayCounts,
)
from mielin_cells.log.inboxes.cancels import CANCELLED
from mielin_cells.log.keys.kept import CONFLICT, KEYED, Keyed
from mielin_cells.log.message import Answer, Mail, Message, encode_answer, sender_text
from mielin_cells.log.waits.resolving import RESOLVE
from mielin_cells.node.activation.calls.resolves import desk_of
from mielin_cells.node.activation.core import Core
from mielin_cells.node.activation.inbox import Arrival
from mielin_cells.node.activation.priorities.cancelling import cancel_asks, error_of, open_asks, unheard_asks
from mielin_cells.node.activation.timers import Timers
from mielin_cells.node.activation.turn import Turn
from mielin_cells.node.family.kinship import kinship_of
from mielin_cells.policy.deploys.health import Turns
from mielin_cells.settings import MESSAGE_BYTES_MAX
from mielin_cells.tracing import Trace

logger = logging.getLogger("mielin_cells.intake")

FAILED_BYTES_MAX = 64 * 1024
"""Room in a message for the sentence and the facts of a `HandlerFailed`, beside a declared error."""

CAUSE_CHARS_MAX = 2000
"""Of a cause, in the sentence that names it; the facts have all of it."""

OF_ANOTHER_CALL = (RetryError, HandlerFailed, Expired, KeyConflict, Cancelled)
"""Raised by a handler, these are about a call that it made."""

CAUSES_MAX = 10
"""Of the exceptions of a group, so many are described one by one."""


class Effects:
    """Puts what turns come to into the batch of one agent.  Nothing of it is durable before the commit."""

    __slots__ = ("_cell", "_core", "_timers")

    def __init__(self, core: Core, cell: Cell, timers: Timers) -> None:
        self._core = core
        self._cell = cell
        self._timers = timers

    # ---- turns that succeed ----------------------------------------------------------------------------------

    def end(self, mail: Mail, message: Message, turn: Turn, handler: HandlerSpec, result: Any) -> None:
        """Takes a turn's result.  If this raises, the turn has no effect, and the live state must be undone."""
        answer, has_key = None, message.terms is not None and bool(message.terms.key)
        if message.ask or has_key:
            answer = encode_answer(Answer(handler.encode_result(result)))
            if len(answer) > MESSAGE_BYTES_MAX:
                raise MessageTooLarge(
                    f"{handler.path} of agent {turn.id!r} returned {len(answer)} bytes; the limit is {MESSAGE_BYTES_MAX}. "
                    "The turn is undone and the agent goes on.",
                    limit=MESSAGE_BYTES_MAX, size=len(answer),
                )  # fmt: skip
        batch = self._core.batch
        batch.delta = self._cell.end(batch.delta)
        if turn.attributes is not None:
            turn.apply_attributes(batch)
        if turn.replay is not None:
            turn.tells = turn.replay.to_send(turn.tells)
        if has_key:
            self.take(mail, message, turn, answer if message.ask else None, kept=answer)
        else:
            self.take(mail, message, turn, answer)
        if turn.tells or turn.timers or turn.topics or turn.changes or turn.later:
            self.send(turn)
        if turn.moves or turn.wish is not None:
            self._order(turn)

    def take(
        self, mail: Mail, message: Message, turn: Turn | None, answer: bytes | None, unrun: str = "",
        kept: bytes | None = None,
    ) -> None:  # fmt: skip
        """The message has taken effect in memory; the next commit makes that durable.

        `unrun`: why it was not run.  `kept`: the answer that is kept under its key, if it has one.
        """
        batch, ledger, sender, n = self._core.batch, self._core.fold.ledger, mail.sender, message.n
        batch.turns += 1
        if turn is not None and turn.calls:
            at, made = turn.news()
            if made:  # outcomes that no record has yet: an undo may want them (rule 13)
                batch.ended.append(EndedTurn(turn.sender, turn.n, at, made))
                ledger.learn(made)
            if ledger.family is not None:
                kinship_of(self._core).kick()
        keyed = None
        if kept is not None and message.terms is not None and message.terms.key:
            keyed = Keyed(message.terms.key, message.digest, self._core.home.clock.now(), kept)
        is_again = bool(ledger.replays) and (sender, n) in ledger.replays
        if turn is not None and turn.calls and not unrun and not (is_again and ledger.replays[sender, n].taken):
            cancel_asks(self._core, unheard_asks(turn))
        if is_again:
            answer = self._take_again(mail, message, turn, answer, unrun)
        else:
            stored = keyed if keyed is None or answer is None else msgspec.structs.replace(keyed, answer=None)
            batch.inputs.append(Input(sender, n, mail.low, mail.start, answer, mail.given_up, unrun, stored))
        ledger.take(sender, n, mail.low, mail.start, answer, mail.given_up, keyed)
        if is_again and not ledger.replays:
            self._timers.kick()  # timers wait until all inputs are taken again, and so do topics
            self._core.topics.kick()
        if answer is not None:
            batch.answer(mail.reply_to, sender, n, answer)

    def _take_again(
        self, mail: Mail, message: Message, turn: Turn | None, answer: bytes | None, unrun: str
    ) -> bytes | None:
        """An input that is run again after an undo.  Returns the answer that leaves: what was answered once stands (rule 17)."""
        batch, ledger, sender, n = self._core.batch, self._core.fold.ledger, mail.sender, message.n
        again = ledger.replays[sender, n]
        if turn is not None and turn.replay is not None:
            counts = turn.replay.counts()
        else:
            counts = ReplayCounts(1, missing=len(again.sent))
        if batch.replayed is None:
            batch.replayed = ReplayCounts()
        batch.replayed.add(counts)
        ledger.replayed.add(counts)
        stored = ledger.answer(sender, n) if again.taken else answer
        kept = None if again.taken else answer
        batch.inputs.append(Input(sender, n, mail.low, mail.start, kept, mail.given_up, again.unrun or unrun))
        return stored if message.ask else None

    def send(self, turn: Turn) -> None:
        """Gives the turn's tells their numbers, and sets its timers."""
        batch, ledger = self._core.batch, self._core.fold.ledger
        for tell in turn.tells:
            out = msgspec.structs.replace(tell, n=ledger.next_number(tell.to))
            ledger.send(out)
            batch.outs.append(out)
        turn.tells.clear()
        if turn.timers and turn.seconds is not None:
            self._timers.take(turn.timers, turn.seconds)
        if turn.topics:
            self._core.topics.change(turn.topics)
        if turn.changes:
            kinship_of(self._core).change(turn.changes)
        if turn.later:
            desk_of(self._core).open_later(turn.later)

    def _order(self, turn: Turn) -> None:
        """Carries out what the turn has ordered for its own agent, once the turn is committed."""
        core = self._core
        if turn.replay is not None and turn.replay.again.taken:
            return  # an undo has said where the agent is to be, and an operator may have resumed it
        if turn.wish is not None:
            core.batch.wish = turn.wish
            core.fulfil()
        if turn.moves and core.home.cluster is not None and (turn.wish is None or turn.wish.order != "terminate"):
            core.home.begin(self._move(core.home.cluster, turn.move_to, turn.trace))

    async def _move(self, cluster: Cluster, to: str | None, trace: Trace | None) -> None:
        await self._core.flush()
        if trace is not None:
            tracing.set_current(trace)
        try:
            await cluster.migrate(self._core.fold.agent, to=to)
        except CellError as error:
            logger.warning("agent %s ordered its own move, which failed; it stays: %s", self._core.fold.agent, error)

    # ---- messages that are not run ---------------------------------------------------------------------------

    def cancelled(self, mail: Mail, message: Message, turn: Turn | None) -> None:
        """Takes a message that is cancelled: its turn has not begun, or has ended by it (rule T4)."""
        core, sender, n = self._core, mail.sender, message.n
        again = core.fold.ledger.replays.get((sender, n)) if core.fold.ledger.replays else None
        asks = [] if again is not None and again.taken else open_asks(core, sender, n, turn)
        error = error_of(core, message)
        logger.info("agent %s: %s of %s is cancelled", core.fold.agent, message.handler, sender_text(sender))
        answer = encode_answer(Answer(None, error.to_wire())) if message.ask else None
        self.take(mail, message, turn, answer, CANCELLED)
        cancel_asks(core, asks)

    def closes(self, arrival: Arrival, mail: Mail, message: Message, is_over: bool, is_cancelled: bool) -> bool:
        """Takes the message without a run if its terms say so (rules T2 and T3), if it is the oldest of too many, or cancelled.

        `is_cancelled`: a cancel of it waits in the critical inbox.
        """
        fold, agent = self._core.fold, self._core.fold.agent
        opened = fold.turn
        has_begun = opened is not None and (opened.sender, opened.n) == (mail.sender, message.n) and opened.is_bound
        again = fold.ledger.replays.get((mail.sender, message.n)) if fold.ledger.replays else None
        if is_cancelled and not (again is not None and again.taken):
            unrun = CANCELLED
        else:
            unrun = fold.ledger.why_unrun(mail.sender, message, self._core.home.clock.now(), has_begun, is_over)
        if not unrun:
            return False
        if unrun == CANCELLED:
            self.cancelled(mail, message, None)
            return True
        answer: bytes | None = None
        if unrun == KEYED:
            key, keys = message.terms.key if message.terms is not None else "", fold.ledger.keys
            kept = keys.kept.get(key) if keys is not None else None
            answer = kept.answer if kept is not None else None  # dropped since: a replay, whose stored answer stands
        else:
            error = self._why(message, unrun)
            core = self._core
            core.home.unrun.note(core.loop.time(), agent, message.handler, sender_text(mail.sender), error)
            if unrun in (EXPIRED, FULL) or not message.ask:
                cause = described(error)
                self.bury(DeadLetter(arrival.seq, mail.sender, message.n, message.handler, cause, 0, [], message.args))
            answer = encode_answer(Answer(None, error.to_wire())) if message.ask else None
        self.take(mail, message, None, answer if message.ask else None, unrun)
        return True

    def _why(self, message: Message, unrun: str) -> CellError:
        agent, handler = self._core.fold.agent, message.handler
        what = f"{self._core.spec.name}.{handler} of agent {agent!r} did not run: "
        if unrun == FULL:
            limit = self._core.spec.inbox_limit(self._core.home.settings)
            return InboxFull(
                f"{what}more than {limit} messages waited, and the oldest were dropped.",
                agent=agent,
                waiting=limit,
                limit=limit,
            )
        if unrun == CONFLICT:
            key = message.terms.key if message.terms is not None else ""
            return KeyConflict(
                f"{what}another call was made under the key {key!r} before. Give each call a key of its own; a call that is "
                "repeated has the same handler and arguments.", agent=agent, handler=handler, key=key,
            )  # fmt: skip
        return Expired(f"{what}the message's deadline passed before its turn began.", agent=agent, handler=handler)

    # ---- turns that fail, and messages that are not run ------------------------------------------------------

    def fail(self, arrival: Arrival, mail: Mail, message: Message, turn: Turn, error: BaseException, ran: int) -> None:
        """Ends a message whose turn failed.  An ask is answered with the error; a tell becomes a dead letter."""
        core = self._core
        again = core.fold.ledger.replays.get((mail.sender, message.n)) if core.fold.ledger.replays else None
        if not message.ask or (again is not None and again.taken):  # its first answer stands
            self.bury_failed(arrival, mail, message, turn, error, ran)
            return
        declared = is_declared(core.spec.handlers.get(message.handler), error)
        logger.log(
            logging.DEBUG if declared else logging.INFO, "agent %s: %s raised, which is its answer to %s: %s",
            core.fold.agent, message.handler, sender_text(mail.sender), described(error),
            exc_info=None if declared else error,
        )  # fmt: skip
        answer = self._answer_of(message, error, ran)
        self.take(mail, message, turn, answer, kept=answer)

    def bury_failed(
        self, arrival: Arrival, mail: Mail, message: Message, turn: Turn, error: BaseException, ran: int
    ) -> None:
        """The message goes to the dead letters with its cause, and the agent goes on."""
        cause, asks = described(error), [made.label for made in turn.calls]
        self.bury(DeadLetter(arrival.seq, mail.sender, message.n, message.handler, cause, ran, asks, message.args))
        logger.warning(
            "agent %s: %s of %s is a dead letter: %s", self._core.fold.agent, message.handler, sender_text(mail.sender),
            cause, exc_info=error,
        )  # fmt: skip
        self.take(mail, message, turn, self._answer_of(message, error, ran) if message.ask else None)

    def refuse(self, mail: Mail, message: Message) -> bool:
        """Closes a message that fits no handler.  A tell, which nobody waits for, is kept as a dead letter.

        False, and nothing is done, if the message resolves a wait.
        """
        if message.handler == RESOLVE:
            return False
        have, agent = self._core.spec.name, self._core.fold.agent
        if mail.cls != have and mail.cls:
            error: CellError = WrongClass(
                f"Agent {agent!r} is a {have}, not a {mail.cls}.", agent=agent, have=have, need=mail.cls
            )
        else:
            error = NoSuchHandler(
                f"{have} (agent {agent!r}) has no handler {message.handler!r}.", agent=agent, handler=message.handler
            )
        if message.ask:
            self.take(mail, message, None, encode_answer(Answer(None, error.to_wire())))
            return True
        cause = f"{error.code}: {error.message}"
        self.bury(DeadLetter(0, mail.sender, message.n, message.handler, cause, 0, [], message.args))
        self.take(mail, message, None, None)
        return True

    def bury(self, letter: DeadLetter) -> None:
        core, letter = self._core, msgspec.structs.replace(letter, at=self._core.home.wall())
        core.batch.dead.append(letter)
        core.home.turns.setdefault(core.spec.name, Turns()).buried += 1
        core.touch()
        core.fold.ledger.bury(letter)
        if core.fold.ledger.family is not None:
            kinship_of(core).tell()

    def _answer_of(self, message: Message, error: BaseException, ran: int) -> bytes:
        spec, name = self._core.spec, message.handler
        return answer_of(self._core.fold.agent, f"{spec.name}.{name}", name, spec.handlers.get(name), error, ran)


def is_of_store(error: BaseException) -> bool:
    """True if the store, or the loss of the agent, failed the turn.  That another agent is quarantined is the turn's own answer."""
    return any(isinstance(leaf, PASSING) and not isinstance(leaf, EpochRegression) for leaf in leaves(error))


def is_declared(handler: HandlerSpec | None, error: BaseException) -> bool:
    return handler is not None and handler.raises is not None and handler.raises.has(error)


def is_final(handler: HandlerSpec, error: BaseException) -> bool:
    """True for an error that would come again in each run: a declared one, a wrong call, or a recorded outcome."""
    wrong = isinstance(error, UsageError) and not isinstance(error, HandlerFailed)
    return wrong or is_declared(handler, error)


def answer_of(agent: str, path: str, handler: str, spec: HandlerSpec | None, error: BaseException, ran: int) -> bytes:
    """The answer of a turn that failed: a declared error or one of this package as it is, any other as `HandlerFailed`."""
    raised, unsent = None, ""
    if spec is not None and spec.raises is not None and spec.raises.has(error):
        try:
            data = spec.raises.encode(error)
            raised = data if len(data) <= MESSAGE_BYTES_MAX - FAILED_BYTES_MAX else None
            unsent = f" (declared, but {len(data)} bytes cannot be sent)" if raised is None else ""
        except Unsendable as why:
            unsent = storable(f" (declared, but {why})")
    elif _is_ours(error):
        answer = encode_answer(Answer(None, error.to_wire()))
        if len(answer) <= MESSAGE_BYTES_MAX:
            return answer
    cause = described(error)
    said = cause if len(cause) <= CAUSE_CHARS_MAX else cause[:CAUSE_CHARS_MAX] + "..."
    failed = HandlerFailed(
        f"{path} of agent {agent!r} raised {said}" + unsent + (f" (run {ran} times)" if ran > 1 else "") + "; "
        "its state is as before the turn, and it goes on.",
        agent=agent, handler=handler, kind=storable(type(error).__name__), cause=cause, tries=ran,
        causes=[described(leaf) for leaf in leaves(error)[:CAUSES_MAX]] if isinstance(error, BaseExceptionGroup) else [],
    )  # fmt: skip
    return encode_answer(Answer(None, failed.to_wire(), raised))


def _is_ours(error: BaseException) -> TypeGuard[CellError]:
    """True for an error of this package that is about the call itself.

    An error that means "try again" is about another call, which the handler made; so is the failure of another agent's handler, or
    that a message to it did not run.
    """
    return (
        isinstance(error, CellError)
        and is_ours(type(error))
        and (isinstance(error, TurnDeadlineExceeded) or not isinstance(error, OF_ANOTHER_CALL))
    )
