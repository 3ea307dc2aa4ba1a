"""Cuts the text of an expression into tokens, and says where a text cannot be read."""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn

from mielin_cells.errors import ExpressionInvalid

CHARS_MAX = 2000
SHOWN = 60
"""Characters of the text that an error shows around the place."""

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)
    |(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>==|!=|<=|>=|[=<>()\[\],.+\-*/%])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class Token(NamedTuple):
    kind: str
    """"number", "text", "word", "sign", or "" at the end."""
    text: str
    at: int


class Tokens:
    """The tokens of one text, one after the other.  Raises `ExpressionInvalid` at what is none."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._at = 0
        if len(text) > CHARS_MAX:
            self.refuse(CHARS_MAX, f"it has {len(text)} characters, of at most {CHARS_MAX}")
        self.now = self._next()

    def _next(self) -> Token:
        found = _TOKEN.match(self.text, self._at)
        if found is None:
            rest = self.text[self._at :]
            at = self._at + len(rest) - len(rest.lstrip())
            if rest.strip():
                sign = self.text[at]
                self.refuse(at, "a text is not closed" if sign in "\"'" else f"{sign!r} means nothing here")
            return Token("", "", at)
        self._at = found.end()
        kind = found.lastgroup or ""
        return Token(kind, found.group(kind), found.start(kind))

    def take(self) -> Token:
        token, self.now = self.now, self._next()
        return token

    def sees(self, *words: str) -> bool:
        return self.now.kind in ("word", "sign") and self.now.text in words

    def expect(self, sign: str) -> None:
        if not self.sees(sign):
            self.fail(sign)
        self.take()

    def fail(self, wanted: str) -> NoReturn:
        have = f"there is {self.now.text}" if self.now.kind else "the text ends"
        self.refuse(self.now.at, f"{wanted} is wanted, and {have}")

    def refuse(self, at: int, why: str) -> NoReturn:
        start = max(at - SHOWN // 2, 0)
        shown = self.text[start : start + SHOWN].replace("\n", " ").replace("\t", " ")
        raise ExpressionInvalid(
            f"The expression cannot be read at column {at + 1}: {why}.\n  {shown}\n  {' ' * (at - start)}^",
            text=self.text[:CHARS_MAX], column=at + 1,
        )  # fmt: skip


def text_of(token: Token) -> str:
    """The text that a token in quotes stands for."""
    return _ESCAPE.sub(r"\1", token.text[1:-1])
