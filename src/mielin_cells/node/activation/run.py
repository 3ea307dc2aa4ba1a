"""One run of a turn: its message, the calls it has made so far, and whether it may continue (rules 9, 12 and 13)."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import msgspec

from mielin_cells.agents.context import turn as current_turn
from mielin_cells.agents.step import Within
from mielin_cells.errors import (
    CellError,
    Fenced,
    MessageTooLarge,
    NonDeterministicTurn,
    NotInTurn,
    ReadOnly,
    UsageError,
    never,
)
from mielin_cells.log.commit import (
    Out,
    Place,
    ReplayCounts,
    ReplayInput,
    Sent,
    StepCall,
    Timer,
    TurnCall,
    body_of,
    place_of,
)
from mielin_cells.node.activation.core import Core
from mielin_cells.node.streams.parts import TurnStream
from mielin_cells.settings import MESSAGE_BYTES_MAX

if TYPE_CHECKING:
    from mielin_cells.agents.cluster import Cluster

within: ContextVar[Within | None] = ContextVar("mielin_cells_step", default=None)
"""Set only in the call of a step and in the tasks that the call starts."""


class TurnStopped(BaseException):
    """The turn was stopped to be run again elsewhere, or its owner lost the agent.  No handler can catch it as an Exception."""


class Run:
    """The state of one run of a turn."""

    # On the class, because most turns never touch them, and a turn is made for every message.
    broken: CellError | None = None
    """Fails the turn even if the handler catches the exception."""
    closed = False
    is_read_only = False
    """A message to a shared handler: the turn writes and sends nothing."""
    recorded: Sequence[TurnCall] = ()
    """The asks and steps of an earlier run of this turn."""
    stopped = False
    """The run was stopped between steps; the turn runs again, even if the handler catches `TurnStopped`."""
    is_reported_late = False
    in_step = False
    """A step's call is running, or its outcome is being recorded: the outcome must not be lost."""
    deadline: asyncio.Timeout | None = None
    """The turn's own deadline, which does not run in steps."""
    task: asyncio.Task[Any] | None = None
    """The task that runs the turn, once it waits."""
    corrects = 0
    """The number of the message that this turn's message stands in for."""
    replay: Replay | None = None
    """The input is run again after an undo."""
    since = 0.0
    """When it began to wait, by the loop's clock."""
    chain: tuple[str, ...] = ()
    """The agents that wait for this turn, each asked by the one before it; the first was told, or asked by a client."""
    parts: TurnStream | None = None
    """Of a handler that yields."""
    why = ""
    """Why the waiting ask has no answer, if it is known."""
    _order: asyncio.Lock | None = None
    _places: dict[tuple[str, bool], int] | None = None
    """How many messages of each kind went to each receiver."""
    _abandoned = ""
    """A step whose call the handler has cancelled."""
    _in_log = 0
    """How many of the first calls in `made` have their outcomes in the log."""
    _recording: asyncio.Task[Any] | None = None

    def __init__(self, core: Core, sender: str, n: int, message: str) -> None:
        self._core = core
        self.sender = sender
        self.n = n
        self.message = message
        """Name of the handler that runs, or of the hook."""
        self.tells: list[Out] = []
        self.calls: list[TurnCall] = []
        """The asks and steps of this run, in order."""
        fold = core.fold
        if fold.ledger.replays:
            again = fold.ledger.replays.get((sender, n))
            self.replay = Replay(again, fold.ledger.corrects) if again is not None else None
        opened = fold.turn
        if opened is not None and (opened.sender, opened.n) == (sender, n):
            self.recorded = opened.calls

    @property
    def id(self) -> str:
        return self._core.fold.agent

    @property
    def number(self) -> int:
        return self.n

    @property
    def node(self) -> str:
        return self._core.home.name

    @property
    def pause_s(self) -> float:
        """The time that a cancelled call has to end."""
        return self._core.home.settings.pause_s

    @property
    def cluster(self) -> Cluster:
        cluster = self._core.home.cluster
        if cluster is None:
            raise never("a turn runs on a node without a cluster")
        return cluster

    @property
    def caller(self) -> Any:
        return self

    def shares(self, caller: Any) -> bool:
        home = self._core.home
        return caller is home.cluster or getattr(caller, "log", None) is home.log

    @property
    def idempotency_key(self) -> str:
        """Inside the call of a step: the same text whenever this step's call is made again, on whatever node."""
        step = within.get()
        if step is None or step.turn is not self:
            raise NotInTurn(f"Agent {self.id!r}: idempotency_key means something only inside the call of a step.")
        return step.key

    def is_here(self) -> bool:
        """False in another thread, or in a loop that is not the turn's own."""
        try:
            return asyncio.get_running_loop() is self._core.loop
        except RuntimeError:  # a thread without a loop
            return False

    def _open(self) -> None:
        if self.closed:
            raise NotInTurn(f"The turn of agent {self.id!r} that made this call has ended; call from a new turn.")
        if self.is_read_only:
            raise ReadOnly(
                f"Handler {self.message} of agent {self.id!r} is shared: it reads, and sends, orders and records nothing. Do that in "
                "a handler without shared=True.", agent=self.id,
            )  # fmt: skip
        step = within.get()
        if step is not None and step.turn is self:
            raise UsageError(
                f"The call of step {step.name!r} of agent {self.id!r} used the agent's turn; a turn that runs again does not "
                "make the call: ask, tell, move and step in the handler itself.",
                agent=self.id, step=step.name,
            )  # fmt: skip
        running: object = current_turn.get()
        if running is not self:
            raise NotInTurn(
                f"A turn of agent {self.id!r} was used by another turn or thread; only its own tasks may use it."
            )
        if not self.is_here():
            raise UsageError(
                f"The turn of agent {self.id!r} was used from another thread, or from a loop that is not its own; nothing was done. "
                "Ask with asyncio.run_coroutine_threadsafe(ref.handler(...), loop), and give orders in the handler itself.",
                agent=self.id,
            )  # fmt: skip

    def _fits(self, agent: str, args: bytes) -> None:
        if len(args) > MESSAGE_BYTES_MAX:
            raise MessageTooLarge(
                f"A message from {self.id!r} to {agent!r} has {len(args)} bytes; the limit is {MESSAGE_BYTES_MAX}.",
                limit=MESSAGE_BYTES_MAX, size=len(args),
            )  # fmt: skip

    def _next_place(self, to: str, ask: bool) -> int:
        if self._places is None:
            self._places = {}
        k = self._places.get((to, ask), 0)
        self._places[to, ask] = k + 1
        return k

    def _in_order(self) -> asyncio.Lock:
        """Asks and steps are one sequence."""
        if self._order is None:
            self._order = asyncio.Lock()
        return self._order

    def _may_go_on(self) -> None:
        """Raises if this run may not make another ask or step."""
        self._open()
        if self.stopped:
            raise TurnStopped
        if self._abandoned:
            raise UsageError(
                f"The handler of agent {self.id!r} cancelled step {self._abandoned!r} and went on; a turn that runs again "
                "could not know. Limit the step itself: step(..., timeout=).",
                agent=self.id, step=self._abandoned,
            )  # fmt: skip

    async def _again(self, k: int) -> TurnCall:
        """What an earlier run did here.

        It yields to the loop once, as that run did: so the handler's tasks come to their asks and steps in the same order.
        """
        await asyncio.sleep(0)
        return self.recorded[k]

    def _otherwise(self, made: TurnCall, label: str) -> NonDeterministicTurn:
        self.broken = NonDeterministicTurn(
            f"A turn of agent {self.id!r} ran again and came to {label} where it had come to {made.label}; "
            "the message goes to the dead letters, and the agent goes on.",
            agent=self.id, asks=[made.label for made in self.recorded],
        )  # fmt: skip
        return self.broken

    def news(self) -> tuple[int, list[TurnCall]]:
        """For the record that is being composed: how many outcomes the log has, and those that follow them."""
        at, made = self._in_log, self.calls
        while self._in_log < len(made) and made[self._in_log].answer is not None:
            self._in_log += 1
        return at, made[at:]

    def _may_record(self) -> None:
        """Raises if the turn may not record any more: the activation may have been closed for a newer one meanwhile."""
        if not self._core.is_open:
            raise Fenced(f"Agent {self.id!r} is not run by this process any more.", agent=self.id)
        self._open()

    @property
    def waits_for_store(self) -> bool:
        """True while a record of this turn is on its way, or waits for earlier ones."""
        return self._recording is not None and not self._recording.done()

    async def settled(self) -> None:
        """Waits for the record that is on its way.  Another run that did not know of it would ask, or pay, a second time."""
        if self._recording is not None and self.waits_for_store:
            await asyncio.wait((self._recording,))
        if self.parts is not None:
            self.parts.close()
            await self.parts.rest()


