"""What happens to a deploy, as the records of the log `deploys`.  The fold of them is the deploy (`machine`).

Every append to this log expects its last record, so of two operators one is first, and the other decides anew.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from mielin_cells.log.codec import Codec, framed, pack
from mielin_cells.policy.deploys.health import Limits

Wish: TypeAlias = Literal["pause", "resume", "undo"]


class Event(msgspec.Struct, array_like=True, frozen=True, tag=True, kw_only=True):
    """Head of all.  Further fields of newer versions are skipped."""

    deploy: str
    at: float = 0.0
    """Wall seconds, for people."""
    nonce: bytes = b""
    """Tells appends apart that say the same."""


class Began(Event, frozen=True, kw_only=True):
    app: str
    old: list[str]
    """The nodes that are to be replaced."""
    new: list[str]
    """The nodes that replace them."""
    fleet: str = ""
    """Who starts and stops these nodes: the `mielin up` of this name; "": somebody else does."""
    config: str = ""
    stages: list[int] = []
    """Percent of the agents that are on new nodes after each stage."""
    where: str = ""
    """Of the first stage: a condition on attributes, instead of a percentage."""
    watch_s: float = 30.0
    """How long the agents of each stage are watched before the next."""
    start_s: float = 60.0
    """How long new nodes may take to serve."""
    limits: Limits = Limits()
    undoes: bool = True
    """Bad health undoes the deploy; otherwise it pauses it."""
    rewinds: bool = False
    """An undo takes all agents back to what they were before they moved, not only those that the old code could not load."""
    rising: dict[str, int] = {}
    """The classes whose version the new code raises, with the version that old nodes have."""
    versions: dict[str, int] = {}
    """The versions that the new code has of the classes that have agents; empty: it was not checked."""


class Drives(Event, frozen=True, kw_only=True):
    """A process carries out what is due from here on; the one before does no more."""

    driver: str
    by: str = ""
    """For people."""


class Served(Event, frozen=True, kw_only=True):
    """Every new node serves."""


class Moved(Event, frozen=True, kw_only=True):
    """The agents of a stage are on new nodes."""

    stage: int
    agents: int


class Passed(Event, frozen=True, kw_only=True):
    """The agents of a stage have fared well."""

    stage: int


class Opened(Event, frozen=True, kw_only=True):
    """New nodes take whatever agents, and old ones no more."""


class Retired(Event, frozen=True, kw_only=True):
    """Old nodes have no agents any more, and were stopped if somebody does that."""


class Failed(Event, frozen=True, kw_only=True):
    """What is due cannot be done, or the new code is not well."""

    why: str


class Wished(Event, frozen=True, kw_only=True):
    """By an operator."""

    wish: Wish
    why: str = ""


class TakenBack(Event, frozen=True, kw_only=True):
    """Of an undo: the agents are on old nodes again, besides those that are stuck."""

    moved: int
    """With all that they did in the new code."""
    rewound: int
    """As they were before they moved; they take the messages since then again."""
    stuck: list[tuple[str, str]] = []
    """Some of the agents that stay on new nodes, or are back and lack what follows from that, each with the reason."""
    stay: int = 0
    """How many these are."""
    replayed: int = 0
    """Dead letters since the deploy began, of agents that moved back, which were sent again."""


class Stopped(Event, frozen=True, kw_only=True):
    """Of an undo: new nodes were stopped, or somebody else may stop them."""


AnyEvent: TypeAlias = (
    Began | Drives | Served | Moved | Passed | Opened | Retired | Failed | Wished | TakenBack | Stopped
)

_codec = Codec[AnyEvent](AnyEvent, "record of the deploys' log", Event)


def encode_event(event: AnyEvent) -> bytes:
    return framed(pack(event))


def decode_event(data: bytes, where: str) -> AnyEvent:
    """Raises a `RecordInvalid` that names what is wrong."""
    return _codec.decode_framed(data, where)
