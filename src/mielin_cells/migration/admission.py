"""Decides whether a node may take an agent, from what the source says about the agent and what the node knows about itself.

`check_compatibility` is the seed's check: what an agent needs of any node.  `refusals` adds whether this node is willing and has the
agent's class.  Both report every reason, so that nobody mends one only to meet the next, and look nothing up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import TypeAlias

from mielin_cells.errors import ConfigError
from mielin_cells.migration.refusal import Fact, Refusal, refusal
from mielin_cells.migration.refusal import RefusalKind as Kind

HEADROOM = 5
"""Less than a fifth of the free memory left over is worth a warning."""

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRequirements:
    """What an agent needs.  Bytes; no architectures and no version: any."""

    architectures: tuple[str, ...] = ()
    required_memory: int = 0
    required_storage: int = 0
    state_size: int = 0
    features: tuple[str, ...] = ()
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCapabilities:
    """What a node has.  Defaults: the crate's."""

    architectures: tuple[str, ...] = ("x86_64", "aarch64")
    available_memory: int = 8 * GIB
    available_storage: int = 100 * GIB
    features: tuple[str, ...] = ("bulk-memory", "simd")
    max_state_size: int = GIB
    version: str = "0.1.0"
    min_version: str = "0.1.0"
    name: str = "the node"
    """The node's name in reasons."""
    reserved: int = 0
    """Bytes of memory and of storage that are promised to agents on their way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompatibilityStatus:
    """Every reason against, and every warning.  `can_proceed` unless there is a reason."""

    refusals: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """The refusals as sentences."""
        return tuple(map(str, self.refusals))

    @property
    def name(self) -> str:
        """The seed's name of it."""
        if self.refusals:
            return "Incompatible"
        return "CompatibleWithWarnings" if self.warnings else "Compatible"

    @property
    def is_compatible(self) -> bool:
        """Without reservation."""
        return not self.refusals and not self.warnings

    @property
    def can_proceed(self) -> bool:
        return not self.refusals


def check_compatibility(agent: AgentRequirements, node: NodeCapabilities) -> CompatibilityStatus:
    """Makes every check of the crate, in its order, also after one has failed."""
    refused: list[Refusal] = []
    warnings: list[str] = []
    if agent.architectures and not set(agent.architectures) & set(node.architectures):
        have = " and ".join(node.architectures) or "of an unknown architecture"
        refused.append(refusal(Kind.ARCHITECTURE, node=node.name, need=" or ".join(agent.architectures), have=have))
    # The state is held in memory, so it counts, too.
    need = agent.required_memory + agent.state_size
    spare = _left(node.available_memory, node.reserved) - need
    if spare < 0:
        refused.append(_short(Kind.MEMORY, need, node.available_memory, node))
    elif spare * HEADROOM < node.available_memory - node.reserved:
        warnings.append(f"{spare:,} bytes of memory would be left, less than a fifth of what is free")
    if agent.required_storage > _left(node.available_storage, node.reserved):
        refused.append(_short(Kind.STORAGE, agent.required_storage, node.available_storage, node))
    if agent.state_size > node.max_state_size:
        refused.append(refusal(Kind.STATE_TOO_LARGE, node=node.name, size=agent.state_size, limit=node.max_state_size))
    refused += [
        refusal(Kind.FEATURE, node=node.name, feature=name) for name in agent.features if name not in node.features
    ]
    if agent.version:
        _check_version(agent.version, node, refused, warnings)
    return CompatibilityStatus(refusals=tuple(refused), warnings=tuple(warnings))


def _left(free: int, reserved: int) -> int:
    return max(0, free - reserved)


def _short(kind: Kind, need: int, free: int, node: NodeCapabilities) -> Refusal:
    left = _left(free, node.reserved)
    return refusal(kind, node=node.name, need=need, left=left, free=free, reserved=node.reserved)


def _check_version(text: str, node: NodeCapabilities, refused: list[Refusal], warnings: list[str]) -> None:
    try:
        version, have, least = Version(text), Version(node.version), Version(node.min_version)
    except ConfigError as error:
        refused.append(refusal(Kind.VERSION_UNREADABLE, node=node.name, why=error.message.rstrip(".")))
        return
    if version.major not in (have.major, least.major):
        refused.append(refusal(Kind.VERSION_MAJOR, node=node.name, need=str(version), have=str(have)))
    elif version < least:
        refused.append(refusal(Kind.VERSION_OLD, node=node.name, need=str(version), least=str(least)))
    elif version > have:
        warnings.append(f"it was made for version {version}, and {node.name} has {have}")


# ---- the agent and the node, as a move meets them ----