class Replay:
    """The replay of an input after an undo: decides which of its messages stand as they were sent (rule 17).

    If it corrects, messages that differ now are sent.
    """

    def __init__(self, again: ReplayInput, corrects: bool) -> None:
        self.again = again
        self._corrects = corrects
        self._sent: dict[Place, Sent] = {place_of(sent): sent for sent in again.sent}
        self._met: dict[Place, str] = {}
        """What became of each earlier message, by its place."""
        self.steps: dict[tuple[str, int], StepCall] = {}
        """Finished steps, by name and how many of the name went before them."""
        for step in again.steps:
            index = sum(name == step.name for name, _ in self.steps)
            self.steps[step.name, index] = step

    def timer(self, timer: Timer) -> Timer | None:
        """The timer as it is set: due when it was, and no later than if it were set now; None if its message is in the inbox."""
        if timer.k not in self.again.timers:
            return timer
        earlier = self.again.timers[timer.k]
        return None if earlier is None else msgspec.structs.replace(timer, due=min(earlier.due, timer.due))

    def known(self, out: Out) -> Sent | None:
        """The message that an earlier run sent in this place."""
        return self._sent.get(place_of(out))

    def stands(self, out: Out) -> bool:
        """True if the message is not sent: the one that was sent in its place stands."""
        earlier = self.known(out)
        return earlier is not None and (not self._corrects or earlier.body == body_of(out))

    def corrected(self, out: Out) -> Out:
        """The message to send, with the number of the message that it replaces, if there is one."""
        earlier = self.known(out)
        return out if earlier is None else msgspec.structs.replace(out, corrects=earlier.n)

    def met(self, out: Out, n: int | None = None) -> None:
        """Notes that the run has come to a message; `n` is its number if it has one already."""
        earlier = self.known(out)
        if earlier is None:
            return
        if earlier.body == body_of(out):
            fate = "same"
        elif self._corrects if n is None else n != earlier.n:
            fate = "corrected"
        else:
            fate = "differing"
        self._met[place_of(out)] = fate

    def to_send(self, tells: list[Out]) -> list[Out]:
        """The tells of an ended run that are sent."""
        for out in tells:
            self.met(out)
        return [self.corrected(out) for out in tells if not self.stands(out)]

    def counts(self) -> ReplayCounts:
        """Counts what became of the messages, at the end of the run."""
        fates = list(self._met.values())
        return ReplayCounts(
            1, fates.count("same"), fates.count("differing"), fates.count("corrected"), len(self._sent) - len(self._met)
        )


