"""Reads an expression from text: `node.cpu < 80 and node.labels.zone in ["eu-1", "eu-2"]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from mielin_cells.errors import ExpressionInvalid
from mielin_cells.policy.expression import tree
from mielin_cells.policy.expression.names import SCOPES, Facts, Name, Scope, wrong
from mielin_cells.policy.expression.tokens import Token, Tokens, text_of
from mielin_cells.policy.expression.tree import STEPS_MAX, Node, OutOfSteps, Result, Run, Unknown
from mielin_cells.policy.facts import Value

DEPTH_MAX = 32
PARSED_MAX = 4096
"""Expressions that are kept as they were read."""


class Answer(NamedTuple):
    """What an expression says about one node."""

    value: Result
    values: dict[str, Value | None]
    """The facts that were looked at; None: absent."""

    @property
    def truth(self) -> bool | None:
        """None: it is not known whether the condition holds; `why` says why."""
        value = tree.as_truth(self.value)
        return None if isinstance(value, Unknown) else value

    @property
    def number(self) -> float | None:
        """The number, 1 for true and 0 for false; None if it is not known."""
        if isinstance(self.value, bool):
            return float(self.value)
        value = tree.as_number(self.value)
        return None if isinstance(value, Unknown) else value

    @property
    def why(self) -> str:
        """Why there is no answer; "" if there is one."""
        return self.value.why if isinstance(self.value, Unknown) else ""


class Expression:
    """An expression that was read."""

    __slots__ = ("_root", "names", "text")

    def __init__(self, text: str, root: Node, names: frozenset[Name]) -> None:
        self.text = text
        self._root = root
        self.names = names

    def evaluate(self, facts: Mapping[str, Facts], steps: int = STEPS_MAX) -> Answer:
        """Never raises: what cannot be said is `Unknown`."""
        run = Run(facts, steps)
        try:
            value = self._root.value(run)
        except OutOfSteps:
            value = Unknown(f"it takes more than {steps} steps")
        return Answer(value, run.seen)


def parse(text: str, scopes: Mapping[str, Scope] = SCOPES) -> Expression:
    """Raises `ExpressionInvalid`, which names the column of what cannot be read, and what may stand there."""
    return _parsed(text) if scopes is SCOPES else _read(text, scopes)


@lru_cache(PARSED_MAX)
def _parsed(text: str) -> Expression:
    return _read(text, SCOPES)


def check(text: str, scopes: Mapping[str, Scope] = SCOPES) -> str:
    """Why the expression cannot be read; "" if it can."""
    try:
        parse(text, scopes)
    except ExpressionInvalid as error:
        return error.message
    return ""


def _read(text: str, scopes: Mapping[str, Scope]) -> Expression:
    parser = _Parser(text, scopes)
    root = parser.either(0)
    if parser.tokens.now.kind:
        parser.tokens.fail("an operator or the end")
    return Expression(text, root, frozenset(parser.names))


class _Parser:
    def __init__(self, text: str, scopes: Mapping[str, Scope]) -> None:
        self.tokens = Tokens(text)
        self.names = set[Name]()
        self._scopes = scopes

    # ---- or, and, not ----------------------------------------------------------------------------------------

    def either(self, depth: int) -> Node:
        return self._joined("or", depth, lambda: self._joined("and", depth, lambda: self._not(depth)))

    def _joined(self, word: str, depth: int, part: Callable[[], Node]) -> Node:
        if depth > DEPTH_MAX:
            self.tokens.refuse(self.tokens.now.at, f"it is nested more than {DEPTH_MAX} times")
        parts = [part()]
        while self.tokens.sees(word):
            self.tokens.take()
            parts.append(part())
        return parts[0] if len(parts) == 1 else tree.Junction(tuple(parts), ends=word == "or")

    def _not(self, depth: int) -> Node:
        if not self.tokens.sees("not"):
            return self._comparison(depth)
        at = self.tokens.take().at
        if depth >= DEPTH_MAX:
            self.tokens.refuse(at, f"it is nested more than {DEPTH_MAX} times")
        return tree.Not(self._not(depth + 1))

    def _comparison(self, depth: int) -> Node:
        left = self._sum(depth)
        if self.tokens.sees("in"):
            self.tokens.take()
            return tree.Among(left, self._sum(depth))
        if self.tokens.sees("not"):
            self.tokens.take()
            self.tokens.expect("in")
            return tree.Not(tree.Among(left, self._sum(depth)))
        if self.tokens.sees("=", *tree.ORDERS):
            sign = self.tokens.take().text
            left = tree.Comparison("==" if sign == "=" else sign, left, self._sum(depth))
            if self.tokens.sees("=", *tree.ORDERS):
                self.tokens.fail("and, since comparisons are not chained,")
        return left

    # ---- numbers ---------------------------------------------------------------------------------------------

    def _sum(self, depth: int) -> Node:
        return self._chain(("+", "-"), lambda: self._chain(("*", "/", "%"), lambda: self._signed(depth)))

    def _chain(self, signs: tuple[str, ...], part: Callable[[], Node]) -> Node:
        first, rest = part(), list[tuple[str, Node]]()
        while self.tokens.sees(*signs):
            sign = self.tokens.take().text
            rest.append((sign, part()))
        return tree.Sum(first, tuple(rest)) if rest else first

    def _signed(self, depth: int) -> Node:
        if not self.tokens.sees("-"):
            return self._atom(depth)
        at = self.tokens.take().at
        if depth >= DEPTH_MAX:
            self.tokens.refuse(at, f"it is nested more than {DEPTH_MAX} times")
        return tree.Sum(tree.Constant(0), (("-", self._signed(depth + 1)),))

    def _atom(self, depth: int) -> Node:
        tokens = self.tokens
        if tokens.sees("("):
            tokens.take()
            inside = self.either(depth + 1)
            tokens.expect(")")
            return inside
        if tokens.sees("["):
            return tree.Constant(self._list())
        if tokens.now.kind == "word" and tokens.now.text.lower() not in ("true", "false"):
            return self._named(depth)
        return tree.Constant(self._constant())

    def _list(self) -> tuple[Value, ...]:
        tokens, values = self.tokens, list[Value]()
        tokens.expect("[")
        while not tokens.sees("]"):
            values.append(self._constant())
            if not tokens.sees("]"):
                tokens.expect(",")
        tokens.expect("]")
        return tuple(values)

    def _constant(self) -> Value:
        tokens, sign = self.tokens, 1
        if tokens.sees("-"):
            tokens.take()
            sign = -1
            if tokens.now.kind != "number":
                tokens.fail("a number")
        token = tokens.now
        if token.kind == "text":
            tokens.take()
            return text_of(token)
        if token.kind == "number":
            tokens.take()
            digits = token.text.replace("_", "")
            return sign * (int(digits) if digits.isdigit() else float(digits))
        if token.kind == "word" and token.text.lower() in ("true", "false"):
            tokens.take()
            return token.text.lower() == "true"
        raise tokens.fail('a value ("text", a number, true or false), a name such as node.cpu, or (')

    # ---- names -----------------------------------------------------------------------------------------------

    def _named(self, depth: int) -> Node:
        word = self.tokens.take()
        if self.tokens.sees("("):
            return self._call(word, depth)
        return self._lookup(word)

    def _lookup(self, first: Token) -> tree.Lookup:
        tokens, words = self.tokens, [first.text]
        while tokens.sees(".", "["):
            if tokens.take().text == ".":
                if tokens.now.kind != "word":
                    tokens.fail("a name")
                words.append(tokens.take().text)
            else:
                if tokens.now.kind != "text":
                    tokens.fail("a name in quotes")
                words.append(text_of(tokens.take()))
                tokens.expect("]")
        if len(words) not in (2, 3):
            why = wrong((first.text, "", ""), self._scopes) if first.text not in self._scopes else ""
            tokens.refuse(
                first.at, why or f"{'.'.join(words)!r} is no name; names are such as node.cpu, node.labels.zone"
            )
        name = (words[0], words[1] if len(words) == 3 else "", words[-1])
        why = wrong(name, self._scopes)
        if why:
            tokens.refuse(first.at, why)
        self.names.add(name)
        return tree.Lookup(name)

    def _call(self, word: Token, depth: int) -> Node:
        tokens = self.tokens
        tokens.expect("(")
        if word.text == "known":
            if tokens.now.kind != "word":
                tokens.fail("a name such as node.cpu")
            inside = self._lookup(tokens.take())
            tokens.expect(")")
            return tree.Known(inside)
        if word.text not in tree.FUNCTIONS:
            tokens.refuse(word.at, f"there is no function {word.text}; there are known, {', '.join(tree.FUNCTIONS)}")
        fn, least, most = tree.FUNCTIONS[word.text]
        args = list[Node]()
        while not tokens.sees(")"):
            args.append(self.either(depth + 1))
            if not tokens.sees(")"):
                tokens.expect(",")
        tokens.expect(")")
        if not least <= len(args) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            tokens.refuse(word.at, f"{word.text} takes {wanted} arguments, and has {len(args)}")
        return tree.Call(fn, tuple(args))