UNLIMITED = 1 << 62
"""Stands for an unknown or unlimited quantity: every need and every reservation is less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """An agent that is to be moved, as its source describes it."""

    cls: str
    version: int
    """Class version of the stored state."""
    state_bytes: int
    architectures: tuple[str, ...] = ()
    """Where it can run; empty for everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the target knows about itself.  None means that a quantity is unknown or unlimited, and is not checked."""

    name: str
    version: int | None
    """Its version of the class; None if it has no class of this name, or none that it can use."""
    upgrades_from: frozenset[int] = frozenset()
    """Class versions that have an upgrade to the next one."""
    class_error: str = ""
    """Why it cannot use the class that it has."""
    architecture: str = ""
    memory_bytes: int | None = None
    """Free now, before reservations."""
    storage_bytes: int | None = None
    """Free where this node's own store is; None if the store is elsewhere."""
    reserved_bytes: int = 0
    """Promised to agents that are being copied to this node."""
    state_bytes_max: int | None = None
    is_stopping: bool = False
    is_cordoned: bool = False
    is_hosting: bool = False
    verifies: str = ""
    """Another migration of this agent, which this node is verifying."""
    moves: int = 0
    """Agents that are on their way to this node."""
    moves_max: int | None = None
    agents: int = 0
    """Those that it has."""
    agents_max: int = 0
    """Those that it takes; 0: no limit."""
    bytes_s: int = 0
    """What it takes by moves in a second; 0: no limit."""
    is_ahead: bool = False
    """It has been given more than that lately."""


def refusals(offer: Offer, node: Facts) -> tuple[Refusal, ...]:
    """Every reason why the node cannot take the agent; empty if it can.

    Each names what the node has and what is needed.
    """
    return (*_unwilling(node), *_unfit(offer, node), *_incompatible(offer, node))


def _unwilling(node: Facts) -> list[Refusal]:
    refused: list[Refusal] = []
    if node.is_stopping:
        refused.append(refusal(Kind.STOPPING, node=node.name))
    elif node.is_cordoned:
        refused.append(refusal(Kind.CORDONED, node=node.name))
    if node.is_hosting:
        refused.append(refusal(Kind.HOSTING, node=node.name))
    if node.verifies:
        refused.append(refusal(Kind.VERIFYING, node=node.name, migration=node.verifies))
    if node.moves_max is not None and node.moves >= node.moves_max:
        refused.append(refusal(Kind.FULL, node=node.name, limit=node.moves_max))
    if node.agents_max and node.agents + node.moves >= node.agents_max:
        refused.append(refusal(Kind.CROWDED, node=node.name, have=node.agents + node.moves, limit=node.agents_max))
    if node.is_ahead:
        refused.append(refusal(Kind.FAST, node=node.name, limit=node.bytes_s))
    return refused


def _unfit(offer: Offer, node: Facts) -> list[Refusal]:
    if node.class_error:
        return [refusal(Kind.CLASS_UNUSABLE, node=node.name, cls=offer.cls, why=node.class_error.rstrip("."))]
    if node.version is None:
        return [refusal(Kind.CLASS_UNKNOWN, node=node.name, cls=offer.cls)]
    state: dict[str, Fact] = {"node": node.name, "cls": offer.cls, "version": offer.version, "have": node.version}
    if offer.version < 1:
        return [refusal(Kind.STATE_INVALID, **state)]
    if offer.version > node.version:
        return [refusal(Kind.STATE_NEWER, **state)]
    missing = [step for step in range(offer.version, node.version) if step not in node.upgrades_from]
    return [refusal(Kind.NO_UPGRADE, **state, missing=missing[0])] if missing else []


def _incompatible(offer: Offer, node: Facts) -> tuple[Refusal, ...]:
    need = offer.state_bytes
    wants = AgentRequirements(architectures=offer.architectures, required_storage=max(0, need), state_size=max(0, need))
    has = NodeCapabilities(
        name=node.name, architectures=(node.architecture,) if node.architecture else (),
        available_memory=_limit(node.memory_bytes), available_storage=_limit(node.storage_bytes),
        max_state_size=_limit(node.state_bytes_max), reserved=node.reserved_bytes,
    )  # fmt: skip
    refused = check_compatibility(wants, has).refusals
    return refused if need >= 0 else (*refused, refusal(Kind.SIZE_INVALID, size=need))


def _limit(quantity: int | None) -> int:
    return UNLIMITED if quantity is None else quantity


# ---- versions ----

TEXT_CHARS_MAX = 200
"""Longest version that is read: real ones have up to 30 characters, and Python refuses to read numbers of any length."""

_VERSION = re.compile(
    r"[vV]?([0-9]+)(?:\.([0-9]+))?(?:\.([0-9]+))?(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?"
)

_Key: TypeAlias = tuple[int, int, int, bool, tuple[tuple[int, int, str], ...]]


@total_ordering
class Version:
    """`Version("v1.2.3-rc.1+build")`.  Missing parts are 0, build data do not count.  Raises `ConfigError` for anything else."""

    __slots__ = ("major", "minor", "patch", "pre")

    def __init__(self, text: str) -> None:
        parts = _VERSION.fullmatch(text.strip()) if len(text) <= TEXT_CHARS_MAX else None
        if parts is None:
            wish = "MAJOR.MINOR.PATCH[-PRE]"
            raise ConfigError(f"{text[:80]!r} is not a version; wanted: {wish}.", field="version", range=wish)
        self.major, self.minor, self.patch = (int(part or 0) for part in parts.group(1, 2, 3))
        self.pre = tuple(parts[4].split(".")) if parts[4] else ()

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
