"""What authors write: `Agent`, `handler`, `upgrade`; and what they hold: references.

A class that derives from `Agent` serves twice.  A *live* instance is made by the owner and bound to stored state
(`core.cell`); a *reference* is a value, a name of the agent, through which its handlers are asked.  Annotated names are
state; un-annotated and `_private` attributes are not, and do not move.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    dataclass_transform,
    overload,
)

from mielin_cells.core.ids import AgentId
from mielin_cells.core.policy import DEFAULT, Policy
from mielin_cells.core.settings import check_timeout
from mielin_cells.errors import FieldRefused, IsReference, NotConnected, NotInTurn, UsageError

if TYPE_CHECKING:
    from mielin_cells.core.cell import Cell
    from mielin_cells.core.cluster import Cluster
    from mielin_cells.core.spec import HandlerSpec, Spec
    from mielin_cells.core.step import Retry

LABEL_CHARS_MAX = 128
"""Of a call's label: it is in the log with the ask."""

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
A = TypeVar("A", bound="Agent")

classes: dict[str, type[Agent]] = {}
"""Every agent class of this process by its name on the wire; a later definition of a name wins."""


class Caller(Protocol):
    """What carries calls: a client outside, the turn inside."""

    def ask(
        self,
        agent: str,
        spec: Spec,
        handler: HandlerSpec,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        id: str | None,
    ) -> Coroutine[Any, Any, Any]:
        """Encodes, sends, waits and decodes, all of it in the one coroutine: each that is awaited in another costs."""

    def tell(
        self, agent: str, spec: Spec, handler: HandlerSpec, args: bytes, id: str | None
    ) -> Coroutine[Any, Any, None]: ...


class Turn(Protocol):
    """The turn that runs: what `cells.this()` gives."""

    @property
    def id(self) -> str:
        """The agent's id."""

    @property
    def node(self) -> str:
        """The node it runs on."""

    @property
    def cluster(self) -> Cluster: ...

    @property
    def message(self) -> str:
        """The handler (or hook) that runs."""

    @property
    def caller(self) -> Caller: ...

    @property
    def number(self) -> int:
        """The number of the message among those of its sender to this agent; 0 in a hook."""

    @property
    def corrects(self) -> int:
        """The number of an earlier message that this one stands in for, sent because its sender was rolled back; else 0."""

    @property
    def idempotency_key(self) -> str:
        """Inside the call of a durable step: the same text whenever this step's call is made again."""

    def migrate(self, to: str | None = None) -> None:
        """Moves this agent once the turn is committed.  Raises `UsageError` for what cannot be a node's name."""

    def set_timer(
        self, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float, period: float, catch_up: str,
        id: str | None,
    ) -> str:  # fmt: skip
        """What `cells.after` and `cells.every` do."""

    def cancel_timer(self, id: str) -> bool:
        """What `cells.cancel` does."""

    async def run_step(self, name: str, call: Any, args: tuple[Any, ...], retry: Retry, timeout: float | None) -> Any:
        """What `cells.step` does."""


turn: ContextVar[Turn | None] = ContextVar("mielin_cells_turn", default=None)
current: ContextVar[Caller | None] = ContextVar("mielin_cells_caller", default=None)


def this() -> Turn:
    """The turn that runs.  Raises `NotInTurn` outside handlers and hooks."""
    running = turn.get()
    if running is None:
        raise NotInTurn("this() means something only inside a handler or a hook of an agent.")
    return running


