"""Conditions on attributes: `cells.attr("region") == "eu"`, joined by `&`, `|` and `~`.

A comparison with an attribute that the agent lacks, or of another kind, is false; `!=` is the opposite of `==`.  Numbers are
compared with numbers, whether int or float; a bool is no number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn, TypeAlias

from mielin_cells.errors import UsageError
from mielin_cells.log.attributes.values import Value, check_name

Values: TypeAlias = Mapping[str, Value]
Key: TypeAlias = tuple[str, Value]
"""What equal values have in common: their kind, and the value."""

ORDERS: dict[str, Callable[[Value, Value], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def key_of(value: Value) -> Key:
    return ("bool" if isinstance(value, bool) else "text" if isinstance(value, str) else "number", value)


class Needs(NamedTuple):
    """Only an agent whose attribute has one of these values can meet a condition."""

    name: str
    keys: frozenset[Key]


class Where:
    """A condition.  `str(condition)` is its text, which `parse` reads."""

    __slots__ = ()

    def holds(self, values: Values) -> bool:
        """True for an agent with these attributes."""
        raise NotImplementedError

    @property
    def needs(self) -> Needs | None:
        """What an index can look for; None if any agent may meet it."""
        return None

    def __and__(self, other: Where) -> Where:
        return All((self, _condition(other)))

    def __or__(self, other: Where) -> Where:
        return Some((self, _condition(other)))

    def __invert__(self) -> Where:
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise UsageError(f"Join conditions by &, | and ~, each in parentheses, not by and, or and not: {self}.")


class Attr(Where):
    """An attribute by name.  By itself it is a condition, a label: it holds where the attribute is True."""

    __slots__ = ("name",)
    __hash__ = None  # type: ignore[assignment] # `==` makes a condition

    def __init__(self, name: str) -> None:
        self.name = check_name(name)

    def holds(self, values: Values) -> bool:
        return values.get(self.name) is True

    @property
    def needs(self) -> Needs | None:
        return Needs(self.name, frozenset([key_of(True)]))

    def __str__(self) -> str:
        return self.name

    def __eq__(self, other: Value) -> Where:  # type: ignore[override]
        return In(self.name, (_value(other),))

    def __ne__(self, other: Value) -> Where:  # type: ignore[override]
        return Not(In(self.name, (_value(other),)))

    def __lt__(self, other: Value) -> Where:
        return Ordered(self.name, "<", _value(other))

    def __le__(self, other: Value) -> Where:
        return Ordered(self.name, "<=", _value(other))

    def __gt__(self, other: Value) -> Where:
        return Ordered(self.name, ">", _value(other))

    def __ge__(self, other: Value) -> Where:
        return Ordered(self.name, ">=", _value(other))

    def is_in(self, *values: Value) -> Where:
        """It is one of these."""
        return In(self.name, tuple(_value(value) for value in values))

    def exists(self) -> Where:
        """The agent has it, whatever its value."""
        return Exists(self.name)


class In(Where):
    """The attribute is one of some values."""

    __slots__ = ("_keys", "_values", "name")

    def __init__(self, name: str, values: tuple[Value, ...]) -> None:
        self.name = name
        self._values = values
        self._keys = frozenset(map(key_of, values))

    def holds(self, values: Values) -> bool:
        value = values.get(self.name)
        return value is not None and key_of(value) in self._keys

    @property
    def needs(self) -> Needs | None:
        return Needs(self.name, self._keys)

    def __str__(self) -> str:
        if len(self._values) == 1:
            return f"{self.name} == {text_of(self._values[0])}"
        return f"{self.name} in ({', '.join(map(text_of, self._values))})"


class Ordered(Where):
    """The attribute is before or behind a value of the same kind."""

    __slots__ = ("_compare", "_kind", "_order", "_value", "name")

    def __init__(self, name: str, order: str, value: Value) -> None:
        self.name = name
        self._order = order
        self._compare = ORDERS[order]
        self._kind, self._value = key_of(value)

    def holds(self, values: Values) -> bool:
        value = values.get(self.name)
        return value is not None and key_of(value)[0] == self._kind and self._compare(value, self._value)

    def __str__(self) -> str:
        return f"{self.name} {self._order} {text_of(self._value)}"


class Exists(Where):
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def holds(self, values: Values) -> bool:
        return self.name in values

    def __str__(self) -> str:
        return f"exists({self.name})"


class Not(Where):
    __slots__ = ("_one",)

    def __init__(self, one: Where) -> None:
        self._one = one

    def holds(self, values: Values) -> bool:
        return not self._one.holds(values)

    def __str__(self) -> str:
        return f"not ({self._one})"


class All(Where):
    __slots__ = ("_all",)

    def __init__(self, every: tuple[Where, ...]) -> None:
        self._all = every

    def holds(self, values: Values) -> bool:
        return all(one.holds(values) for one in self._all)

    @property
    def needs(self) -> Needs | None:
        """Of the one that names the fewest values."""
        needs = [one.needs for one in self._all if one.needs is not None]
        return min(needs, key=lambda one: len(one.keys), default=None)

    def __str__(self) -> str:
        return " and ".join(f"({one})" for one in self._all)


class Some(Where):
    __slots__ = ("_any",)

    def __init__(self, some: tuple[Where, ...]) -> None:
        self._any = some

    def holds(self, values: Values) -> bool:
        return any(one.holds(values) for one in self._any)

    @property
    def needs(self) -> Needs | None:
        """Only if all name values of one attribute."""
        needs = [one.needs for one in self._any]
        first = needs[0]
        if first is None or any(one is None or one.name != first.name for one in needs):
            return None
        return Needs(first.name, frozenset().union(*(one.keys for one in needs if one is not None)))

    def __str__(self) -> str:
        return " or ".join(f"({one})" for one in self._any)


def attr(name: str) -> Attr:
    """An attribute of agents, to be compared: `cells.attr("load") < 3`.  Raises `AttributeInvalid`.

    >>> where = (cells.attr("region") == "eu") & (cells.attr("weight") < 3)
    >>> str(where)
    '(region == "eu") and (weight < 3)'
    >>> where.holds({"region": "eu", "weight": 2})
    True
    """
    return Attr(name)


def text_of(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


def _condition(other: object) -> Where:
    if not isinstance(other, Where):
        raise UsageError(
            f"A condition is joined with {other!r}, which is none; write it as cells.attr(...) == ... in parentheses."
        )
    return other


def _value(value: object) -> Value:
    if isinstance(value, (bool, int, float, str)):
        return value
    raise UsageError(f"An attribute is compared with {value!r}; it is str, int, float or bool.")
