"""Supervision, as authors write it: `await cells.spawn(Worker, "w1", rate=3)` and `await cells.monitor(ref, self.on_down)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar, cast

from mielin_cells.agents.cluster import Spawning
from mielin_cells.agents.context import Turn, turn
from mielin_cells.agents.handler import Bound
from mielin_cells.agents.reference import Reference, agent_id, make_ref
from mielin_cells.agents.spec import check_is_agent, spec_of
from mielin_cells.errors import NotInTurn, UsageError
from mielin_cells.log.delta import born
from mielin_cells.log.family.notices import LINKED, UNWATCH, WATCH
from mielin_cells.log.family.tree import ON_FAILURE, WHEN_ENDED, Child, Down, Making, OnFailure, WhenEnded
from mielin_cells.log.ids import AgentId

P = ParamSpec("P")
A = TypeVar("A", bound=Reference)

LETTERS_MAX: Final = 1_000_000


async def spawn(make: Callable[P, A], id: str, /, *args: P.args, **state: P.kwargs) -> A:
    """Spawns an agent as a child of this one, and returns a reference once it exists.  To be called in a handler.

    This agent supervises it: if the child goes into ERROR it is restarted from its last committed state, as this class's
    `supervision` says.  When this agent is terminated, so is the child.  `cells.child(...)` gives other choices.

    Guarantees: the child is made once, whatever fails and however often the turn runs.  It is a child from then on, also if the
    turn fails or this agent is undone.  Parent and children know each other wherever they move.

    Raises `NameTaken` if there is an agent of this id that this call has not made; `StepFailed` if no node could make it within
    `step_timeout_s`: it is made as soon as one can.  Raises `NotInTurn`, and `UsageError` in a hook; `BadArguments`, `FieldRefused`.

        >>> class Line(cells.Agent):
        ...     @cells.handler
        ...     async def begin(self) -> int:
        ...         counter = await cells.spawn(Till, "counter")
        ...         return await counter.sell(5)
        ...
        >>> line = await cluster.spawn(Line, "line")
        >>> await line.begin()
        5
        >>> (await cluster.show("counter")).parent
        'line'
    """
    return await child().spawn(make, id, *args, **state)


def child(
    *, on_failure: OnFailure = "restart", dead_letters: int = 0, when_parent_ends: WhenEnded = "terminate",
    node: str | None = None,
) -> Spawning:  # fmt: skip
    """How a child is to be supervised: `await cells.child(on_failure="stop").spawn(Worker, "w1")`.

    `on_failure`: restart: from its last committed state, with `on_arrive`.  stop: it stays in ERROR, or is suspended, until an
    operator resumes it.  escalate: this agent goes into ERROR as well, which its own parent is told.
    `dead_letters`: each time that so many messages of the child have become dead letters, that counts as a failure; 0: never.
    `when_parent_ends`: terminate, suspend or keep the child when this agent is terminated.
    `node`: where to make it; by default on the node with the fewest agents.

    Raises `UsageError` for another value.

        >>> class Line(cells.Agent):
        ...     @cells.handler
        ...     async def begin(self) -> int:
        ...         archive = await cells.child(on_failure="stop", when_parent_ends="keep").spawn(Till, "archive")
        ...         return await archive.sell(5)
        ...
        >>> line = await cluster.spawn(Line, "line")
        >>> await line.begin()
        5
    """
    for option, value, allowed in (
        ("on_failure", on_failure, ON_FAILURE),
        ("when_parent_ends", when_parent_ends, WHEN_ENDED),
    ):
        if value not in allowed:
            raise UsageError(f"{option} = {value!r}; there are {', '.join(map(repr, allowed))}.")
    if type(dead_letters) is not int or not 0 <= dead_letters <= LETTERS_MAX:
        raise UsageError(f"dead_letters = {dead_letters!r} is not a whole number from 0 (never) to {LETTERS_MAX:,}.")
    name: Any = node  # the author may not check types
    if name is not None and not (isinstance(name, str) and name and name.isprintable()):
        raise UsageError(f"node = {node!r} can be the name of no node.")
    return _Spawning(on_failure, dead_letters, when_parent_ends, node or "")


class _Spawning:
    def __init__(self, on_failure: OnFailure, letters: int, when_ended: WhenEnded, node: str) -> None:
        self._on_failure = on_failure
        self._letters = letters
        self._when_ended = when_ended
        self._node = node

    async def spawn(self, make: Callable[P, A], id: str, /, *args: P.args, **state: P.kwargs) -> A:
        running = _running("spawn")
        cls = cast("type[A]", make)
        check_is_agent(cls)
        spec, agent = spec_of(cls), str(AgentId(id))
        if args:
            raise UsageError(
                f"State of a new {spec.name} is given by name, as field=value; {len(args)} values have none."
            )
        initial = spec.initial(**state)
        made = Making(spec.version, initial, born(initial), self._node)
        await running.spawn_child(Child(agent, spec.name, b"", self._on_failure, self._when_ended, self._letters, made))
        return make_ref(cls, agent)


async def monitor(ref: Reference, handler: Bound[Any, Any], /) -> None:
    """Has this agent told, by a message to `handler` with a `cells.Down`, when the other agent goes into ERROR or ends.

    It asks the other agent, so it waits for that agent's running turn; once it returns, the other agent's log says who is told.

    Guarantees: each failure from then on is told once, in order, also while either agent moves or has no node.
    A handler that is there already is not told twice.  An undo of either agent does not end it.

    Raises what an ask raises: `NoSuchAgent`, `AgentTerminated`, `AskTimeout`, `AskCycle` if the other agent waits for this turn;
    `AgentInError` if it is in ERROR: then it counts from its next failure on.  Raises `UsageError` for a handler of another agent
    or one that does not take a `Down`.

        >>> class Office(cells.Agent):
        ...     news: list[str] = []
        ...
        ...     @cells.handler
        ...     async def look_after(self, till: str) -> None:
        ...         await cells.monitor(cells.this().cluster.get(Till, till), self.on_down)
        ...
        ...     @cells.handler
        ...     async def on_down(self, down: cells.Down) -> None:
        ...         self.news.append(f"{down.agent} {down.kind}")
        ...
        ...     @cells.handler
        ...     async def read(self) -> list[str]:
        ...         return self.news
        ...
        >>> office = await cluster.spawn(Office, "office")
        >>> await office.look_after("till-1")
        >>> await cluster.terminate(till)
        >>> while not (news := await office.read()):
        ...     await asyncio.sleep(0.01)
        ...
        >>> news
        ['till-1 terminated']
    """
    running: Any = _running("monitor")
    await running.ask(ref, WATCH, _own(running, handler), {}, None, None)


async def unmonitor(ref: Reference, handler: Bound[Any, Any], /) -> None:
    """Ends what `monitor` began, with the commit of this turn.  Notices that are on their way still come.

    >>> class Office(cells.Agent):
    ...     @cells.handler
    ...     async def begin(self) -> None:
    ...         await cells.monitor(cells.this().cluster.get(Till, "till-1"), self.on_down)
    ...
    ...     @cells.handler
    ...     async def end(self) -> None:
    ...         await cells.unmonitor(cells.this().cluster.get(Till, "till-1"), self.on_down)
    ...
    ...     @cells.handler
    ...     async def on_down(self, down: cells.Down) -> None: ...
    ...
    >>> office = await cluster.spawn(Office, "office")
    >>> await office.begin()
    >>> await office.end()
    """
    running: Any = _running("unmonitor")
    await running.tell(ref, UNWATCH, _own(running, handler)[:1], {}, None)


async def link(ref: Reference, /) -> None:
    """Links this agent with another: if one of them goes into ERROR, so does the other.  That one of them ends is no failure.

    Guarantees and errors are those of `monitor`.  Agents that fail for each other do so once: what follows from a failure of an
    agent's own does not come back to it.

        >>> class Printer(cells.Agent):
        ...     @cells.handler
        ...     async def begin(self) -> None:
        ...         await cells.link(cells.this().cluster.get(Till, "till-1"))
        ...
        >>> _ = till  # it exists
        >>> printer = await cluster.spawn(Printer, "printer")
        >>> await printer.begin()
    """
    running: Any = _running("link")
    if agent_id(ref) == running.id:
        raise UsageError(f"Agent {running.id!r} cannot be linked with itself.")
    await running.ask(ref, WATCH, (LINKED, "down"), {}, None, None)
    running.link_to(agent_id(ref))


def _own(running: Turn, handler: Any) -> tuple[str, str]:
    """The handler and the name of its parameter."""
    if not isinstance(handler, Bound) or agent_id(handler.__self__) != running.id:
        raise UsageError(
            f"Agent {running.id!r} monitors with {handler!r}; give a handler of its own: monitor(ref, self.on_down)."
        )
    cls: Any = type(handler.__self__)
    known = spec_of(cls).handler(handler.name)
    parameters = list(known.parameters.items())
    if not parameters or parameters[0][1] is not Down or known.required - {parameters[0][0]}:
        raise UsageError(f"{known.path} cannot be told of failures: its only required parameter is a cells.Down.")
    return handler.name, parameters[0][0]


def _running(what: str) -> Any:
    running = turn.get()
    if running is None:
        raise NotInTurn(
            f"cells.{what} means something only inside a handler of an agent; outside there is cluster.spawn."
        )
    return running
