"""One run of a turn: its message, the calls it has made so far, and whether it may continue (rules 9, 12 and 13)."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

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
from mielin_cells.log.commit import Out, TurnCall
from mielin_cells.node.activation.calls.order import Branches
from mielin_cells.node.activation.calls.replay import Replay
from mielin_cells.node.activation.calls.spans import Traced
from mielin_cells.node.activation.calls.tasks import Branch, BranchTask, Timer, TurnStopped, resumes
from mielin_cells.node.activation.core import Core
from mielin_cells.node.attributes.turning import AttributeCalls
from mielin_cells.node.streams.parts import TurnStream
from mielin_cells.settings import MESSAGE_BYTES_MAX

if TYPE_CHECKING:
    from mielin_cells.agents.cluster import Cluster

within: ContextVar[Within | None] = ContextVar("mielin_cells_step", default=None)
"""Set only in the call of a step and in the tasks that the call starts."""


class Run(AttributeCalls, Traced):
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
    cancels: Callable[[], None] | None = None
    """Set once the message is cancelled (rule T4): it has the handler cancelled, unless a step's call runs.  The turn makes no further
    call, and has no effect."""
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
    may_branch = True
    """Its handler's tasks and timers are branches of it (`branches.tasks`)."""
    branches: Branches | None = None
    """Its calls, once it has several branches or calls while a timer runs."""
    steps = 0
    busy = 0
    """Branches that are in the middle of making a call: the turn does not stand still."""
    born = 0
    open_timers: tuple[Timer, ...] = ()
    """Timers of a turn without branches."""
    _root: Branch | None = None
    _is_calling = False
    """Code of this package runs for the turn, whose tasks and timers are none of its branches."""
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
        if self.cancels is not None:
            raise asyncio.CancelledError
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

    def otherwise(self, made: TurnCall, label: str) -> NonDeterministicTurn:
        self.broken = NonDeterministicTurn(
            f"A turn of agent {self.id!r} ran again and came to {label} where it had come to {made.label}; "
            "the message goes to the dead letters, and the agent goes on.",
            agent=self.id, asks=[made.label for made in self.recorded],
        )  # fmt: skip
        return self.broken

    def skip_known(self) -> None:
        """What an earlier run has recorded is in the log already."""
        for made in self.recorded[self._in_log : len(self.calls)]:
            if made.answer is None:
                return
            self._in_log += 1

    def met(self, out: Out) -> None:
        if self.replay is not None:
            self.replay.met(out, out.n)

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

    # ---- branches (rule T6) ----------------------------------------------------------------------------------

    @property
    def root(self) -> Branch:
        if self._root is None:
            self._root = Branch()
        return self._root

    @property
    def makes_branches(self) -> bool:
        """A handler that yields makes one call after the other: its parts and those of its steps are one sequence."""
        if self.parts is not None or self.is_read_only or not self.sender:
            return False
        return not (self._is_calling or self.closed)

    def started(self, task: BranchTask) -> None:
        self._branch_out().started(task)

    def timer(self, timer: Timer) -> None:
        if self.branches is not None:
            self.branches.timer(timer)
        else:
            self.open_timers = (*(one for one in self.open_timers if one.is_open), timer)

    def _branches(self) -> Branches | None:
        """The turn's branches, if what it calls now must be told from what else goes on in it."""
        if self.branches is None and any(timer.is_open for timer in self.open_timers):
            return self._branch_out()
        return self.branches

    def _branch_out(self) -> Branches:
        if self.branches is None:
            was, self._is_calling = self._is_calling, True
            try:
                turn: Any = self
                self.branches = Branches(turn, self.recorded[len(self.calls) :], self.open_timers)
            finally:
                self._is_calling = was
        return self.branches

    @contextmanager
    def is_making(self) -> Iterator[None]:  # a branch makes a call: the turn does not stand still meanwhile
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1
            if self.branches is not None:
                self.branches.wake()

    def close(self) -> None:
        """The handler has returned, or its turn has failed."""
        if self.branches is not None:
            self.branches.close()
        self.closed = True
        if self.span is not None:
            self.end_trace(None)


class Started:
    """A coroutine whose first step was taken by hand, and that waits: awaiting this awaits the rest of it.

    Most handlers never wait; taking their first step by hand spares them a timer and the loop a task.
    """

    __slots__ = ("_coroutine", "_first", "is_abandoned", "is_closed", "turn", "went_on")

    def __init__(self, coroutine: Any, first: Any) -> None:
        self._coroutine = coroutine
        self._first = first
        self.is_closed = False
        """The awaiting coroutine was closed: a `GeneratorExit` then is not the handler's own."""
        self.is_abandoned = False
        """True if the coroutine, which has caught earlier cancellations, is abandoned at the next one."""
        self.turn: Run | None = None
        """Whose handler it is."""
        self.went_on: Callable[[], None] | None = None
        """Called when the coroutine was cancelled and waits again."""

    @resumes
    def __await__(self) -> Generator[Any, Any, Any]:
        waits_for = self._first
        while True:
            try:
                sent = yield waits_for
                if self.turn is not None:
                    self.turn.steps += 1
            except GeneratorExit:
                self.is_closed = True
                self._coroutine.close()
                raise
            except BaseException as error:
                is_cancelled = isinstance(error, asyncio.CancelledError)
                if self.turn is not None:
                    self.turn.steps += 1
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
    """True if the user's code failed, also with what is no `Exception` (`sys.exit`), and not the task or process that runs it."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # the event loop has ended, and what is left of it is closed
        return False
    if isinstance(error, asyncio.CancelledError):
        return task is None or not task.cancelling()
    if isinstance(error, GeneratorExit):
        return task is not None  # else its coroutine is closed because the event loop has ended
    return not isinstance(error, KeyboardInterrupt)
