"""References: an agent's name as a value, and the classes of this process by their names on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

from mielin_cells.errors import UsageError
from mielin_cells.log.ids import AgentId
from mielin_cells.log.policy import DEFAULT, Policy


class Reference:
    """What every instance of an agent class is, live or not: a value that names an agent.

    Two references are equal if they name the same agent.  A reference hashes, copies and pickles; the copy of a live agent is a
    reference to it.
    """

    __mielin_name__: ClassVar[str] = "Agent"
    """On the wire."""
    __mielin_version__: ClassVar[int] = 1
    __mielin_replaced__: ClassVar[bool] = False
    """The class, or a base of it, was defined again in this process."""

    def __repr__(self) -> str:
        return f"<{type(self).__mielin_name__} {agent_id(self)!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reference):
            return NotImplemented
        return agent_id(self) == agent_id(other) and type(self).__mielin_name__ == type(other).__mielin_name__

    def __hash__(self) -> int:
        return hash((type(self).__mielin_name__, agent_id(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return make_ref, (type(self), agent_id(self))

    def __copy__(self) -> Self:
        """A reference is a value, and its own copy; the copy of a live agent is a reference to it."""
        return self if self.__dict__["__mielin_cell__"] is None else make_ref(type(self), agent_id(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()


R = TypeVar("R", bound=Reference)

classes: dict[str, type[Any]] = {}
"""Every agent class of this process by its name on the wire.  A class that is defined again takes its own place."""


def versions_of(known: Mapping[str, type[Any]]) -> dict[str, int]:
    """By name, in order; what a node says of its classes."""
    return {name: cls.__mielin_version__ for name, cls in sorted(known.items())}


def policies_of(known: Mapping[str, type[Any]]) -> dict[str, Policy]:
    """Of those classes that have one."""
    return {name: cls.__mielin_policy__ for name, cls in sorted(known.items()) if cls.__mielin_policy__ != DEFAULT}


def known_as(cls: type[Reference], wanted: type[Reference]) -> type[Reference] | None:
    """The class of a reference to a `cls` where a `wanted` is declared: `cls`, or `wanted` if that was defined again since;
    None if such an agent is no `wanted`."""
    if issubclass(cls, wanted):
        return cls
    names = [base.__mielin_name__ for base in cls.__mro__ if issubclass(base, Reference)]
    return wanted if wanted.__mielin_replaced__ and wanted.__mielin_name__ in names else None


def make_ref(cls: type[R], agent: str, caller: object = None) -> R:
    """A reference to the agent of this id, whose calls the `Caller` carries.  Does no I/O.  Raises `InvalidAgentId`."""
    try:
        ref = object.__new__(cls)
    except TypeError as error:  # of an abstract class
        raise UsageError(f"No agent can be of {cls.__name__}: {error}; name the class that {agent!r} is of.") from error
    ref.__dict__.update(__mielin_cell__=None, __mielin_id__=str(AgentId(agent)), __mielin_caller__=caller)
    return ref


def agent_id(ref: Reference) -> str:
    """The id of a reference, or of a live agent."""
    text: str = ref.__dict__["__mielin_id__"]
    return text
