"""What authors write: `Agent` and `upgrade`.

A class that derives from `Agent` has two kinds of instances.  A *live* instance is made by the owner and bound to stored state
(`agents.live`).  A *reference* is a value that names the agent; its handlers are called through it.  Annotated names are
state, including those of plain base classes.  `_private` attributes are no state and do not move.  Any other attribute is refused
at the end of the turn that sets it.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, dataclass_transform

from mielin_cells.agents import definition
from mielin_cells.agents.context import caller_of, turn
from mielin_cells.agents.handler import Handler
from mielin_cells.agents.reference import Reference, classes
from mielin_cells.agents.shared.watched import Watched
from mielin_cells.agents.values.annotations import annotations_of
from mielin_cells.errors import FieldRefused, IsReference, UsageError
from mielin_cells.log.family.supervise import Supervision
from mielin_cells.log.policy import DEFAULT, Policy
from mielin_cells.settings import INBOX_MAX_MAX, KEYS_BYTES_MAX, TIMEOUT_S_MAX, WHEN_FULL, WhenFull


class Cell(Protocol):
    """The stored state behind a live agent, as its fields use it."""

    owner: Any
    touched: dict[str, None]

    def load(self, name: str) -> Any: ...
    def copy(self, name: str) -> Any: ...
    def set(self, name: str, value: Any) -> None: ...


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
    """Makes `def name(cls, old) -> new` the upgrade of stored state from version `from_version` to the next one.

    `old` has plain values by field (a `Table` as a dict, a `Buffer` as bytes), and so must the dict that it returns.
    Raises `FieldRefused` for an `async def`.

        >>> class Guest(cells.Agent):
        ...     name: str = "Ada Lovelace"
        ...
        >>> async with cells.local(path="guests.db") as deployment:
        ...     ada = await deployment.spawn(Guest, "ada")
        ...
        >>> class Guest(cells.Agent, version=2):
        ...     first: str
        ...
        ...     @cells.upgrade(from_version=1)
        ...     def split(cls, old):
        ...         return {"first": old["name"].split()[0]}
        ...
        ...     @cells.handler
        ...     async def greet(self) -> str:
        ...         return f"Dear {self.first}"
        ...
        >>> async with cells.local(path="guests.db") as deployment:
        ...     await deployment.get(Guest, "ada").greet()
        ...
        'Dear Ada'
    """
    return lambda fn: Upgrade(fn, from_version)


NO_DEFAULT: Any = object()


class Field:
    """A state field, on the class.  It notes what a turn touches: only that is encoded and compared at the turn's end."""

    __slots__ = ("default", "is_scalar", "name")

    def __init__(self, name: str, default: Any) -> None:
        self.name = name
        self.default = default
        """As written in the class, or `NO_DEFAULT`.  References must not have it, so it is not left on the class."""
        self.is_scalar = False
        """Its values are immutable, so reading it does not touch it."""

    def __get__(self, obj: Agent | None, owner: type) -> Any:
        if obj is None:
            return self
        values = obj.__dict__
        cell: Cell | None = values["__mielin_cell__"]
        if cell is None:
            raise IsReference(f"{obj!r} is a reference: ask the agent for {self.name!r} through one of its handlers.")
        if not self.is_scalar:
            if turn.get() is not cell.owner:
                return cell.copy(self.name)
            cell.touched[self.name] = None
        try:
            return values[self.name]
        except KeyError:
            return cell.load(self.name)

    def __set__(self, obj: Agent, value: Any) -> None:
        values = obj.__dict__
        cell: Cell | None = values["__mielin_cell__"]
        if cell is None:
            raise IsReference(f"{obj!r} is a reference: {self.name!r} is set only by the agent's own handlers.")
        if self.is_scalar and turn.get() is cell.owner:
            cell.touched[self.name] = None
            values[self.name] = value
        else:
            cell.set(self.name, value)

    def __delete__(self, obj: Agent) -> None:
        if obj.__dict__["__mielin_cell__"] is None:
            raise IsReference(f"{obj!r} is a reference: {self.name!r} is changed only by the agent's own handlers.")
        raise UsageError(
            f"{self.name!r} of {obj!r} is state, and always has a value; set it to None or to another empty value."
        )


