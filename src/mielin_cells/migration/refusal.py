"""Why a node does not take an agent, as a value: what decides goes by the kind, and people are shown the sentence."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import TypeAlias

import msgspec


class RefusalKind(Enum):
    """Values are what travels."""

    STOPPING = "stopping"
    CORDONED = "cordoned"
    HOSTING = "hosting"
    """It runs the agent already."""
    VERIFYING = "verifying"
    """Another migration of the agent, to it."""
    CLASS_UNKNOWN = "class unknown"
    CLASS_UNUSABLE = "class unusable"
    STATE_INVALID = "state version invalid"
    STATE_NEWER = "state newer"
    NO_UPGRADE = "no upgrade"
    ARCHITECTURE = "architecture"
    MEMORY = "memory"
    STORAGE = "storage"
    STATE_TOO_LARGE = "state too large"
    SIZE_INVALID = "size invalid"
    FEATURE = "feature"
    VERSION_MAJOR = "version major"
    VERSION_OLD = "version old"
    VERSION_UNREADABLE = "version unreadable"
    HAS_FAILED = "has failed"
    """This migration, before."""
    OTHER = "other"
    """Given in words, or of a kind that this version does not know."""


Fact: TypeAlias = str | int

SENTENCES: dict[RefusalKind, str] = {
    RefusalKind.STOPPING: "{node} is stopping and takes no agents",
    RefusalKind.CORDONED: "{node} is cordoned and takes no agents",
    RefusalKind.HOSTING: "{node} runs it already",
    RefusalKind.VERIFYING: "{node} is verifying migration {migration} of it",
    RefusalKind.CLASS_UNKNOWN: "{node} does not know the agent class {cls!r}; import its module there",
    RefusalKind.CLASS_UNUSABLE: "{node} cannot use the agent class {cls!r}: {why}",
    RefusalKind.STATE_INVALID: "its state is of {cls} version {version}, and versions begin at 1",
    RefusalKind.STATE_NEWER: "its state is of {cls} version {version}, and {node} has version {have}",
    RefusalKind.NO_UPGRADE: "its state is of {cls} version {version}, and {node} has version {have} without an upgrade from {missing}",
    RefusalKind.ARCHITECTURE: "it runs on {need}, and {node} is {have}",
    RefusalKind.MEMORY: "it needs {need:,} bytes of memory, and {node} has {left:,} free",
    RefusalKind.STORAGE: "it needs {need:,} bytes of storage, and {node} has {left:,} free",
    RefusalKind.STATE_TOO_LARGE: "its state has {size:,} bytes, and {node} takes at most {limit:,}",
    RefusalKind.SIZE_INVALID: "its state is said to have {size} bytes, which is not a size",
    RefusalKind.FEATURE: "{node} lacks the feature {feature}",
    RefusalKind.VERSION_MAJOR: "it needs version {need}, and {node} has {have}: another major version",
    RefusalKind.VERSION_OLD: "it needs version {need}, and {node} takes {least} or newer",
    RefusalKind.VERSION_UNREADABLE: "its version cannot be compared: {why}",
    RefusalKind.HAS_FAILED: "{node} has failed this migration",
    RefusalKind.OTHER: "{text}",
}
"""Without the full stop: several are joined in one sentence."""

_RESERVED = " ({free:,} less {reserved:,} reserved)"


class Refusal(msgspec.Struct, array_like=True, frozen=True):
    """One reason.  `str` gives the sentence."""

    name: str
    """A `RefusalKind`'s value: a newer node may send one that is not known here."""
    facts: dict[str, Fact]

    @property
    def kind(self) -> RefusalKind:
        return _KINDS.get(self.name, RefusalKind.OTHER)

    def __str__(self) -> str:
        kind, facts = self.kind, self.facts
        try:
            said = SENTENCES[kind].format_map(facts)
            return said + _RESERVED.format_map(facts) if facts.get("reserved") else said
        except (KeyError, ValueError, TypeError):  # of another version: what it says is shown as it came
            return ", ".join([self.name, *(f"{name} {fact}" for name, fact in facts.items())])


_KINDS = {kind.value: kind for kind in RefusalKind}


def refusal(kind: RefusalKind, **facts: Fact) -> Refusal:
    return Refusal(kind.value, facts)


def as_refusal(reason: Refusal | str) -> Refusal:
    """A reason that may have come as a sentence: of that nothing is known but the words."""
    return reason if isinstance(reason, Refusal) else refusal(RefusalKind.OTHER, text=reason)


def kinds(refusals: Iterable[Refusal]) -> list[str]:
    """For the facts of an error, beside its sentences."""
    return [one.name for one in refusals]
