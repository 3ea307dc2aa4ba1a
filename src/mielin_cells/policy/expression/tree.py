"""What an expression is once it is read, and how it is evaluated.

A value that is absent is not zero and not false: what depends on it is `Unknown`.  `and` and `or` follow Kleene: false and unknown
is false, true or unknown is true.  Chains of one operator are one node, so that depth is bounded by what is nested.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from mielin_cells.policy.expression.names import Facts, Name, shown
from mielin_cells.policy.facts import Value

STEPS_MAX = 1000
"""Of one evaluation.  The language has no loops, so this only ends what is absurdly long."""


class Unknown(NamedTuple):
    """An answer of its own: neither true nor false."""

    why: str


Result: TypeAlias = Value | tuple[Value, ...] | Unknown


class OutOfSteps(Exception):  # it never leaves this room
    pass


class Run:
    """One evaluation."""

    __slots__ = ("facts", "left", "seen")

    def __init__(self, facts: Mapping[str, Facts], steps: int) -> None:
        self.facts = facts
        self.left = steps
        self.seen: dict[str, Value | None] = {}
        """The names that were looked up, with their values; None: absent."""

    def step(self, cost: int = 1) -> None:
        self.left -= cost
        if self.left < 0:
            raise OutOfSteps


class Node:
    """A part of an expression."""

    __slots__ = ()

    def value(self, run: Run) -> Result:
        raise NotImplementedError


def kind_of(value: Result) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    return "text" if isinstance(value, str) else "a list"


def _is_number(value: Result) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Constant(Node):
    __slots__ = ("_value",)

    def __init__(self, value: Value | tuple[Value, ...]) -> None:
        self._value = value

    def value(self, run: Run) -> Result:
        run.step(len(self._value) if isinstance(self._value, tuple) else 1)
        return self._value


class Lookup(Node):
    __slots__ = ("name", "shown")

    def __init__(self, name: Name) -> None:
        self.name = name
        self.shown = shown(name)

    def value(self, run: Run) -> Result:
        run.step()
        scope, group, word = self.name
        found = run.facts[scope].get(group, word) if scope in run.facts else None
        if isinstance(found, float) and not math.isfinite(found):
            found = None
        run.seen[self.shown] = found
        return Unknown(f"{self.shown} is not known") if found is None else found


class Known(Node):
    """`known(name)`: True if the fact is there."""

    __slots__ = ("_name",)

    def __init__(self, name: Lookup) -> None:
        self._name = name

    def value(self, run: Run) -> Result:
        return not isinstance(self._name.value(run), Unknown)


class Not(Node):
    __slots__ = ("_part",)

    def __init__(self, part: Node) -> None:
        self._part = part

    def value(self, run: Run) -> Result:
        run.step()
        value = as_truth(self._part.value(run))
        return value if isinstance(value, Unknown) else not value


def as_truth(value: Result) -> bool | Unknown:
    if isinstance(value, (bool, Unknown)):
        return value
    return Unknown(f"{_quoted(value)} is {kind_of(value)}, where true or false is wanted")


def _quoted(value: Result) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


class Junction(Node):
    """`and` or `or` of several; it ends at the first part that decides."""

    __slots__ = ("_ends", "_parts")

    def __init__(self, parts: tuple[Node, ...], *, ends: bool) -> None:
        self._parts = parts
        self._ends = ends
        """The value of one part that decides: False for `and`, True for `or`."""

    def value(self, run: Run) -> Result:
        run.step()
        unknown: Unknown | None = None
        for part in self._parts:
            value = as_truth(part.value(run))
            if isinstance(value, Unknown):
                unknown = unknown or value
            elif value is self._ends:
                return value
        return not self._ends if unknown is None else unknown


ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class Comparison(Node):
    __slots__ = ("_left", "_right", "_sign")

    def __init__(self, sign: str, left: Node, right: Node) -> None:
        self._sign = sign
        self._left = left
        self._right = right

    def value(self, run: Run) -> Result:
        run.step()
        left, right = self._left.value(run), self._right.value(run)
        for side in (left, right):
            if isinstance(side, Unknown):
                return side
        if kind_of(left) != kind_of(right) or (isinstance(left, bool) and self._sign not in ("==", "!=")):
            return Unknown(
                f"{_quoted(left)} is {kind_of(left)} and {_quoted(right)} is {kind_of(right)}: no {self._sign} of them"
            )
        return ORDERS[self._sign](left, right)


class Among(Node):
    """`value in list`, and `text in text`."""

    __slots__ = ("_many", "_one")

    def __init__(self, one: Node, many: Node) -> None:
        self._one = one
        self._many = many

    def value(self, run: Run) -> Result:
        run.step()
        one, many = self._one.value(run), self._many.value(run)
        for side in (one, many):
            if isinstance(side, Unknown):
                return side
        if isinstance(many, tuple):
            run.step(len(many))
            return any(kind_of(one) == kind_of(other) and one == other for other in many)
        if isinstance(one, str) and isinstance(many, str):
            return one in many
        return Unknown(f"{_quoted(one)} cannot be in {_quoted(many)}, which is {kind_of(many)}")


MATHS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "%": operator.mod,
}  # fmt: skip


class Sum(Node):
    """Numbers joined by operators of one rank, from left to right."""

    __slots__ = ("_first", "_rest")

    def __init__(self, first: Node, rest: tuple[tuple[str, Node], ...]) -> None:
        self._first = first
        self._rest = rest

    def value(self, run: Run) -> Result:
        run.step()
        total = as_number(self._first.value(run))
        for sign, part in self._rest:
            number = as_number(part.value(run))
            if isinstance(total, Unknown):
                return total
            if isinstance(number, Unknown):
                return number
            try:
                total = float(MATHS[sign](total, number))
            except (ZeroDivisionError, OverflowError):
                return Unknown(f"{total:g} {sign} {number:g} is no number")
            if not math.isfinite(total):
                return Unknown("a number is too large")
        return total


def as_number(value: Result) -> float | Unknown:
    if isinstance(value, Unknown):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return Unknown("a number is too large")
    return Unknown(f"{_quoted(value)} is {kind_of(value)}, where a number is wanted")


def _to_number(value: Result) -> Result:
    if isinstance(value, str):
        try:
            found = float(value)
        except ValueError:
            return Unknown(f"{_quoted(value)} is not a number")
        return found if math.isfinite(found) else Unknown(f"{_quoted(value)} is not a number")
    return as_number(value)


def _starts(text: Result, head: Result) -> Result:
    if isinstance(text, str) and isinstance(head, str):
        return text.startswith(head)
    return Unknown("starts() takes two texts")


def _ends(text: Result, tail: Result) -> Result:
    if isinstance(text, str) and isinstance(tail, str):
        return text.endswith(tail)
    return Unknown("ends() takes two texts")


def _extreme(pick: Callable[[list[float]], float]) -> Callable[..., Result]:
    def chosen(*values: Result) -> Result:
        numbers = list[float]()
        for value in values:
            number = as_number(value)
            if isinstance(number, Unknown):
                return number
            numbers.append(number)
        return pick(numbers)

    return chosen


FUNCTIONS: dict[str, tuple[Callable[..., Result], int, int]] = {
    "min": (_extreme(min), 1, 16), "max": (_extreme(max), 1, 16), "abs": (_extreme(lambda numbers: abs(numbers[0])), 1, 1),
    "number": (_to_number, 1, 1), "starts": (_starts, 2, 2), "ends": (_ends, 2, 2),
}  # fmt: skip
"""By name: the function, and how many arguments it takes at least and at most.  `known(name)` is a form of its own."""


class Call(Node):
    __slots__ = ("_args", "_fn")

    def __init__(self, fn: Callable[..., Result], args: tuple[Node, ...]) -> None:
        self._fn = fn
        self._args = args

    def value(self, run: Run) -> Result:
        run.step()
        values = [arg.value(run) for arg in self._args]
        for value in values:
            if isinstance(value, Unknown):
                return value
        return self._fn(*values)