class Hook:
    """A hook, on the class.  Only the agent's node calls it; a reference must not, since it would run here and not in the agent."""

    __slots__ = ("__wrapped__", "_name")

    def __init__(self, name: str, fn: Callable[..., Any]) -> None:
        self._name = name
        self.__wrapped__ = fn

    def __get__(self, obj: Agent | None, owner: type) -> Any:
        if obj is None:
            return self.__wrapped__
        if obj.__dict__["__mielin_cell__"] is None:
            raise IsReference(f"{obj!r} is a reference: {self._name} is a hook, which only the agent's node calls.")
        return types.MethodType(self.__wrapped__, obj)


HOOKS = ("on_start", "on_arrive", "on_depart", "on_stop", "healthy")

_CLASS_VAR = re.compile(r"\s*(\w+\.)*ClassVar\b")


def is_state(name: str, annotation: Any) -> bool:
    if name.startswith("_"):
        return False
    if isinstance(annotation, str):  # not evaluated yet: it may name what is defined later
        return _CLASS_VAR.match(annotation) is None
    return annotation is not ClassVar and typing.get_origin(annotation) is not ClassVar


STANDBY_MAX = 8


def _check_standby(cls: type[Agent], standby: Any) -> None:
    if type(standby) is not int or not 0 <= standby <= STANDBY_MAX:
        raise FieldRefused.at(cls.__name__, f": standby = {standby!r} is not a whole number from 0 to {STANDBY_MAX}.")


def _set_keys(cls: type[Agent], seconds: Any, size: Any) -> None:
    if seconds is not None and (type(seconds) not in (int, float) or not 0 <= seconds <= TIMEOUT_S_MAX):
        raise FieldRefused.at(
            cls.__name__, f": keys_s = {seconds!r} is not a number of seconds from 0 to {TIMEOUT_S_MAX:g}."
        )
    if size is not None and (type(size) is not int or not 0 < size <= KEYS_BYTES_MAX):
        raise FieldRefused.at(
            cls.__name__, f": keys_bytes = {size!r} is not a whole number from 1 to {KEYS_BYTES_MAX:,}."
        )
    cls.__mielin_keys_s__ = cls.__mielin_keys_s__ if seconds is None else float(seconds)
    cls.__mielin_keys_bytes__ = cls.__mielin_keys_bytes__ if size is None else size


def _set_inbox(cls: type[Agent], inbox_max: Any, when_full: Any) -> None:
    if inbox_max is not None and (type(inbox_max) is not int or not 0 < inbox_max <= INBOX_MAX_MAX):
        raise FieldRefused.at(
            cls.__name__, f": inbox_max = {inbox_max!r} is not a whole number from 1 to {INBOX_MAX_MAX:,}."
        )
    if when_full is not None and when_full not in WHEN_FULL:
        raise FieldRefused.at(
            cls.__name__, f": when_full = {when_full!r}; there are {', '.join(map(repr, WHEN_FULL))}."
        )
    cls.__mielin_inbox_max__ = cls.__mielin_inbox_max__ if inbox_max is None else inbox_max
    cls.__mielin_when_full__ = cls.__mielin_when_full__ if when_full is None else when_full


def _check_idle(cls: type[Agent], idle_s: Any) -> None:
    is_number = isinstance(idle_s, (int, float)) and not isinstance(idle_s, bool)
    if not is_number or not 0 <= idle_s <= TIMEOUT_S_MAX:
        raise FieldRefused.at(
            cls.__name__, f": idle_s = {idle_s!r} is no number of seconds from 0 (never) to {TIMEOUT_S_MAX:g}."
        )


def _check_supervision(cls: type[Agent], given: Any) -> None:
    wrong = given.wrong if isinstance(given, Supervision) else f"{given!r} is no cells.Supervision(...)"
    if wrong:
        raise FieldRefused.at(cls.__name__, f": supervision: {wrong}.")