class Started:
    """A coroutine whose first step was taken by hand, and that waits: awaiting this awaits the rest of it.

    Most handlers never wait; taking their first step by hand spares them a timer and the loop a task.
    """

    __slots__ = ("_coroutine", "_first", "is_abandoned", "is_closed", "went_on")

    def __init__(self, coroutine: Any, first: Any) -> None:
        self._coroutine = coroutine
        self._first = first
        self.is_closed = False
        """The awaiting coroutine was closed: a `GeneratorExit` then is not the handler's own."""
        self.is_abandoned = False
        """True if the coroutine, which has caught earlier cancellations, is abandoned at the next one."""
        self.went_on: Callable[[], None] | None = None
        """Called when the coroutine was cancelled and waits again."""

    def __await__(self) -> Generator[Any, Any, Any]:
        waits_for = self._first
        while True:
            try:
                sent = yield waits_for
            except GeneratorExit:
                self.is_closed = True
                self._coroutine.close()
                raise
            except BaseException as error:
                is_cancelled = isinstance(error, asyncio.CancelledError)
                if is_cancelled and self.is_abandoned:
                    # Kept for ever: to be freed it would be closed, which it catches as well, and without a loop it then never waits.
                    ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._coroutine))
                    if (task := asyncio.current_task()) is not None:
                        task.uncancel()  # what had been asked for before is what counts
                    raise
                try:
                    waits_for = self._coroutine.throw(error)
                except StopIteration as stop:
                    return stop.value
                if is_cancelled and self.went_on is not None:
                    self.went_on()
            else:
                try:
                    waits_for = self._coroutine.send(sent)
                except StopIteration as stop:
                    return stop.value


def is_failure(error: BaseException) -> bool:
    """True if the user's code failed, and not the task or process that runs it.

    Such code may raise what is no `Exception`: it calls `sys.exit`, or it waited for a task of its own that was cancelled.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # the event loop has ended, and what is left of it is closed
        return False
    if isinstance(error, asyncio.CancelledError):
        return task is None or not task.cancelling()
    if isinstance(error, GeneratorExit):
        return task is not None  # else its coroutine is closed because the event loop has ended
    return not isinstance(error, KeyboardInterrupt)
