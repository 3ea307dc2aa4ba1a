"""Why a node does not take an agent, as a value: decisions use the kind, and people are shown the sentence."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import TypeAlias

import msgspec


class RefusalKind(Enum):
    """A value is what travels; the sentence has no full stop, because several are joined."""

    STOPPING = "stopping", "{node} is stopping and takes no agents"
    CORDONED = "cordoned", "{node} is cordoned and takes no agents"
    HOSTING = "hosting", "{node} runs it already"
    VERIFYING = "verifying", "{node} is verifying migration {migration} of it"
    CLASS_UNKNOWN = "class unknown", "{node} does not know the agent class {cls!r}; import its module there"
    CLASS_UNUSABLE = "class unusable", "{node} cannot use the agent class {cls!r}: {why}"
    STATE_INVALID = "state version invalid", "its state is of {cls} version {version}, and versions begin at 1"
    STATE_NEWER = "state newer", "its state is of {cls} version {version}, and {node} has version {have}"
    NO_UPGRADE = (
        "no upgrade",
        "its state is of {cls} version {version}, and {node} has version {have} without an upgrade from {missing}",
    )
    ARCHITECTURE = "architecture", "it runs on {need}, and {node} is {have}"
    MEMORY = "memory", "it needs {need:,} bytes of memory, and {node} has {left:,} free"
    STORAGE = "storage", "it needs {need:,} bytes of storage, and {node} has {left:,} free"
    STATE_TOO_LARGE = "state too large", "its state has {size:,} bytes, and {node} takes at most {limit:,}"
    SIZE_INVALID = "size invalid", "its state is said to have {size} bytes, which is not a size"
    FEATURE = "feature", "{node} lacks the feature {feature}"
    VERSION_MAJOR = "version major", "it needs version {need}, and {node} has {have}: another major version"
    VERSION_OLD = "version old", "it needs version {need}, and {node} takes {least} or newer"
    VERSION_UNREADABLE = "version unreadable", "its version cannot be compared: {why}"
    FULL = "full", "{node} takes {limit} moves at a time, and has as many"
    CROWDED = "crowded", "{node} has {have} agents, and takes at most {limit}"
    FAST = "fast", "{node} takes {limit:,} bytes a second by moves, and has been given more than that"
    HAS_FAILED = "has failed", "{node} has failed this migration"
    OTHER = "other", "{text}"
    """Given in words, or of a kind that this version does not know."""

    sentence: str

    def __new__(cls, value: str, sentence: str) -> RefusalKind:
        kind = object.__new__(cls)
        kind._value_, kind.sentence = value, sentence
        return kind


PASSING = frozenset({RefusalKind.FULL, RefusalKind.FAST})
"""Reasons that pass by themselves: the node is asked again."""

Fact: TypeAlias = str | int

_RESERVED = " ({free:,} less {reserved:,} reserved)"


class Refusal(msgspec.Struct, array_like=True, frozen=True):
    """One reason.  `str` gives the sentence."""

    name: str
    """A `RefusalKind`'s value; a newer node may send one that is unknown here."""
    facts: dict[str, Fact]

    @property
    def kind(self) -> RefusalKind:
        return _KINDS.get(self.name, RefusalKind.OTHER)

    def __str__(self) -> str:
        facts = self.facts
        try:
            said = self.kind.sentence.format_map(facts)
            return said + _RESERVED.format_map(facts) if facts.get("reserved") else said
        except (KeyError, ValueError, TypeError):  # of another version: what it says is shown as it came
            return ", ".join([self.name, *(f"{name} {fact}" for name, fact in facts.items())])


_KINDS = {kind.value: kind for kind in RefusalKind}


def refusal(kind: RefusalKind, **facts: Fact) -> Refusal:
    return Refusal(kind.value, facts)


def as_refusal(reason: Refusal | str) -> Refusal:
    """A refusal from a value that may be only a sentence; such a sentence has the kind `other`."""
    return reason if isinstance(reason, Refusal) else refusal(RefusalKind.OTHER, text=reason)


def kinds(refusals: Iterable[Refusal]) -> list[str]:
    """For the facts of an error, beside its sentences."""
    return [one.name for one in refusals]