def _check_class(cls: type[Agent], version: Any, name: Any, fields: list[str]) -> None:
    """Raises `FieldRefused` for definitions that would silently fail later."""
    own = cls.__dict__
    if "__init__" in own:
        raise FieldRefused.at(cls.__name__, " defines __init__; give fields defaults, and open clients in `on_arrive`.")
    if type(version) is not int or version < 1:
        raise FieldRefused.at(cls.__name__, f": version = {version!r} is not a whole number from 1.")
    if name is not None and not (isinstance(name, str) and name and name.isprintable()):
        raise FieldRefused.at(cls.__name__, f": name = {name!r} is not printable text.")
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
class Agent(Reference):
    """A stateful agent.  Annotated attributes are its state; others call its `@handler` methods.

    Options of a class: `version` (of its state, from 1), `name` (on the wire; by default the class's name), `recovery` (of failed
    moves: a dict with fields of `migration.RecoveryConfig`), `policy` (`cells.Policy`: which nodes its agents may move to),
    `standby` (how many other nodes keep a copy of each agent, so that losing its owner costs no load), `keys_s` and `keys_bytes` (for
    how long, and up to how many bytes, its agents keep calls that were made with a key), `inbox_max` and `when_full` (how many
    messages may wait, and what more mean to senders), `idle_s` (after so many seconds without work an agent leaves memory
    until a message, a timer or an order wakes it; 0: never), which are by default as the settings of these names; and `supervision`
    (`cells.Supervision`: what its agents do about children that fail).

    Guarantees: the state and the messages of an agent survive the loss of its node; its turns run one at a time, each wholly or not
    at all.  A class raises `FieldRefused` or `UsageError` where it is defined or first used, if it cannot keep that.

        >>> class Shelf(cells.Agent, idle_s=600):
        ...     left: int = 5
        ...
        ...     @cells.handler
        ...     async def take(self, count: int) -> int:
        ...         self.left -= count
        ...         return self.left
        ...
        >>> shelf = await cluster.spawn(Shelf, "tulips", left=9)
        >>> await shelf.take(2)
        7
    """

    if not TYPE_CHECKING:

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise UsageError(f"Agents are not constructed: `await cluster.spawn({type(self).__name__}, id, ...)`.")

    __mielin_recovery__: ClassVar[dict[str, Any]] = {}
    """Fields of `RecoveryConfig` in which this class's migrations differ from their node's."""

    __mielin_policy__: ClassVar[Policy] = DEFAULT
    """What agents of this class require of their nodes.  An agent gets it when it is created, and keeps it."""

    __mielin_standby__: ClassVar[int] = 0
    """How many other nodes keep a copy of each agent of this class."""

    __mielin_idle__: ClassVar[float | None] = None
    """Seconds without work after which an agent of this class leaves memory; 0: never; None: as the node is set."""

    __mielin_keys_s__: ClassVar[float | None] = None
    __mielin_keys_bytes__: ClassVar[int | None] = None
    """For how long, and up to how many bytes, keyed calls are kept; None: as the settings say."""

    __mielin_inbox_max__: ClassVar[int | None] = None
    __mielin_when_full__: ClassVar[WhenFull | None] = None
    """How many messages may wait, and what becomes of more; None: as the settings say."""

    __mielin_supervision__: ClassVar[Supervision] = Supervision()
    """How agents of this class supervise their children."""

    def __init_subclass__(
        cls, *, version: int = 1, name: str | None = None, recovery: dict[str, Any] | None = None,
        policy: Policy | None = None, standby: int | None = None, keys_s: float | None = None, keys_bytes: int | None = None,
        inbox_max: int | None = None, when_full: WhenFull | None = None, idle_s: float | None = None,
        supervision: Supervision | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        definition.check_options(cls, kwargs)
        super().__init_subclass__(**kwargs)
        if recovery is not None:
            if not isinstance(recovery, dict):
                raise UsageError(
                    f"class {cls.__name__}: recovery is a dict of RecoveryConfig's fields, and not {recovery!r}."
                )
            cls.__mielin_recovery__ = dict(recovery)
        if policy is not None:
            definition.check_policy(cls, policy)
            cls.__mielin_policy__ = policy
        if standby is not None:
            _check_standby(cls, standby)
            cls.__mielin_standby__ = standby
        _set_inbox(cls, inbox_max, when_full)
        _set_keys(cls, keys_s, keys_bytes)
        if supervision is not None:
            _check_supervision(cls, supervision)
            cls.__mielin_supervision__ = supervision
        if idle_s is not None:
            _check_idle(cls, idle_s)
            cls.__mielin_idle__ = idle_s
        fields = [field for field, kind in annotations_of(cls).items() if is_state(field, kind)]
        _check_class(cls, version, name, fields)
        wire_name = "".join(name or cls.__name__)  # plain text: it is in records
        definition.check_fields(cls, fields)
        definition.check_handlers(cls)
        mixins = [base for base in cls.__mro__ if not issubclass(base, Reference) and not definition.is_bare(base)]
        definition.check_attributes(cls, mixins)
        definition.check_name(cls, wire_name, version, classes.get(wire_name))
        cls.__mielin_name__, cls.__mielin_version__ = wire_name, version
        for field in {*fields, *cls.__dict__}:
            before = _inherited(cls, field)
            if field in fields or isinstance(before, Field):  # the latter: a new default for an inherited field
                default = before.default if isinstance(before, Field) else NO_DEFAULT
                setattr(cls, field, Field(field, cls.__dict__.get(field, default)))
        for base in mixins:  # what a plain class declares is state of the agent that is derived from it
            for field, kind in annotations_of(base).items():
                if is_state(field, kind) and not isinstance(inspect.getattr_static(cls, field, None), Field):
                    setattr(cls, field, Field(field, base.__dict__.get(field, NO_DEFAULT)))
        for hook in HOOKS:
            if hook in cls.__dict__:
                setattr(cls, hook, Hook(hook, cls.__dict__[hook]))
        before = classes.get(wire_name)
        if before is not None:
            before.__mielin_replaced__ = True
        classes[wire_name] = cls

    async def on_start(self) -> None:
        """Runs once, at creation, as a turn after the first `on_arrive`.  Raising puts the agent in ERROR."""

    async def on_arrive(self) -> None:
        """Runs each time the agent becomes active on a node: start, move, claim, restart, and waking.  Open clients and sockets here.

        After a move it runs in probation: raising returns the agent to the source.
        """

    async def on_depart(self) -> None:
        """Runs before the agent leaves a node or, having no work, its node's memory, and before its node stops.

        Raising fails the move, and the agent stays, as it stays in memory.
        """

    async def on_stop(self) -> None:
        """Runs at termination, before the last commit."""

    async def healthy(self) -> bool:
        """The probe of a move's probation: False returns the agent to the source."""
        return True

    def watch(self, *, after: int = 0) -> AsyncIterator[Watched[Self]]:
        """The agent's committed states with their revisions, from now on: `async for seen in ref.watch(): seen.state.total`.

        The first is the state of now.  The newest wins: who is slow misses states in between, and never sees an older one after a
        newer one.  With `after`, the revision of a state that was seen before, it goes on behind that one.  It ends when the agent
        does, and goes on while the agent moves or its node is down.  The agent does not notice it.
        Raises `NoSuchAgent`, `AgentTerminated`, `WrongClass`; `StateUnloadable` if the agent runs another version of the class;
        `UsageError` inside a turn.  A class with a handler or field of the name `watch` has that instead.

            >>> async for seen in till.watch():
            ...     if seen.state.cents >= 300:
            ...         break
            ...     await till.sell(100)
            ...
            100
            200
            300
        """
        return caller_of(self).watch(self, after)

    def __dir__(self) -> list[str]:
        names = [name for name in object.__dir__(self) if not name.startswith("__mielin_")]
        if self.__dict__["__mielin_cell__"] is not None:
            return names
        return [name for name in names if not isinstance(inspect.getattr_static(type(self), name, None), (Field, Hook))]


for _hook in HOOKS:
    setattr(Agent, _hook, Hook(_hook, Agent.__dict__[_hook]))
