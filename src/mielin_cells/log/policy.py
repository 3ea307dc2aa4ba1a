"""The policy of an agent for the nodes that run it: a value that travels in its log.

It only holds what was asked for.  The rooms `policy.expression` and `policy.placement` read its texts and decide by them; a text that
this version cannot read does not keep a record from being decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec

from mielin_cells.errors import ConfigError
from mielin_cells.log.triggers.values import MigrationPolicy
from mielin_cells.settings import check_ranges

Name = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+$")]
Names = Annotated[tuple[Name, ...], msgspec.Meta(description='names, such as ("x86_64", "aarch64")')]
Rule = Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
Rules = Annotated[tuple[Rule, ...], msgspec.Meta(description='expressions, such as ("node.cpu < 80",)')]
Weight = Annotated[float, msgspec.Meta(ge=-1000, le=1000, description="a number from -1000 to 1000")]
Text = Annotated[str, msgspec.Meta(max_length=2000, description="a text of at most 2000 characters")]


class Preference(msgspec.Struct, frozen=True, omit_defaults=True, cache_hash=True):
    """A rule that a node should meet.  Raises `ConfigError`.

    >>> from mielin_cells.policies import Policy, Preference
    >>> class Ledger(cells.Agent, policy=Policy(prefer=(Preference("node.mains"), Preference("node.cpu < 50", 0.5)))):
    ...     cents: int = 0
    ...
    >>> ledger = await cluster.spawn(Ledger, "ledger")
    """

    that: Annotated[str, msgspec.Meta(min_length=1, max_length=2000, description='an expression, such as "node.mains"')]
    """A condition, which counts 1 where it holds, or a number, which counts as it is."""
    weight: Weight = 1.0
    """A node with one point more is chosen until it has as many agents more as a node has on average."""

    def __post_init__(self) -> None:
        check_ranges(self, "A preference's {field} = {value!r}")
        msgspec.structs.force_setattr(self, "weight", float(self.weight))  # it is written as it is read


class Affinity(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, cache_hash=True):
    """Other agents, to be near or apart.  Give `agent` or `where`.  Raises `ConfigError`.

    >>> from mielin_cells.policies import Affinity, Policy
    >>> near_till = Policy(near=(Affinity(agent="till-1", required=True),))
    >>> _ = till  # it is on node-1
    >>> drawer = await cluster.with_policy(near_till).spawn(Till, "drawer")
    >>> (await cluster.show(drawer)).node
    'node-1'
    """

    agent: Text = ""
    """The id of one agent."""
    where: Text = ""
    """A condition on attributes, as in `cluster.find`: all agents that meet it."""
    by: Text = ""
    """Near means on nodes of which this label is equal.  Empty: on the same node."""
    weight: Weight = 1.0
    required: bool = False
    """It is a condition, and not a preference."""

    def __post_init__(self) -> None:
        check_ranges(self, "An affinity's {field} = {value!r}")
        msgspec.structs.force_setattr(self, "weight", float(self.weight))


Preferences = Annotated[tuple[Preference, ...], msgspec.Meta(description="a tuple of Preference(...)")]
Affinities = Annotated[tuple[Affinity, ...], msgspec.Meta(description="a tuple of Affinity(...)")]
PauseMs = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Copies = Annotated[int, msgspec.Meta(ge=0, le=8, description="a whole number, 0 to 8")]


def _none() -> Names:
    return ()


class Policy(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, cache_hash=True):
    """Which nodes may run an agent, and which it had better run on.  Raises `ConfigError` for what cannot be meant.

    The crate's `min_battery` and `max_latency_ms` are rules here: `require=("node.battery >= 20", "node.store_ms <= 100")`.

        >>> class Ledger(cells.Agent, policy=cells.Policy(spread=("zone",), standby=1)):
        ...     cents: int = 0
        ...
        >>> ledger = await cluster.spawn(Ledger, "ledger")
        >>> (await cluster.show(ledger)).policy.spread
        ('zone',)
    """

    # It is always written, also if it is empty: earlier versions sealed it like that, and a move compares seals.
    preferred_architectures: Names = msgspec.field(default_factory=_none)
    """A node of another architecture takes no such agent.  Empty: every architecture will do."""
    require: Rules = ()
    """Conditions that a node must meet.  One that is not known, because a fact is absent, is not met."""
    prefer: Preferences = ()
    """Of the nodes that may run the agent, those with the most points come first."""
    near: Affinities = ()
    """Agents that it should, or must, run near to."""
    apart: Affinities = ()
    """Agents that it should not, or must not, run near to."""
    spread: Names = ()
    """Labels of nodes over whose values the agents of a class are spread evenly, the most important first."""
    immovable: bool = False
    """It is moved only by an explicit order; other nodes still take it over when its node is lost."""
    pause_ms: Annotated[PauseMs | None, msgspec.Meta(description="milliseconds, above 0, to 1,000,000,000")] = None
    """A move that is predicted to pause the agent for longer is not begun, except from a node that is about to stop; None: no pause is
    too long."""
    migration: MigrationPolicy | None = None
    """When it leaves its node by itself; None: never."""
    standby: Annotated[Copies | None, msgspec.Meta(description="a whole number, 0 to 8")] = None
    """How many nodes keep a copy of it; None: as its class says."""

    def __post_init__(self) -> None:
        # By type, too: a policy is a part of records, and one that does not decode would strand its agent.
        if type(self.preferred_architectures) is not tuple or self.preferred_architectures or not _is_plain(self):
            check_ranges(self, "A policy's {field} = {value!r}")
            for field in ("preferred_architectures", "require", "prefer", "near", "apart", "spread"):
                msgspec.structs.force_setattr(self, field, tuple(getattr(self, field)))
            if self.migration is not None and not isinstance(self.migration, MigrationPolicy):
                raise ConfigError(
                    f"A policy's migration = {self.migration!r} is no MigrationPolicy.", field="migration"
                )

    def allows_architecture(self, architecture: str) -> bool:
        return not self.preferred_architectures or architecture in self.preferred_architectures

    @property
    def decides(self) -> bool:
        """True if it says anything about where the agent runs."""
        return bool(self.preferred_architectures or self.require or self.prefer or self.looks_at_agents)

    @property
    def affinities(self) -> Iterator[Affinity]:
        yield from self.near
        yield from self.apart

    @property
    def looks_at_agents(self) -> bool:
        """True if where other agents run decides about it."""
        return bool(self.near or self.apart or self.spread)


def _is_plain(policy: Policy) -> bool:
    """True if everything but the architectures is as by default: such a policy costs nothing more than it did without the rest."""
    return (
        policy.require == () == policy.prefer and policy.near == () == policy.apart and policy.spread == ()
        and policy.immovable is False and policy.standby is None and policy.migration is None and policy.pause_ms is None
    )  # fmt: skip


DEFAULT = Policy()


def shared(policy: Policy) -> Policy:
    """The policy itself, or `DEFAULT` if it is equal: of a hundred thousand agents without a policy there is one value."""
    return DEFAULT if policy == DEFAULT else policy
