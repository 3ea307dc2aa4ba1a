"""Versions of software, ordered as semver.org says, pre-releases too."""

from __future__ import annotations

import re
from functools import total_ordering
from typing import TypeAlias

from mielin_cells.errors import ConfigError

TEXT_CHARS_MAX = 200
"""Of a version: real ones have 30, and numbers of any length cannot be read."""

_VERSION = re.compile(
    r"[vV]?([0-9]+)(?:\.([0-9]+))?(?:\.([0-9]+))?(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?"
)

_Key: TypeAlias = tuple[int, int, int, bool, tuple[tuple[int, int, str], ...]]


@total_ordering
class Version:
    """`Version("v1.2.3-rc.1+build")`.  Missing parts are 0, build data do not count.  Raises `ConfigError` for anything else."""

    __slots__ = ("major", "minor", "patch", "pre")

    def __init__(self, text: str) -> None:
        found = _VERSION.fullmatch(text.strip()) if len(text) <= TEXT_CHARS_MAX else None
        if found is None:
            wish = "MAJOR.MINOR.PATCH[-PRE]"
            raise ConfigError(f"{text[:80]!r} is no version; wanted: {wish}.", field="version", range=wish)
        self.major, self.minor, self.patch = (int(part or 0) for part in found.group(1, 2, 3))
        self.pre = tuple(found[4].split(".")) if found[4] else ()

    def _key(self) -> _Key:
        # A release is above its pre-releases; numbers are below words; fewer words are below more.
        pre = tuple((0, int(word), "") if word.isdigit() else (1, 0, word) for word in self.pre)
        return self.major, self.minor, self.patch, not self.pre, pre

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._key() == other._key()

    def __lt__(self, other: Version) -> bool:
        return self._key() < other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}" + (f"-{'.'.join(self.pre)}" if self.pre else "")

    def __repr__(self) -> str:
        return f"Version({str(self)!r})"
