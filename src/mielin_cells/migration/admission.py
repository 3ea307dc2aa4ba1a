"""May a node take an agent?  Decided from what the source says of the agent and what the node knows of itself.

A refusal names every reason, so that nobody mends one only to meet the next.  Whoever decides has gathered the facts
before: nothing is looked up here.  What an agent needs of any node is the seed's check (`validation`); that the node is willing,
and has the class, is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from mielin_cells.migration.validation import AgentRequirements, NodeCapabilities, check_compatibility

UNLIMITED = 1 << 100
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


def refusals(offer: Offer, node: Facts) -> tuple[str, ...]:
    """Every reason why the node cannot take the agent; none: it can.

    Each is a sentence without the stop, and names what there is and what is needed.
    """
    return (*_unwilling(node), *_unfit(offer, node), *_incompatible(offer, node))


def _unwilling(node: Facts) -> list[str]:
    found: list[str] = []
    if node.is_stopping:
        found.append(f"{node.name} is stopping and takes no agents")
    elif node.is_cordoned:
        found.append(f"{node.name} is cordoned and takes no agents")
    if node.is_hosting:
        found.append(f"{node.name} runs it already")
    if node.verifies:
        found.append(f"{node.name} is verifying migration {node.verifies} of it")
    return found


def _unfit(offer: Offer, node: Facts) -> list[str]:
    found: list[str] = []
    state = f"its state is of {offer.cls} version {offer.version}"
    if node.class_error:
        found.append(f"{node.name} cannot use the agent class {offer.cls!r}: {node.class_error.rstrip('.')}")
    elif node.version is None:
        found.append(f"{node.name} does not know the agent class {offer.cls!r}; import its module there")
    elif offer.version < 1:
        found.append(f"{state}, and versions begin at 1")
    elif offer.version > node.version:
        found.append(f"{state}, and {node.name} has version {node.version}")
    else:
        missing = [step for step in range(offer.version, node.version) if step not in node.upgrades_from]
        if missing:
            found.append(f"{state}, and {node.name} has version {node.version} without an upgrade from {missing[0]}")
    return found


def _incompatible(offer: Offer, node: Facts) -> tuple[str, ...]:
    need = offer.state_bytes
    wants = AgentRequirements(architectures=offer.architectures, required_storage=max(0, need), state_size=max(0, need))
    has = NodeCapabilities(
        name=node.name, architectures=(node.architecture,) if node.architecture else (),
        available_memory=_limit(node.memory_bytes), available_storage=_limit(node.storage_bytes),
        max_state_size=_limit(node.state_bytes_max), reserved=node.reserved_bytes,
    )  # fmt: skip
    reasons = check_compatibility(wants, has).reasons
    return reasons if need >= 0 else (*reasons, f"its state is said to have {need} bytes, which is not a size")


def _limit(known: int | None) -> int:
    return UNLIMITED if known is None else known
