"""Policies by label selectors: entries of `mielin.toml` that change the policies of the agents that they match.

The entry with the most matching labels counts, and no other.  Its fields replace those of the agent's own policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import msgspec

from mielin_cells.log.policy import Policy
from mielin_cells.policy.facts import Value

OWN = ("class", "id")
"""Labels that every agent has; all others are its attributes."""


class Selector(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry."""

    match: dict[str, Value]
    """`class`, `id`, and attributes, with the values that an agent must have; at least one."""
    policy: Policy = Policy()

    def matches(self, labels: Mapping[str, Value]) -> bool:
        return all(_same(labels.get(name), value) for name, value in self.match.items())

    def changes(self) -> dict[str, Any]:
        """The fields that it sets."""
        default = Policy()
        fields = {name: getattr(self.policy, name) for name in Policy.__struct_fields__}
        return {name: value for name, value in fields.items() if value != getattr(default, name)}

    def __str__(self) -> str:
        return ", ".join(f"{name} = {value!r}" for name, value in self.match.items())


def _same(have: Value | None, want: Value) -> bool:
    return have == want and isinstance(have, bool) is isinstance(want, bool)


class Resolved(NamedTuple):
    """An agent's policy, and where it comes from."""

    policy: Policy
    entry: Selector | None
    conflicts: list[str]
    """Entries that match as well as the one that counts, and say otherwise."""
    is_known: bool = True
    """False: entries match by attributes, and these could not be read, so another entry may count."""


def resolve(policy: Policy, selectors: Sequence[Selector], labels: Mapping[str, Value]) -> Resolved:
    """The policy of an agent with these labels.  Of entries that match equally well the first counts."""
    matching = [one for one in selectors if one.matches(labels)]
    most = max((len(one.match) for one in matching), default=0)
    best = [one for one in matching if len(one.match) == most]
    if not best:
        return Resolved(policy, None, [])
    conflicts = [said for other in best[1:] for said in _differences(best[0], other)]
    return Resolved(msgspec.structs.replace(policy, **best[0].changes()), best[0], conflicts)


def _differences(first: Selector, second: Selector) -> Iterator[str]:
    ours, theirs = first.changes(), second.changes()
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            yield f"{name}: the entry for {first} counts, and that for {second} matches as well; the first in the file wins"


def overlaps(selectors: Sequence[Selector]) -> list[str]:
    """Pairs of entries that may match one agent equally well and say otherwise: one with more labels would decide."""
    found = list[str]()
    for first, second in combinations(selectors, 2):
        shared = first.match.keys() & second.match.keys()
        may_both = all(_same(first.match[name], second.match[name]) for name in shared)
        if may_both and len(first.match) == len(second.match):
            found += [*_differences(first, second)][:1]
    return found


def looks_at_attributes(selectors: Sequence[Selector]) -> bool:
    return any(name not in OWN for one in selectors for name in one.match)
