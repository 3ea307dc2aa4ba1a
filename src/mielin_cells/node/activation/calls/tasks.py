"""The tasks and timers of turns: each is known by the branch that makes it, and how many that has made before (rule T6).

A loop that runs agents makes tasks by `make_task` and timers by `Hooks`.  What is made outside of turns passes through unchanged.
"""

from __future__ import annotations

import asyncio
import collections.abc
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from types import CodeType, FrameType
from typing import Any, Protocol, TypeVar

from mielin_cells.agents.context import turn as current_turn

F = TypeVar("F", bound=Callable[..., Any])

_resuming: set[CodeType] = set()


def resumes(fn: F) -> F:
    """Marks a function that goes on with a handler's own code."""
    _resuming.add(fn.__code__)
    return fn


class TurnStopped(BaseException):
    """The turn was stopped to be run again elsewhere, or its owner lost the agent.  No handler can catch it as an Exception."""


PACKAGE = "mielin_cells."
USERS = ("mielin_cells.testing.", "mielin_cells.demo.")
"""Modules of the package that have agents, as any user's have."""


class Branch:
    """One line of a turn: its handler, or a task that another line has started."""

    __slots__ = ("calls", "path", "tasks", "timers")

    def __init__(self, path: tuple[int, ...] = ()) -> None:
        self.path = path
        self.tasks = 0
        """How many tasks it has started."""
        self.timers = 0
        self.calls: Counter[tuple[str, str]] = Counter()
        """How many of each kind and name it has made."""


class Branching(Protocol):
    """A turn, as far as its tasks and timers need it."""

    steps: int
    """Steps that its branches have taken."""

    @property
    def makes_branches(self) -> bool:
        """False while code of this package runs for the turn, and once the turn has ended."""

    @property
    def root(self) -> Branch: ...

    born: int
    """How many tasks it has started."""

    def started(self, task: BranchTask) -> None: ...
    def timer(self, timer: Timer) -> None: ...


class BranchTask(asyncio.Task[Any]):
    """A branch of a turn.  A set of them is walked in the order in which they were started, on every node."""

    def __init__(self, coro: Counted, of: Branching, branch: Branch, **options: Any) -> None:
        self.of = of
        self.branch = branch
        self._order = of.born
        of.born += 1
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._order

    def __eq__(self, other: object) -> bool:
        return self is other


class Counted(collections.abc.Coroutine[Any, Any, Any]):
    """A coroutine that counts its steps: a turn stands still if none of its branches takes one."""

    def __init__(self, coro: Coroutine[Any, Any, Any], of: Branching) -> None:
        self._coro = coro
        self._of = of

    @resumes
    def send(self, value: Any) -> Any:
        self._of.steps += 1
        return self._coro.send(value)

    @resumes
    def throw(self, *error: Any) -> Any:
        self._of.steps += 1
        return self._coro.throw(*error)

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Any:
        return self._coro.__await__()

    def __getattr__(self, name: str) -> Any:
        """What debuggers and `asyncio` ask of a coroutine."""
        return getattr(self._coro, name)


class Timer:
    """A timer that a branch has set, in the place of the loop's handle."""

    __slots__ = (
        "_callback",
        "_context",
        "_handle",
        "_has_fired",
        "_is_cancelled",
        "_when",
        "branch",
        "fired",
        "left",
        "n",
    )

    def __init__(self, branch: Branch, when: float, callback: Callable[[], object], context: Context) -> None:
        self.branch = branch
        self.n = branch.timers
        branch.timers += 1
        self._when = when
        self._callback = callback
        self._context = context
        self._handle: asyncio.TimerHandle | None = None
        self._is_cancelled = self._has_fired = False
        self.fired: Callable[[Timer], None] | None = None
        """What is done when the time has come; None: it fires."""
        self.left: Callable[[], object] | None = None
        """Called when it is cancelled."""

    def set(self, handle: asyncio.TimerHandle) -> None:
        self._handle = handle

    def due(self) -> None:
        if self.fired is not None:
            self.fired(self)
        else:
            self.fire()

    def fire(self) -> None:
        if self.is_open:
            self._has_fired = True
            _ = self._context.run(self._callback)

    def cancel(self) -> None:
        self._is_cancelled = True
        self.stop()
        if self.left is not None:
            self.left()

    def stop(self) -> None:
        """The loop no longer waits for it."""
        if self._handle is not None:
            self._handle.cancel()

    def cancelled(self) -> bool:
        return self._is_cancelled

    @property
    def is_open(self) -> bool:
        """It may still fire."""
        return not (self._is_cancelled or self._has_fired)

    def when(self) -> float:
        return self._when


def branch_of(turn: Branching) -> Branch:
    """The branch of a turn that runs now."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # in a thread
        return turn.root
    return task.branch if isinstance(task, BranchTask) and task.of is turn else turn.root


def makes_branches(turn: Any) -> bool:
    """True if a handler's own code makes a task or sets a timer in this turn, and not this package for it.

    What a step's call has in the place of a turn is none.  A task that inherits the turn from its starter does not belong to it.
    """
    return getattr(type(turn), "may_branch", False) and turn.makes_branches and _is_of_handler()


def _is_of_handler() -> bool:
    """True if the calls that have led here come from a handler, through no code of this package."""
    frame: FrameType | None = sys._getframe(3)
    while frame is not None:
        if frame.f_code in _resuming:
            return True
        name = frame.f_globals.get("__name__", "")
        if name.startswith(PACKAGE) and not name.startswith(USERS):
            return False
        frame = frame.f_back
    return False


class Hooks:
    """What a loop that runs agents does when tasks are made and timers are set.  An earlier task factory goes on for all else."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._factory: Any = loop.get_task_factory()
        self._call_at: Any = loop.call_at
        self._call_later: Any = loop.call_later
        self._loop = loop
        self._passes = False
        loop.set_task_factory(self.make_task)
        replaced: Any = loop
        replaced.call_at, replaced.call_later = self.call_at, self.call_later

    def make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Future[Any]:
        context = options.get("context")
        turn: Any = current_turn.get() if context is None else context.get(current_turn)
        if turn is not None and makes_branches(turn):
            parent = branch_of(turn)
            branch = Branch((*parent.path, parent.tasks))
            parent.tasks += 1
            task = BranchTask(Counted(coro, turn), turn, branch, loop=loop, **options)
            turn.started(task)
            return task
        if self._factory is not None:
            made: asyncio.Future[Any] = self._factory(loop, coro, **options)
            return made
        return asyncio.Task(coro, loop=loop, **options)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        turn: Any = current_turn.get()
        if turn is None or self._passes or not makes_branches(turn):
            return self._call_at(when, callback, *args, context=context)
        return self._set(turn, when, lambda: callback(*args), context)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        turn: Any = current_turn.get()
        if turn is None or self._passes or not makes_branches(turn):
            return self._call_later(delay, callback, *args, context=context)
        return self._set(turn, self._loop.time() + delay, lambda: callback(*args), context)

    def _set(self, turn: Branching, when: float, callback: Callable[[], object], context: Context | None) -> Timer:
        timer = Timer(branch_of(turn), when, callback, context or copy_context())
        turn.timer(timer)
        self._passes = True  # one of the loop's two methods may call the other
        try:
            timer.set(self._call_at(when, timer.due))
        finally:
            self._passes = False
        return timer


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Has the loop tell the tasks and timers of turns.  Repeating it is harmless."""
    known = getattr(loop.get_task_factory(), "__self__", None)
    if not isinstance(known, Hooks):
        _ = Hooks(loop)
