"""Reads a condition from text: `region == "eu" and (load < 3 or vip)`."""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn

from mielin_cells.agents.finding.where import ORDERS, All, Attr, Exists, In, Not, Ordered, Some, Where
from mielin_cells.errors import AttributeInvalid, WhereInvalid
from mielin_cells.log.attributes.values import Value

CHARS_MAX = 4096
DEPTH_MAX = 64
SHOWN = 60
"""Characters of the text that an error shows around the place."""

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>[+-]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)
    |(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>==|!=|<=|>=|[=<>(),])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_WORDS = {"true": True, "false": False}


class Token(NamedTuple):
    kind: str
    """"number", "text", "word", "sign", or "" at the end."""
    text: str
    at: int


def parse(text: str) -> Where:
    """Raises `WhereInvalid`, which names the column of what cannot be read."""
    reader = _Reader(text)
    where = reader.either(0)
    if reader.now.kind:
        reader.fails("and, or, or the end")
    return where


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        if len(text) > CHARS_MAX:
            self._refuse(CHARS_MAX, f"it has {len(text)} characters, of at most {CHARS_MAX}")
        self.now = self._next()

    def _next(self) -> Token:
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            rest = self._text[self._at :]
            at = self._at + len(rest) - len(rest.lstrip())
            if rest.strip():
                quote = self._text[at]
                self._refuse(at, "a text is not closed" if quote in "\"'" else f"{quote!r} means nothing here")
            return Token("", "", at)
        self._at = found.end()
        kind = found.lastgroup or ""
        return Token(kind, found.group(kind), found.start(kind))

    def _take(self) -> Token:
        token, self.now = self.now, self._next()
        return token

    def _is(self, *words: str) -> bool:
        return self.now.kind in ("word", "sign") and self.now.text in words

    def fails(self, wanted: str) -> NoReturn:
        have = f"there is {self.now.text}" if self.now.kind else "the text ends"
        self._refuse(self.now.at, f"{wanted} is wanted, and {have}")

    def _refuse(self, at: int, why: str) -> NoReturn:
        start = max(at - SHOWN // 2, 0)
        shown = self._text[start : start + SHOWN].replace("\n", " ").replace("\t", " ")
        pointer = " " * (at - start) + "^"
        raise WhereInvalid(
            f"The condition cannot be read at column {at + 1}: {why}.\n  {shown}\n  {pointer}",
            text=self._text[:CHARS_MAX],
            column=at + 1,
        )

    # ---- or, and, not ----------------------------------------------------------------------------------------

    def either(self, depth: int) -> Where:
        parts = [self._both(depth)]
        while self._is("or"):
            self._take()
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else Some(tuple(parts))

    def _both(self, depth: int) -> Where:
        parts = [self._one(depth)]
        while self._is("and"):
            self._take()
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _one(self, depth: int) -> Where:
        if depth > DEPTH_MAX:
            self._refuse(self.now.at, f"it is nested more than {DEPTH_MAX} times")
        if self._is("not"):
            self._take()
            return Not(self._one(depth + 1))
        if self._is("("):
            self._take()
            inside = self.either(depth + 1)
            self._expect(")")
            return inside
        if self._is("exists"):
            self._take()
            self._expect("(")
            name = self._name()
            self._expect(")")
            return Exists(name)
        return self._comparison()

    def _comparison(self) -> Where:
        name = self._name()
        if self._is("in"):
            self._take()
            return In(name, self._values())
        if self._is("not"):
            self._take()
            if not self._is("in"):
                self.fails("in")
            self._take()
            return Not(In(name, self._values()))
        if self._is("=", "=="):
            self._take()
            return In(name, (self._value(),))
        if self._is("!="):
            self._take()
            return Not(In(name, (self._value(),)))
        if self._is(*ORDERS):
            return Ordered(name, self._take().text, self._value())
        return Attr(name)

    # ---- names and values ------------------------------------------------------------------------------------

    def _expect(self, sign: str) -> None:
        if not self._is(sign):
            self.fails(sign)
        self._take()

    def _name(self) -> str:
        if self.now.kind != "word":
            self.fails("an attribute")
        try:
            name = Attr(self.now.text).name
        except AttributeInvalid:
            self.fails("an attribute")
        self._take()
        return name

    def _values(self) -> tuple[Value, ...]:
        self._expect("(")
        values = [self._value()]
        while self._is(","):
            self._take()
            if self._is(")"):
                break
            values.append(self._value())
        self._expect(")")
        return tuple(values)

    def _value(self) -> Value:
        token = self.now
        if token.kind == "text":
            self._take()
            return _ESCAPE.sub(r"\1", token.text[1:-1])
        if token.kind == "number":
            self._take()
            return int(token.text) if token.text.lstrip("+-").isdigit() else float(token.text)
        if token.kind == "word" and token.text.lower() in _WORDS:
            self._take()
            return _WORDS[token.text.lower()]
        raise self.fails('a value ("text", a number, true or false)')
