"""Durable timers, as authors write them: `cells.after(30).remind("tea")` inside a turn sends that message to the agent itself, later.

A timer is part of what the turn commits.  When it is due its message goes into the agent's own inbox, in one commit with the timer's
end, so it is sent once, whoever owns the agent by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeAlias, overload

from mielin_cells.agents.context import Turn, turn
from mielin_cells.agents.handler import Bound
from mielin_cells.agents.reference import agent_id
from mielin_cells.agents.times.cron import check_cron
from mielin_cells.errors import NotInTurn, UsageError

P = ParamSpec("P")

CatchUp: TypeAlias = Literal["one", "all", "none"]
"""What `every` sends for the firings that were missed while no node ran the agent: one message for all, one for each, or none."""

SECONDS_MAX = 1e9
EVERY_S_MIN = 0.001
"""The shortest period of `every`: each firing is a message and a turn."""
ID_CHARS_MAX = 128


class Later:
    """A time.  Calling a handler of it, by name, sets the timer."""

    __slots__ = ("_set",)

    def __init__(self, set_timer: Callable[[str, tuple[Any, ...], dict[str, Any]], str]) -> None:
        self._set = set_timer

    def __getattr__(self, name: str) -> Callable[..., str]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self._set(name, args, kwargs)


@overload
def after(seconds: float, /, *, id: str | None = None) -> Any: ...
@overload
def after(seconds: float, handler: Bound[P, Any], /, *, id: str | None = None) -> Callable[P, str]: ...
def after(seconds: float, handler: Bound[P, Any] | None = None, /, *, id: str | None = None) -> Any:
    """Sends the agent a message of its own after `seconds`: `cells.after(30).remind("tea")`.

    `cells.after(30, self.remind)("tea")` is the same, and typed.  Both return the timer's id, for `cancel`.  The timer is set with the
    commit of the turn; a turn that fails sets none.  A timer of the same `id` is replaced.

    Guarantees: the message is sent once, and not early.  The timer moves with the agent, and survives the loss of its node.  If it was
    due while no node ran the agent, or while the agent was suspended, the message is sent as soon as the agent runs.
    Not guaranteed: punctuality.  After a move or a restart, "not early" is by the clock of the new node.

    Raises `NotInTurn` outside a turn, `NoSuchHandler`, `BadArguments`, and `UsageError` for a time out of range or too many timers.

        >>> class Kettle(cells.Agent):
        ...     rung: list[str] = []
        ...
        ...     @cells.handler
        ...     async def boil(self, seconds: float) -> None:
        ...         cells.after(seconds, self.ring)("tea")
        ...
        ...     @cells.handler
        ...     async def ring(self, what: str) -> None:
        ...         self.rung.append(what)
        ...
        ...     @cells.handler
        ...     async def read(self) -> list[str]:
        ...         return self.rung
        ...
        >>> kettle = await cluster.spawn(Kettle, "kettle")
        >>> await kettle.boil(0.01)
        >>> while not (rung := await kettle.read()):
        ...     await asyncio.sleep(0.01)
        ...
        >>> rung
        ['tea']
    """
    return _later(seconds, False, "one", id, handler)


@overload
def every(seconds: float, /, *, id: str | None = None, catch_up: CatchUp = "one") -> Any: ...
@overload
def every(
    seconds: float, handler: Bound[P, Any], /, *, id: str | None = None, catch_up: CatchUp = "one"
) -> Callable[P, str]: ...
def every(
    seconds: float, handler: Bound[P, Any] | None = None, /, *, id: str | None = None, catch_up: CatchUp = "one"
) -> Any:
    """As `after`, again and again until it is cancelled: `cells.every(60).sweep()`.

    Firings are `seconds` apart, however long the turns take.  `catch_up` says what is sent for the firings that were missed while no
    node ran the agent: "one" message for all of them, "all" of them (at most 10,000), or "none".

        >>> class Clock(cells.Agent):
        ...     ticks: int = 0
        ...
        ...     async def on_start(self) -> None:
        ...         cells.every(0.01, self.tick, id="clock")()
        ...
        ...     @cells.handler
        ...     async def tick(self) -> None:
        ...         self.ticks += 1
        ...         if self.ticks == 3:
        ...             cells.cancel("clock")
        ...
        ...     @cells.handler
        ...     async def read(self) -> int:
        ...         return self.ticks
        ...
        >>> clock = await cluster.spawn(Clock, "clock")
        >>> while await clock.read() < 3:
        ...     await asyncio.sleep(0.01)
        ...
        >>> await clock.read() >= 3
        True
    """
    _check_catch_up(catch_up)
    return _later(seconds, True, "".join(catch_up), id, handler)  # plain text: it is in a record


@overload
def cron(expression: str, /, *, tz: str = "UTC", id: str | None = None, catch_up: CatchUp = "one") -> Any: ...
@overload
def cron(
    expression: str, handler: Bound[P, Any], /, *, tz: str = "UTC", id: str | None = None, catch_up: CatchUp = "one"
) -> Callable[P, str]: ...
def cron(
    expression: str,
    handler: Bound[P, Any] | None = None,
    /,
    *,
    tz: str = "UTC",
    id: str | None = None,
    catch_up: CatchUp = "one",
) -> Any:
    """As `every`, at the times of a cron expression in a time zone: `cells.cron("0 6 * * *", tz="Europe/Zurich").report()`.

    The five fields are minute, hour, day of the month, month, and day of the week; with six, the first is the second.  Lists, ranges,
    steps, names (MON, JAN), `L` for the last day and `MON#2` for the second Monday are understood.  A hook may set it each time
    the agent arrives: while it is set the same, it keeps its next time, so that what was missed meanwhile is made up for.

    When clocks are put forward, a time that does not exist is taken right after the gap.  When they are put back, a time of a fixed
    hour comes once, the first time; with a star in the minute or the hour, all of them come, as time passes.

    Raises `CronInvalid` with the column of what is wrong, or for an unknown time zone, and what `after` raises.

        >>> class Report(cells.Agent):
        ...     async def on_arrive(self) -> None:
        ...         cells.cron("0 6 * * MON-FRI", self.write, tz="Europe/Zurich", id="daily")()
        ...
        ...     @cells.handler
        ...     async def write(self) -> None: ...
        ...
        ...     @cells.handler
        ...     async def stop(self) -> bool:
        ...         return cells.cancel("daily")
        ...
        >>> report = await cluster.spawn(Report, "report")
        >>> await report.stop()  # there was a timer of this id
        True
    """
    _check_catch_up(catch_up)
    running = _running()
    check_cron(expression, tz)
    _check_id(running, id)
    if handler is not None:
        _own(running, handler)

    def set_timer(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return running.set_timer(name, args, kwargs, 0.0, 0.0, "".join(catch_up), id, "".join(expression), "".join(tz))

    if handler is None:
        return Later(set_timer)
    return lambda *args, **kwargs: set_timer(handler.name, args, kwargs)


def cancel(id: str, /) -> bool:
    """Removes a timer of the agent, with the commit of this turn.  Returns False if the agent has no timer of this id.

    A message that the timer has already sent is not taken back.

        >>> class Kettle(cells.Agent):
        ...     @cells.handler
        ...     async def boil(self) -> tuple[bool, bool]:
        ...         timer = cells.after(60, self.ring)()
        ...         return cells.cancel(timer), cells.cancel(timer)
        ...
        ...     @cells.handler
        ...     async def ring(self) -> None: ...
        ...
        >>> kettle = await cluster.spawn(Kettle, "kettle")
        >>> await kettle.boil()
        (True, False)
    """
    return _running().cancel_timer(id)


def _later(seconds: float, repeats: bool, catch_up: str, id: str | None, handler: Bound[P, Any] | None) -> Any:
    running = _running()
    first = EVERY_S_MIN if repeats else 0
    if type(seconds) not in (int, float) or not first <= seconds <= SECONDS_MAX:
        raise UsageError(
            f"A timer of agent {running.id!r} in {seconds!r} seconds is out of range: {first:g} to {SECONDS_MAX:g}."
        )
    _check_id(running, id)
    if handler is not None:
        _own(running, handler)

    def set_timer(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        return running.set_timer(name, args, kwargs, float(seconds), float(seconds) if repeats else 0.0, catch_up, id)

    if handler is None:
        return Later(set_timer)
    return lambda *args, **kwargs: set_timer(handler.name, args, kwargs)


def _check_catch_up(catch_up: str) -> None:
    if catch_up not in ("one", "all", "none"):
        raise UsageError(f'catch_up = {catch_up!r}; there are "one", "all" and "none".')


def _check_id(running: Turn, id: str | None) -> None:
    if id is not None and (type(id) is not str or not 0 < len(id) <= ID_CHARS_MAX or not id.isprintable()):
        raise UsageError(f"A timer of agent {running.id!r} has no id of 1 to {ID_CHARS_MAX} printable characters.")


def _own(running: Turn, handler: Any) -> None:
    """Raises `UsageError` unless it is a handler of the agent whose turn runs: a timer is a message of an agent to itself."""
    if not isinstance(handler, Bound):
        raise UsageError(
            f"A timer of agent {running.id!r} was given {handler!r}; give a handler of the agent: after(30, self.remind)(...)."
        )
    if agent_id(handler.__self__) != running.id:
        raise UsageError(
            f"A timer of agent {running.id!r} was given {handler!r}, a handler of another agent.  A timer is a message of an agent "
            f"to itself: write a handler of its own that tells {handler.__self__!r}, and give that."
        )


def _running() -> Turn:
    running = turn.get()
    if running is None:
        raise NotInTurn("A timer is set and cancelled inside a handler or a hook of an agent.")
    return running