class Bound(Generic[P, R_co]):
    """A handler of one agent.  Calling it asks and waits for the answer; `tell` sends durably without waiting."""

    __slots__ = ("_handler", "_id", "_obj", "_timeout")

    def __init__(
        self, handler: Handler[P, R_co], obj: Agent, timeout: float | None = None, id: str | None = None
    ) -> None:
        self._handler = handler
        self._obj = obj
        self._timeout = timeout
        self._id = id

    @property
    def name(self) -> str:
        return self._handler.name

    def options(self, *, timeout: float | None = None, id: str | None = None) -> Bound[P, R_co]:
        """The same handler with options: seconds to wait for an answer, and a label.

        The label is in the error of an ask without an answer, and in dead letters' lists of asks; it changes nothing else.
        Raises `UsageError` for a timeout or a label that cannot be.
        """
        check_timeout(timeout, f"A call of {self._handler.name}")
        if id is not None and (type(id) is not str or not 0 < len(id) <= LABEL_CHARS_MAX or not id.isprintable()):
            raise UsageError(
                f"A call of {self._handler.name} has a label that cannot be: 1 to {LABEL_CHARS_MAX} printable characters."
            )
        return Bound(self._handler, self._obj, timeout, id)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """Asks, and returns the handler's result.

        Guarantees: the handler takes effect at most once, also if the agent moves or its node dies meanwhile.
        Raises `HandlerFailed` if it raised, `AskTimeout` without an answer in time (it may still take effect),
        `NoSuchAgent`, `AgentTerminated`, `WrongClass`, `BadArguments`, `InboxFull`.
        """
        obj = self._obj
        values = obj.__dict__
        if values["_cell"] is not None:  # inside the agent itself: a plain call
            return self._handler.fn(obj, *args, **kwargs)
        spec, handler = self._handler.routes.get(type(obj)) or self._handler.route(type(obj))
        return self._caller().ask(values["_id"], spec, handler, args, kwargs, self._timeout, self._id)

    async def tell(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Sends durably: returns when the message is stored (outside a turn) or will be with the turn's commit (inside)."""
        obj = self._obj
        if obj.__dict__["_cell"] is not None:
            raise UsageError(f"Inside agent {obj!r} there is nobody to tell but itself; call the method.")
        spec, handler = self._handler.route(type(obj))
        await self._caller().tell(obj.__dict__["_id"], spec, handler, handler.encode_args(args, kwargs), self._id)

    def _caller(self) -> Caller:
        running = turn.get()
        caller = running.caller if running is not None else self._obj.__dict__["_caller"] or current.get()
        if caller is None:
            raise NotConnected(
                f"{self._obj!r} was called outside a turn and outside `async with cells.local()` or `cells.connect()`."
            )
        return caller


class Handler(Generic[P, R_co]):
    """A method that messages reach; made by `@handler`."""

    def __init__(self, fn: Callable[..., Coroutine[Any, Any, R_co]], cancellable: bool, tries: int | None) -> None:
        if not inspect.iscoroutinefunction(fn) or not hasattr(fn, "__name__"):
            name = getattr(fn, "__qualname__", repr(fn))
            raise FieldRefused(f"Handler {name} must be `async def`: a caller awaits it.", path=name)
        if tries is not None and (type(tries) is not int or tries < 1):
            raise FieldRefused(
                f"Handler {fn.__qualname__}: tries = {tries!r} is not a whole number from 1.", path=fn.__qualname__
            )
        self.fn: Callable[..., Coroutine[Any, Any, R_co]] = fn
        self.name = fn.__name__
        self.cancellable = cancellable
        self.tries = tries
        self.__doc__ = fn.__doc__
        self.routes: dict[type[Agent], tuple[Spec, HandlerSpec]] = {}

    def route(self, cls: type[Agent]) -> tuple[Spec, HandlerSpec]:
        """What a call of this handler on `cls`, or on a class derived from its own, is encoded by."""
        found = self.routes.get(cls)
        if found is None:
            from mielin_cells.core.spec import spec_of

            spec = spec_of(cls)
            found = self.routes[cls] = (spec, spec.handlers[self.name])
        return found

    @overload
    def __get__(self, obj: None, owner: type) -> Self: ...
    @overload
    def __get__(self, obj: Agent, owner: type) -> Bound[P, R_co]: ...
    def __get__(self, obj: Agent | None, owner: type) -> Self | Bound[P, R_co]:
        return self if obj is None else Bound(self, obj)


class _MakesHandler(Protocol):
    def __call__(self, fn: Callable[Concatenate[A, P], Coroutine[Any, Any, R]], /) -> Handler[P, R]: ...


@overload
def handler(fn: Callable[Concatenate[A, P], Coroutine[Any, Any, R]], /) -> Handler[P, R]: ...
@overload
def handler(*, cancellable: bool = False, tries: int | None = None) -> _MakesHandler: ...
def handler(fn: Any = None, /, *, cancellable: bool = False, tries: int | None = None) -> Any:
    """Makes an async method a handler.

    `cancellable`: a move may cancel a turn of it and run it again on the target.  `tries`: runs before its message becomes a
    dead letter (default: the deployment's setting).  Raises `FieldRefused` for a plain `def`, and for `tries` that cannot be.
    """
    if fn is None:
        return lambda fn: Handler(fn, cancellable, tries)
    return Handler(fn, cancellable, tries)


class Upgrade:
    """A function from one class version's state to the next's; made by `@upgrade`."""

    def __init__(self, fn: Callable[[Any, dict[str, object]], dict[str, object]], from_version: int) -> None:
        if inspect.iscoroutinefunction(fn):
            raise FieldRefused(
                f"Upgrade {fn.__qualname__} must be a plain `def`: the agent does not run yet.", path=fn.__qualname__
            )
        self.fn = fn
        self.from_version = from_version


def upgrade(*, from_version: int) -> Callable[[Callable[[Any, dict[str, object]], dict[str, object]]], Upgrade]:
    """Marks `def name(cls, old) -> new`: makes the state of version `from_version + 1` from that of `from_version`.

    `old` holds plain values by field (a `Table` as a dict, a `Buffer` as bytes); so does what it returns.
    """
    return lambda fn: Upgrade(fn, from_version)


NO_DEFAULT: Any = object()


class Field:
    """A state field, on the class.  Notes what a turn touches: only that is encoded and compared at its end."""

    __slots__ = ("default", "is_scalar", "name")

    def __init__(self, name: str, default: Any) -> None:
        self.name = name
        self.default = default
        """As written in the class, or `NO_DEFAULT`.  It is kept here because left on the class it would answer for references."""
        self.is_scalar = False
        """Its values cannot change in the hands of a turn, so reading does not touch it."""

    def __get__(self, obj: Agent | None, owner: type) -> Any:
        if obj is None:
            return self
        values = obj.__dict__
        cell: Cell | None = values["_cell"]
        if cell is None:
            raise IsReference(f"{obj!r} is a reference: ask the agent for {self.name!r} through one of its handlers.")
        if not self.is_scalar:
            cell.touched[self.name] = None
        return values[self.name]

    def __set__(self, obj: Agent, value: Any) -> None:
        values = obj.__dict__
        cell: Cell | None = values["_cell"]
        if cell is None:
            raise IsReference(f"{obj!r} is a reference: {self.name!r} is set only by the agent's own handlers.")
        if self.is_scalar and cell.in_turn:
            cell.touched[self.name] = None
            values[self.name] = value
        else:
            cell.set(self.name, value)


HOOKS = ("on_start", "on_arrive", "on_depart", "on_stop", "healthy")

_CLASS_VAR = re.compile(r"\s*(\w+\.)*ClassVar\b")


def _is_state(name: str, annotation: Any) -> bool:
    if name.startswith("_"):
        return False
    if isinstance(annotation, str):  # not evaluated yet: it may name what is defined later
        return _CLASS_VAR.match(annotation) is None
    return annotation is not ClassVar and typing.get_origin(annotation) is not ClassVar


STANDBY_MAX = 8


def _check_standby(cls: type[Agent], standby: Any) -> None:
    if type(standby) is not int or not 0 <= standby <= STANDBY_MAX:
        raise FieldRefused(
            f"{cls.__name__}: standby = {standby!r} is not a whole number from 0 to {STANDBY_MAX}.", path=cls.__name__
        )


def _check_class(cls: type[Agent], version: Any, name: Any, fields: list[str]) -> None:
    """Raises `FieldRefused` for what would be silently wrong later."""
    own = cls.__dict__
    if "__init__" in own:
        raise FieldRefused(
            f"{cls.__name__} defines __init__; give fields defaults, and open clients in `on_arrive`.",
            path=cls.__name__,
        )
    if type(version) is not int or version < 1:
        raise FieldRefused(f"{cls.__name__}: version = {version!r} is not a whole number from 1.", path=cls.__name__)
    if name is not None and not (isinstance(name, str) and name and name.isprintable()):
        raise FieldRefused(f"{cls.__name__}: name = {name!r} is not printable text.", path=cls.__name__)
    for hook in HOOKS:
        if hook in fields or (hook in own and not inspect.iscoroutinefunction(own[hook])):
            raise FieldRefused(
                f"{cls.__name__}.{hook} is the name of a hook; write it as `async def {hook}(self)`, or rename it.",
                path=f"{cls.__name__}.{hook}",
            )
    for member, value in own.items():
        if member not in fields and not isinstance(value, Handler) and isinstance(_inherited(cls, member), Handler):
            raise FieldRefused(
                f"{cls.__name__}.{member} takes the place of an inherited handler; decorate it with @handler.",
                path=f"{cls.__name__}.{member}",
            )


def _inherited(cls: type[Agent], name: str) -> Any:
    return next((base.__dict__[name] for base in cls.__mro__[1:] if name in base.__dict__), None)


@dataclass_transform(kw_only_default=True, eq_default=False)
class Agent:
    """A stateful agent.  Annotated attributes are its state; `@handler` methods are what others can ask of it.

    Options of a class: `version` (of its state, from 1), `name` (on the wire; default the class's name), `recovery` (of failed
    moves: a dict of `RecoveryConfig`'s fields), `policy` (`cells.Policy`: which nodes its agents may move to) and `standby` (how
    many other nodes keep a copy of each agent, so that losing its owner costs no load).
    """

    _wire_name: ClassVar[str] = "Agent"
    _version: ClassVar[int] = 1

    if not TYPE_CHECKING:

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise UsageError(f"Agents are not constructed: `await cluster.spawn({type(self).__name__}, id, ...)`.")

    _recovery: ClassVar[dict[str, Any]] = {}
    """What the recovery of this class's migrations has otherwise than its node's."""

    _policy: ClassVar[Policy] = DEFAULT
    """What agents of this class ask of their nodes; each gets it when it is created, and keeps it."""

    _standby: ClassVar[int] = 0
    """Other nodes that keep a copy of each agent of this class."""

    def __init_subclass__(
        cls, *, version: int = 1, name: str | None = None, recovery: dict[str, Any] | None = None,
        policy: Policy | None = None, standby: int | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init_subclass__(**kwargs)
        if recovery is not None:
            cls._recovery = dict(recovery)
        if policy is not None:
            if not isinstance(policy, Policy):
                raise UsageError(f"class {cls.__name__}: policy is a cells.Policy(...), and not {policy!r}.")
            cls._policy = policy
        if standby is not None:
            _check_standby(cls, standby)
            cls._standby = standby
        fields = [field for field, kind in inspect.get_annotations(cls).items() if _is_state(field, kind)]
        _check_class(cls, version, name, fields)
        cls._wire_name, cls._version = "".join(name or cls.__name__), version  # plain text: it is in records
        for field in {*fields, *cls.__dict__}:
            before = _inherited(cls, field)
            if field in fields or isinstance(before, Field):  # the latter: a new default for an inherited field
                default = before.default if isinstance(before, Field) else NO_DEFAULT
                setattr(cls, field, Field(field, cls.__dict__.get(field, default)))
        classes[cls._wire_name] = cls

    async def on_start(self) -> None:
        """Once, at creation, as a turn, after the first `on_arrive`.  Raising puts the agent in ERROR."""

    async def on_arrive(self) -> None:
        """Each time the agent becomes active on a node: start, move, claim, restart.  Open clients and sockets here.

        After a move it runs in probation: raising returns the agent to the source.
        """

    async def on_depart(self) -> None:
        """Before the agent leaves a node, or its node stops.  Raising fails the move; the agent stays."""

    async def on_stop(self) -> None:
        """At termination, before the last commit."""

    async def healthy(self) -> bool:
        """The probe, in probation: False returns the agent to the source."""
        return True

    def __repr__(self) -> str:
        return f"<{type(self)._wire_name} {agent_id(self)!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Agent):
            return NotImplemented
        return agent_id(self) == agent_id(other) and type(self)._wire_name == type(other)._wire_name

    def __hash__(self) -> int:
        return hash((type(self)._wire_name, agent_id(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return make_ref, (type(self), agent_id(self))


def make_ref(cls: type[A], agent: str, caller: Caller | None = None) -> A:
    """A reference to the agent of this id.  Does no I/O.  Raises `InvalidAgentId`."""
    ref = object.__new__(cls)
    ref.__dict__.update(_cell=None, _id=str(AgentId(agent)), _caller=caller)
    return ref


def agent_id(ref: Agent) -> str:
    """The id of a reference, or of a live agent."""
    found: str = ref.__dict__["_id"]
    return found
