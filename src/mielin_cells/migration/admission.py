"""May a node take an agent?  Decided from what the source says of the agent and what the node knows of itself.

A refusal names every reason, so that nobody mends one only to meet the next.  Whoever decides has gathered the facts
before: nothing is looked up here.  What an agent needs of any node is the seed's check (`validation`); that the node is willing,
and has the class, is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from mielin_cells.migration.refusal import Fact, Refusal, refusal
from mielin_cells.migration.refusal import RefusalKind as Kind
from mielin_cells.migration.validation import AgentRequirements, NodeCapabilities, check_compatibility

UNLIMITED = 1 << 62
"""Stands for a quantity that is not known, or not limited: whatever is needed or reserved is less."""


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
    """What the target knows of itself.  None means that a quantity is not known, or not limited: it is not checked then."""

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


def refusals(offer: Offer, node: Facts) -> tuple[Refusal, ...]:
    """Every reason why the node cannot take the agent; none: it can.

    Each names what there is and what is needed.
    """
    return (*_unwilling(node), *_unfit(offer, node), *_incompatible(offer, node))


def _unwilling(node: Facts) -> list[Refusal]:
    found: list[Refusal] = []
    if node.is_stopping:
        found.append(refusal(Kind.STOPPING, node=node.name))
    elif node.is_cordoned:
        found.append(refusal(Kind.CORDONED, node=node.name))
    if node.is_hosting:
        found.append(refusal(Kind.HOSTING, node=node.name))
    if node.verifies:
        found.append(refusal(Kind.VERIFYING, node=node.name, migration=node.verifies))
    return found


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
    found = check_compatibility(wants, has).refusals
    return found if need >= 0 else (*found, refusal(Kind.SIZE_INVALID, size=need))


def _limit(known: int | None) -> int:
    return UNLIMITED if known is None else known
