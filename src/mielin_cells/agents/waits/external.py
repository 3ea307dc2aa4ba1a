"""External waits, as authors write them: `approval = cells.external("approval", bool)` inside a turn waits for somebody outside.

The wait is a record of the agent's log.  So it outlasts moves and restarts, and whoever has its token ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from mielin_cells.agents.context import turn
from mielin_cells.agents.handler import Bound
from mielin_cells.agents.reference import agent_id
from mielin_cells.agents.step import NAME_CHARS_MAX, Results, results_of_kind
from mielin_cells.errors import NotInTurn, UsageError, from_wire
from mielin_cells.log.message import decode_answer
from mielin_cells.settings import check_timeout

P = ParamSpec("P")
T = TypeVar("T")


class External(Generic[T]):
    """A wait whose outcome comes from outside.  `await wait.open()` gives its token; `await wait` gives the outcome.

    >>> tokens = asyncio.Queue()
    >>> class Expense(cells.Agent):
    ...     @cells.handler
    ...     async def buy(self, what: str) -> str:
    ...         approval = cells.external("approval", bool)
    ...         tokens.put_nowait(await approval.open())  # here you would send a mail
    ...         return f"{what}: {'bought' if await approval else 'not bought'}"
    ...
    >>> expense = await cluster.spawn(Expense, "expense")
    >>> buying = asyncio.create_task(expense.buy("a ladder"))
    >>> (await cluster.resolve(await tokens.get(), True)).accepted
    True
    >>> await buying
    'a ladder: bought'
    """

    def __init__(self, running: Any, name: str, kind: Any, deadline: float | None) -> None:
        self._running = running
        self.name = name
        self.deadline = deadline
        self.kind = kind
        self.results: Results = results_of_kind(kind, f"wait {name!r}")
        self.opened: Any = None
        """What the turn knows of it, once it is open."""

    async def open(self) -> str:
        """Opens the wait, unless it is open, and returns its token: a text that nobody can guess.

        Guarantees: the wait is in the log before this returns, so the token may be given out.  A turn that runs again gets the
        same token.  The deadline runs from here on.
        """
        token: str = await self._running.open_wait(self)
        return token

    @property
    def token(self) -> str:
        """Raises `UsageError` before the wait is open."""
        if self.opened is None:
            raise UsageError(f"Wait {self.name!r} is not open yet, and has no token: `await wait.open()` gives it.")
        token: str = self.opened.token
        return token

    def __await__(self) -> Generator[Any, Any, T]:
        return self._outcome().__await__()

    async def _outcome(self) -> T:
        answer = decode_answer(await self._running.wait_outcome(self))
        if answer.error is not None:
            raise from_wire(*answer.error)
        value: T = self.results.load(answer.result or b"")
        return value

    def __repr__(self) -> str:
        return f"<external wait {self.name!r}>"


@overload
def external(name: str, kind: type[T], /, *, deadline: float | None = None) -> External[T]: ...
@overload
def external(name: str, /, *, deadline: float | None = None) -> External[Any]: ...
@overload
def external(
    name: str, /, *, then: Bound[Concatenate[Any, P], Any], otherwise: Bound[Concatenate[str, P], Any] | None = None,
    deadline: float | None = None,
) -> Callable[P, Coroutine[Any, Any, str]]: ...  # fmt: skip
@overload
def external(name: str, kind: Any, /, *, deadline: float | None = None) -> External[Any]: ...
def external(
    name: str, kind: Any = Any, /, *, then: Any = None, otherwise: Any = None, deadline: float | None = None,
) -> Any:  # fmt: skip
    """Waits inside a turn for somebody outside: `approved = await cells.external("approval", bool)`.

    It waits for ever, or for `deadline` seconds.

    `await wait.open()` gives the token first, for a mail or a page.  Whoever has it ends the wait, by `cluster.resolve(token, value)`
    or `reject(token, reason)`, or with `mielin resolve` and `mielin reject`.  Tokens of open waits are also in `mielin show`.
    `kind` is the type that the value must have, any plain data by default; whoever gives another one is told, and the wait goes on.

    Guarantees: the wait moves with the agent, and outlasts restarts of everything.  The first outcome that is recorded stands,
    whether it is a value, a rejection or the deadline; a turn that runs again gets the same, also after an undo.
    While it waits, the agent takes no other message, but it can be read, moved and undone.  The turn's deadline rests.
    The deadline is measured by the store's clock, and rests for nothing.

    `cells.external("approval", then=self.approved)(order)` keeps no turn open: awaiting it gives the token, and the value arrives as a
    message, `approved(value, order)`.  If the wait is rejected, or its deadline passes, `otherwise` gets the reason and the
    same arguments; without `otherwise` that is a dead letter.

    Raises `NotInTurn` outside a turn, `UsageError` in a hook and in a handler that yields, `FieldRefused` for a type that cannot be
    stored; and where it is awaited `WaitRejected` and `WaitTimeout`.

        >>> class Expense(cells.Agent):
        ...     bought: list[str] = []
        ...
        ...     @cells.handler
        ...     async def request(self, what: str) -> str:
        ...         return await cells.external("approval", then=self.decided)(what)
        ...
        ...     @cells.handler
        ...     async def decided(self, yes: bool, what: str) -> None:
        ...         self.bought += [what] if yes else []
        ...
        ...     @cells.handler
        ...     async def read(self) -> list[str]:
        ...         return self.bought
        ...
        >>> expense = await cluster.spawn(Expense, "expense")
        >>> token = await expense.request("a ladder")
        >>> _ = await cluster.resolve(token, True)
        >>> while not (bought := await expense.read()):
        ...     await asyncio.sleep(0.01)
        ...
        >>> bought
        ['a ladder']
    """
    running: Any = turn.get()
    if running is None:
        raise NotInTurn(f"Wait {name!r}: external() means something only inside a handler of an agent.")
    check_timeout(deadline, f"Wait {name!r} of agent {running.id!r}", "deadline")
    if type(name) is not str or not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        raise UsageError(f"A wait of agent {running.id!r} has no name of 1 to {NAME_CHARS_MAX} printable characters.")
    if then is None:
        if otherwise is not None:
            raise UsageError(f"Wait {name!r} of agent {running.id!r}: `otherwise` goes with `then`.")
        return External(running, name, kind, deadline)
    return _later(running, name, then, otherwise, deadline)


def _later(running: Any, name: str, then: Any, otherwise: Any, deadline: float | None) -> Any:
    """A wait whose value arrives as a message."""
    for handler in (then, otherwise):
        if handler is not None and (not isinstance(handler, Bound) or agent_id(handler.__self__) != running.id):
            raise UsageError(
                f"Wait {name!r} of agent {running.id!r} was given {handler!r}; give a handler of the agent itself: then=self.approved."
            )
    other = "" if otherwise is None else otherwise.name

    def opening(*args: Any, **kwargs: Any) -> Any:
        return running.open_later(name, then.name, other, args, kwargs, deadline)

    return opening
