"""The external waits of one agent on its owner: who resolves them, and their deadlines (rule T5).

An outcome, the answer to whoever resolved, and what follows from it are one commit.  The first recorded outcome stands.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from mielin_cells.agents.reports import WaitInfo
from mielin_cells.agents.signature import HandlerSpec
from mielin_cells.agents.spec import Spec
from mielin_cells.agents.values.changes import LOAD_ERRORS, reason
from mielin_cells.agents.values.wire import encode
from mielin_cells.errors import (
    BadArguments,
    CellError,
    NoSuchHandler,
    NoSuchWait,
    RecordInvalid,
    StepInvalid,
    WaitOver,
    WaitRejected,
    described,
)
from mielin_cells.log.commit import DeadLetter, Out, StepCall
from mielin_cells.log.fold import Fold
from mielin_cells.log.ledger import Ledger
from mielin_cells.log.message import Answer, Mail, Message, Verdict, decode_answer, encode_answer
from mielin_cells.log.turns.batch import Batch
from mielin_cells.log.waits.kept import Forgot, Later, Opened, Stood
from mielin_cells.log.waits.resolving import (
    Resolve,
    decode_resolve,
    error_of,
    rejection,
    standing,
    timeout,
    value_outcome,
)
from mielin_cells.log.waits.tokens import GIVEN, OPENED, WaitName, token_of, wait_of
from mielin_cells.node.waits.opened import OpenWait
from mielin_cells.rpc import words
from mielin_cells.store.clock import StoreClock
from mielin_cells.store.secret import Secret
from mielin_cells.tasks.signal import Signal
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.waits")

LOOK_S = 60.0
"""A deadline that is further away is looked at again after this, since two clocks drift apart."""

_raws = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


class Home(Protocol):
    """What is needed of the node."""

    @property
    def clock(self) -> StoreClock: ...
    @property
    def secret(self) -> Secret: ...


class Effects(Protocol):
    def take(self, mail: Mail, message: Message, turn: None, answer: bytes | None) -> None: ...
    def bury(self, letter: DeadLetter) -> None: ...


class Owner(Protocol):
    """What is needed of the agent."""

    @property
    def home(self) -> Home: ...
    @property
    def fold(self) -> Fold: ...
    @property
    def spec(self) -> Spec: ...
    @property
    def batch(self) -> Batch: ...
    @property
    def is_open(self) -> bool: ...
    @property
    def may_send(self) -> bool: ...
    def touch(self) -> None: ...
    def commit_soon(self) -> None: ...
    def flush(self) -> Awaitable[None]: ...
    def start(self, work: Any) -> asyncio.Task[None]: ...


class Desk:
    """Made when the agent first has to do with a wait here."""

    def __init__(self, owner: Owner, effects: Effects) -> None:
        self._owner = owner
        self._effects = effects
        self.open: dict[bytes, OpenWait] = {}
        """The waits of the turn that runs."""
        self._changed = Signal()
        self._task: asyncio.Task[None] | None = None
        """Waits for deadlines."""

    @property
    def _ledger(self) -> Ledger:
        return self._owner.fold.ledger

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task = None

    # ---- asked of what reads the messages ------------------------------------------------------------------------

    async def come_to(self, arrival: Any, mail: Mail, message: Message) -> Any:
        """The intake has come to a message with a `Resolve`."""
        raise NotImplementedError

    def come_back(self) -> None:
        """After turns: what was held is looked at again if its wait is open, has an outcome, or is over."""
        raise NotImplementedError

    def look(self) -> None:
        """Takes what resolves a wait of the turn that waits, before all other messages."""
        raise NotImplementedError

    # ---- waits begin and end ---------------------------------------------------------------------------------

    def opened(self, wait: OpenWait) -> None:
        """The log has the wait of the turn that runs.  An outcome that was recorded before stands."""
        key, waits = wait.name.key, self._ledger.waits
        self.open[key] = wait
        stood = waits.stood.get(key) if waits is not None else None
        if stood is not None:
            _ = self._owner.start(self._tell(wait, stood))
        else:
            self.kick()

    def turn_ended(self) -> None:
        self.open.clear()

    def open_later(self, later: list[Later]) -> None:
        """What a turn has opened begins, with the turn's commit."""
        batch, waits = self._owner.batch, self._ledger.waits
        for one in later:
            stood = waits.stood.get(one.key) if waits is not None else None
            if stood is None:
                batch.changes.append(change := Opened(one))
                self._ledger.change(change)
            elif error_of(stood) is not None and not one.other:
                self._bury(one, stood)  # an undo has taken back that letter; a message would be in the inbox
        self._owner.touch()
        self.kick()

    def _decide(self, key: bytes, outcome: bytes) -> None:
        batch, ledger = self._owner.batch, self._ledger
        change = Stood(key, outcome)
        batch.changes.append(change)
        ledger.change(change)
        if self._owner.fold.turn is None and not ledger.replays and ledger.waits is not None:
            gone = ledger.waits.excess()  # never what a turn that runs again may want
            if gone:
                batch.changes.append(forgot := Forgot(gone))
                ledger.change(forgot)
        self._owner.touch()

    async def _tell(self, wait: OpenWait, outcome: bytes) -> None:
        """The handler gets the outcome once the record that has it is acknowledged."""
        try:
            await self._owner.flush()
        except CellError as error:  # the agent is lost here: its turn runs again elsewhere
            logger.debug("wait %s of agent %s: %s", wait.name.name, self._owner.fold.agent, error)
            return
        wait.stands(outcome)

    # ---- whoever resolves ------------------------------------------------------------------------------------

    async def take(self, mail: Mail, message: Message, may_take: Callable[[], bool]) -> bool | None:
        """Takes a message with a `Resolve`.  False if its wait is not open and may still be: the message is to be held.

        `may_take` is asked once the store has answered; None, and nothing is done, if it says no.  Raises what the store raises.
        """
        secret = await self._owner.home.secret.get()
        if not may_take():
            return None
        ledger = self._ledger
        again = ledger.replays.get((mail.sender, message.n)) if ledger.replays else None
        if again is not None and again.taken:  # what it had done stands, and so does its answer
            answer = ledger.answer(mail.sender, message.n)
        else:
            answer = self._answer(secret, message)
            if answer is None:
                return False
        self._effects.take(mail, message, None, answer if message.ask else None)
        self._owner.commit_soon()
        return True

    def is_decided(self, name: WaitName) -> bool:
        """True if a message about this wait need not be held: the wait is open, has an outcome, or is over."""
        ledger, key = self._ledger, name.key
        waits = ledger.waits
        is_known = key in self.open or (waits is not None and (key in waits.stood or key in waits.later))
        return is_known or ledger.judge(name.sender, name.n, name.start) not in (Verdict.APPLY, Verdict.HOLD)

    def _answer(self, secret: bytes, message: Message) -> bytes | None:
        try:
            resolve = decode_resolve(message.args)
            name = wait_of(resolve.token)
            if name.agent != self._owner.fold.agent or not hmac.compare_digest(token_of(secret, name), resolve.token):
                raise NoSuchWait("This token is of no wait of this deployment; nothing was done.")
            return self._resolved(name, resolve)
        except (RecordInvalid, NoSuchWait, WaitOver, BadArguments, NoSuchHandler) as error:
            return encode_answer(Answer(None, error.to_wire()))

    def _resolved(self, name: WaitName, resolve: Resolve) -> bytes | None:
        ledger, key = self._ledger, name.key
        stood = ledger.waits.stood.get(key) if ledger.waits is not None else None
        if stood is not None:
            return standing(False, stood)
        later = ledger.waits.later.get(key) if ledger.waits is not None else None
        wait = self.open.get(key)
        if wait is not None:
            outcome = self._checked(resolve, wait)
            self._decide(key, outcome)
            _ = self._owner.start(self._tell(wait, outcome))
            return standing(True, outcome)
        if later is not None:
            outcome = self._sent(later, resolve)
            self._decide(key, outcome)
            return standing(True, outcome)
        if ledger.judge(name.sender, name.n, name.start) in (Verdict.APPLY, Verdict.HOLD):
            return None
        raise WaitOver(
            f"Wait {name.name!r} of agent {name.agent!r} is over: its turn has ended without it, or its outcome is not kept any more. "
            "Nothing was done.", wait=name.name,
        )  # fmt: skip

    def _checked(self, resolve: Resolve, wait: OpenWait) -> bytes:
        """The outcome.  Raises `BadArguments` for a value of another type."""
        name, agent = wait.name.name, wait.name.agent
        if resolve.error is not None:
            return rejection(name, resolve.error)
        path = f"wait {name!r} of agent {agent!r}"
        try:
            if resolve.word is not None:
                value = words.value_of(resolve.word, wait.kind, path, name)
                return value_outcome(wait.results.encode(value))
            _ = wait.results.codec.whole(resolve.value)
        except (*LOAD_ERRORS, BadArguments, StepInvalid) as error:
            why = reason(None, error) if not isinstance(error, CellError) else error.message
            raise BadArguments(f"The value does not fit {path}, and the wait goes on: {why}.", handler=name) from error
        return value_outcome(resolve.value)

    # ---- waits that keep no turn open ------------------------------------------------------------------------

    def _sent(self, later: Later, resolve: Resolve) -> bytes:
        """Sends the message that follows from it.  Raises `BadArguments` or `NoSuchHandler`, and then nothing is done."""
        if resolve.error is not None:
            outcome = rejection(later.name, resolve.error)
            self._send_other(later, outcome)
            return outcome
        handler = self._owner.spec.handler(later.handler)
        value = resolve.value
        if resolve.word is not None:
            first, kind = next(iter(handler.parameters.items()))
            value = encode(words.value_of(resolve.word, kind, f"{handler.path}({first})", handler.name))
        args = _args_of(handler, value, later.args)
        try:
            _ = handler.decode_args(args)
        except BadArguments as error:
            raise BadArguments(
                f"The value does not fit wait {later.name!r}, and the wait goes on: {error.message}",
                handler=later.handler,
            ) from error
        self._send(later.handler, args)
        return value_outcome(value)

    def _send_other(self, later: Later, outcome: bytes) -> None:
        """Sends the reason why there is no value; without a handler for it that is a dead letter."""
        handler = self._owner.spec.handlers.get(later.other)
        if handler is None:
            self._bury(later, outcome)
            return
        error = error_of(outcome)
        why = error.reason if isinstance(error, WaitRejected) else error.message if error is not None else ""
        self._send(later.other, _args_of(handler, encode(why), later.args))

    def _send(self, handler: str, args: bytes) -> None:
        """A message of the agent to itself, as a timer's is."""
        owner = self._owner
        agent = owner.fold.agent
        out = Out(agent, owner.spec.name, self._ledger.next_number(agent), handler, args, False, "", 0, 0)
        self._ledger.send(out)
        owner.batch.outs.append(out)

    def _bury(self, later: Later, outcome: bytes) -> None:
        error = decode_answer(outcome).error
        cause = f"{error[0]}: {error[1]}" if error is not None else ""
        self._effects.bury(DeadLetter(0, "", 0, later.handler, cause, 0, [], later.args))

    # ---- deadlines -------------------------------------------------------------------------------------------

    def _untils(self) -> list[tuple[float, bytes]]:
        """Deadlines by the store's time, and whose they are.  After an undo, waits that keep no turn open may not be made again."""
        waits = self._ledger.waits
        stood = waits.stood if waits is not None else {}
        untils = [(one.until, key) for key, one in self.open.items() if one.until and key not in stood]
        if waits is not None and not self._ledger.replays:
            untils += [(one.until, key) for key, one in waits.later.items() if one.until]
        return untils

    @property
    def may_sleep(self) -> bool:
        """True if nothing waits in a turn, and it is known when the next deadline passes."""
        return not self.open and (self._owner.home.clock.is_known or not self._untils())

    def next_due(self) -> float | None:
        """When the first deadline of a wait that keeps no turn open may have passed, by the loop's clock."""
        if self._ledger.waits is None or not self._owner.home.clock.is_known:
            return None
        left = [one.until for one in self._ledger.waits.later.values() if one.until]
        now = asyncio.get_running_loop().time()
        return now + max(0.0, min(left) - self._owner.home.clock.now()) if left else None

    def kick(self) -> None:
        """Waits for the next deadline, and looks for messages that could not be taken before."""
        self._changed.set()
        self.look()
        if self._task is None and self._owner.is_open and self._untils():
            self._task = self._owner.start(self._expire())

    async def _expire(self) -> None:
        owner, backoff = self._owner, Backoff()
        clock = owner.home.clock
        try:
            while owner.is_open and self._untils():
                try:
                    await clock.refresh()
                except CellError as error:
                    logger.info("agent %s: the store's time is not known: %s", owner.fold.agent, described(error))
                    await backoff.wait()
                    continue
                left_s = min(self._untils(), default=(0.0, b""))[0] - clock.now()
                if left_s <= 0 and owner.may_send:
                    self._pass(clock.now())
                else:  # while nothing may be recorded, `kick` says when it may
                    await self._changed.within(min(left_s, LOOK_S) if left_s > 0 else LOOK_S)
        finally:
            self._task = None

    def _pass(self, now: float) -> None:
        """Records that deadlines have passed."""
        for until, key in sorted(self._untils()):
            if until > now:
                break
            wait, waits = self.open.get(key), self._ledger.waits
            if wait is not None:
                outcome = timeout(wait.name.name)
                self._decide(key, outcome)
                _ = self._owner.start(self._tell(wait, outcome))
            elif waits is not None:
                later = waits.later[key]
                outcome = timeout(later.name)
                self._send_other(later, outcome)
                self._decide(key, outcome)
        self._owner.commit_soon()


def _args_of(handler: HandlerSpec, first: bytes, rest: bytes) -> bytes:
    """The arguments of a message: its first parameter gets `first`."""
    name = next(iter(handler.parameters), "value")
    return encode({name: msgspec.Raw(first), **_raws(rest)})


def wait_infos(fold: Fold, desk: Desk | None) -> list[WaitInfo]:
    """The waits of an agent that are open, for people.  While its turn does not run, the log tells their names."""
    waits, running = fold.ledger.waits, desk.open if desk is not None else {}
    stood, later = (waits.stood, waits.later) if waits is not None else ({}, {})
    infos = [
        WaitInfo(name=one.name.name, token=one.token, until=one.until)
        for key, one in running.items()
        if key not in stood
    ]
    if not running and fold.turn is not None:
        names = Counter(call.name for call in fold.turn.calls if isinstance(call, StepCall))
        for name in [name for name in names if name.startswith(OPENED)]:
            label = name[len(OPENED) :]
            infos += [WaitInfo(name=label)] * (names[name] - names[GIVEN + label])
    return infos + [WaitInfo(name=one.name, until=one.until, handler=one.handler) for one in later.values()]
