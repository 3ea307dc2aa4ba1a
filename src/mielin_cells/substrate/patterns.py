"""Patterns of subjects: `*` stands for one word, and `>` at the end for one word or more."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache


@lru_cache(1024)
def matcher(pattern: str) -> Callable[[str], object]:
    """Gives something true for a subject that matches."""
    words = [r"[^.]+" if word == "*" else r".+" if word == ">" else re.escape(word) for word in pattern.split(".")]
    return re.compile(r"\.".join(words)).fullmatch


def glob_of(pattern: str) -> str:
    """A glob that everything matches which the pattern matches, and perhaps more."""
    return "*" if pattern == ">" else pattern.replace(">", "*")


class Watch:
    """A subscription that calls `wake` for subjects that match."""

    __slots__ = ("_forget", "matches", "wake")

    def __init__(self, pattern: str, wake: Callable[[], None], forget: Callable[[Watch], None]) -> None:
        self.matches = matcher(pattern)
        self.wake = wake
        self._forget = forget

    def close(self) -> None:
        self._forget(self)
