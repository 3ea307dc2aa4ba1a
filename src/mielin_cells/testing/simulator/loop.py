"""An asyncio event loop in virtual time, and the processes that stop, go on and die in it.

Production code runs unchanged: `asyncio.sleep(30)` takes no time, two runs of the same code take the same steps, and no
run touches a socket, a thread or a wall clock.  A `Process` is all code that descends from its `start`: it can be
paused at any step as by SIGSTOP, and killed as by `kill -9`, after which not even a `finally` block of it takes a step.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
import random
import weakref
from asyncio.base_events import BaseEventLoop
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from mielin_cells.errors import never

T = TypeVar("T")

STEPS_MAX = 5_000_000
"""Callbacks in one run.  A run that needs more is spinning without letting time pass."""

CANCEL_ROUNDS = 10
"""How often a task that is left over at the end is cancelled before the run fails."""


class Deadlock(RuntimeError):
    """Nothing is ready, no timer is set, and the main coroutine is not done: it would wait for ever."""


class Livelock(RuntimeError):
    """The run took more than its number of steps."""


class Killed(RuntimeError):
    """The process that was to give a result is dead."""


class Process:
    """Code that is paused and dies together: the tasks and callbacks that descend from `start` or run in `context`."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.is_paused = False
        self.context = contextvars.copy_context()
        self.context.run(_process.set, self)
        self._loop = loop
        self._held: list[_Handle] = []
        self._waiters: dict[asyncio.Future[Any], None] = {}
        loop.processes.append(self)

    def start(self, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Runs `coro` as a task of this process.  The task never ends if the process is killed before."""
        task: asyncio.Task[T] = self._loop.create_task(coro, context=self.context.copy())
        return task

    async def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Runs `coro` in this process and gives its result to another one.  Raises `Killed` if the process dies."""
        if self.is_dead:
            coro.close()
            raise Killed(f"Process {self.name} is dead.")
        done: asyncio.Future[None] = self._loop.create_future()
        self._waiters[done] = None
        task = self.start(coro)

        def ended(_: object) -> None:
            if not done.done():
                done.set_result(None)

        task.add_done_callback(ended, context=_outside.copy())
        try:
            await done
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            del self._waiters[done]
        return task.result()

    def pause(self) -> None:
        """As SIGSTOP: what becomes due (steps of tasks, timers, deliveries) is held, in order, until `resume`."""
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        held, self._held = self._held, []
        self._loop.requeue(held)

    def kill(self) -> None:
        """As `kill -9`: no code of this process runs any more.  Repeating it is harmless."""
        if self.is_dead:
            return
        self.is_dead = True
        self._held.clear()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(Killed(f"Process {self.name} was killed."))

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Its tasks that are not done, oldest first."""
        return [task for task in self._loop.tasks if task.process is self]

    def takes(self, handle: _Handle) -> bool:
        """Whether the callback may run now; if the process is paused it is kept for later."""
        if self.is_dead:
            return False
        if self.is_paused:
            self._held.append(handle)
            return False
        return True


_outside = contextvars.copy_context()
_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class _Handle(asyncio.TimerHandle):
    """A callback, with its context; the fewest steps that asyncio can do with."""

    __slots__ = ("args", "callback", "context")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], context: contextvars.Context, when: float):
        self.callback: Callable[..., Any] | None = callback
        self.args = args
        self.context = context
        self._when = when

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.callback!r} at {self._when:.6f} s>"

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self.callback, self.args = None, ()

    def cancelled(self) -> bool:
        return self.callback is None


class _Future(asyncio.Future[Any]):
    process: Process | None = None


class _Task(asyncio.Task[Any]):
    """Hashed by its number: what iterates a set of tasks, as asyncio does, does so in one order for each seed."""

    process: Process | None = None

    def __init__(self, coro: Any, *, loop: VirtualLoop, name: Any, context: contextvars.Context | None) -> None:
        loop.made += 1
        self._number = loop.made
        super().__init__(coro, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self._number


def _quiet(task: Any) -> None:
    """No report that it was freed before it was done."""
    task._log_destroy_pending = False


class VirtualLoop(BaseEventLoop):
    """Runs callbacks in asyncio's order and, when none is ready, moves its clock to the next timer at once."""

    _ready: deque[_Handle]
    _stopping: bool
    _closed: bool
    _asyncgens: weakref.WeakSet[Any]

    def __init__(self, steps_max: int = STEPS_MAX) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, _Handle]] = []
        self._count = 0
        """Timers so far: of two for one instant the earlier made comes first."""
        self._steps_left = steps_max
        self.made = 0
        """Tasks so far."""
        self.tasks: dict[_Task, None] = {}
        self.processes: list[Process] = []
        self.unhandled: list[Exception] = []
        """What nobody has caught: exceptions of callbacks, and of tasks whose result nobody has asked for."""
        self._generators: list[tuple[Any, Process | None]] = []
        self.set_exception_handler(self._collect)
        self.set_task_factory(self.make_task)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    # ---- what there is no such thing as ----------------------------------------------------------------------

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        raise RuntimeError("There are no threads in virtual time: code under simulation must not use an executor.")

    def _write_to_self(self) -> None:
        """Wakes the selector in other loops; here nothing sleeps."""

    def _process_events(self, event_list: Any) -> None:
        """Nothing is polled."""

    # ---- running ---------------------------------------------------------------------------------------------

    def create_task(self, coro: Any, *, name: Any = None, context: contextvars.Context | None = None) -> Any:
        self._check_closed()  # type: ignore[attr-defined]
        # A turn's tasks are made by what the nodes have hooked into the loop; for all others it comes back to `make_task`.
        task: Any = (self.get_task_factory() or self.make_task)(self, coro, name=name, context=context)  # type: ignore[call-arg]
        task.process = _process.get() if context is None else context.get(_process)
        self.tasks[task] = None
        task.add_done_callback(self._forget, context=_outside)
        return task

    @staticmethod
    def make_task(
        loop: Any, coro: Any, *, name: Any = None, context: contextvars.Context | None = None
    ) -> asyncio.Future[Any]:
        return _Task(coro, loop=loop, name=name, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        future = _Future(loop=self)
        future.process = _process.get()
        return future

    def requeue(self, handles: list[_Handle]) -> None:
        self._ready.extend(handles)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if self._closed:
            raise RuntimeError("Event loop is closed")
        handle = _Handle(callback, args, context if context is not None else contextvars.copy_context(), 0.0)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment] # there are no threads

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        if self._closed:
            raise RuntimeError("Event loop is closed")
        handle = _Handle(callback, args, context if context is not None else contextvars.copy_context(), when)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _forget(self, task: Any) -> None:
        self.tasks.pop(task, None)

    def _run_once(self) -> None:
        """Runs until the loop is told to stop, which asyncio looks for behind each call."""
        ready, timers, pop = self._ready, self._timers, heapq.heappop
        while True:
            while timers and timers[0][2].callback is None:
                pop(timers)
            if not ready and not self._stopping:
                if not timers:
                    raise Deadlock(
                        f"At {self._now:.6f} s nothing can happen any more, but the main coroutine is not done."
                    )
                self._now = max(self._now, timers[0][0])
            while timers and timers[0][0] <= self._now:
                ready.append(pop(timers)[2])
            count = len(ready)
            self._steps_left -= count
            if self._steps_left < 0:
                raise Livelock(f"The run has used up its steps at {self._now:.6f} s: something spins.")
            for _ in range(count):
                handle = ready.popleft()
                callback = handle.callback
                if callback is None:
                    continue
                process = handle.context.get(_process)
                if process is None or process.takes(handle):
                    try:
                        handle.context.run(callback, *handle.args)
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:  # noqa: BLE001 - as asyncio's own handles: it is reported
                        self.call_exception_handler(
                            {"message": f"callback {callback!r} raised", "exception": error, "handle": handle}
                        )
            if self._stopping:
                return

    # ---- the end ---------------------------------------------------------------------------------------------

    def _collect(self, _: Any, context: dict[str, Any]) -> None:
        future = context.get("future") or context.get("task")
        process = getattr(future, "process", None)
        if process is not None and process.is_dead:
            return  # nobody hears what a dead process would have said
        error = context.get("exception")
        if not isinstance(error, Exception):
            error = RuntimeError(f"{context.get('message')}: {future!r}")
        self.unhandled.append(error)

    def _asyncgen_firstiter_hook(self, agen: Any) -> None:
        """Keeps every generator until the end, so that no step depends on when garbage is collected."""
        self._generators.append((agen, _process.get()))
        super()._asyncgen_firstiter_hook(agen)  # type: ignore[misc]

    def finish(self) -> None:
        """Ends what is left: living tasks by cancelling them, dead ones without a step.  The loop is closed after it.

        Raises `RuntimeError` if a task cannot be cancelled.
        """
        for process in self.processes:
            if process.is_paused:
                process.kill()
        self._steps_left = max(self._steps_left, STEPS_MAX // 10)
        try:
            self._cancel_left()
            self.run_until_complete(self._bury())
            for agen, its in self._generators:
                if its is not None and its.is_dead:
                    self._asyncgens.discard(agen)  # one that stands still in a `finally` cannot be closed
            self.run_until_complete(self.shutdown_asyncgens())
        finally:
            self.close()
            self._generators.clear()
        gc.collect()  # exceptions that nobody has asked for are reported when their task is freed

    def _living(self) -> list[_Task]:
        return [task for task in self.tasks if task.process is None or not task.process.is_dead]

    def _cancel_left(self) -> None:
        for _ in range(CANCEL_ROUNDS):
            tasks = self._living()
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            self.run_until_complete(asyncio.wait(tasks, timeout=1))
        if tasks := self._living():
            for task in tasks:
                _quiet(task)
            raise RuntimeError(f"Tasks that do not end when they are cancelled: {tasks!r}")

    async def _bury(self) -> None:
        """Closes the coroutines of dead processes.  What their `finally` blocks still try has no effect on anybody."""
        while dead := [task for task in self.tasks if task.process is not None and task.process.is_dead]:
            for task in dead:
                self._forget(task)
                _quiet(task)
                if task.process is None:
                    raise never("task.process is not None does not hold")
                context, coro = task.process.context.copy(), task.get_coro()
                for _ in range(CANCEL_ROUNDS):
                    with suppress(BaseException):  # a dead process fails unheard
                        context.run(coro.close)
                        break
                    # it raised, or awaited in a `finally`: close it there


def run(main: Coroutine[Any, Any, T], *, seed: int = 0, steps_max: int = STEPS_MAX) -> T:
    """Runs `main` to its end in virtual time and gives its result; tasks it leaves behind are cancelled.

    `seed` seeds the `random` module for the run; its state is put back afterwards.  Raises what `main` raises; else an
    `ExceptionGroup` of the exceptions that nobody has caught; `Deadlock`, `Livelock` if it does not come to an end.
    """
    loop = VirtualLoop(steps_max)
    state = random.getstate()
    random.seed(seed)
    try:
        try:
            result = loop.run_until_complete(main)
        finally:
            loop.finish()
    finally:
        random.setstate(state)
    if loop.unhandled:
        raise ExceptionGroup("nobody has caught", loop.unhandled)
    return result
