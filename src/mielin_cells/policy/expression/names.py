"""The names that an expression may use: facts of a node and of an agent."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from mielin_cells.policy import facts
from mielin_cells.policy.facts import Value

Name: TypeAlias = tuple[str, str, str]
"""Scope, group and name: `node.labels.zone` is ("node", "labels", "zone"), and `node.cpu` is ("node", "", "cpu")."""


class Scope(NamedTuple):
    """What stands behind one first word."""

    names: frozenset[str]
    groups: frozenset[str] = frozenset()
    """Words behind which any name may follow."""


NODE = Scope(
    frozenset({*facts.NAMES, "name", "architecture", "cores", "memory_bytes"}), frozenset({"labels", "sensors", "classes"})
)  # fmt: skip
AGENT = Scope(frozenset({"id", "class", "version", "bytes", "waiting"}), frozenset({"attributes"}))

SCOPES: Mapping[str, Scope] = {"node": NODE, "agent": AGENT}
"""Of rules about where an agent may run."""


def shown(name: Name) -> str:
    scope, group, word = name
    if not group:
        return f"{scope}.{word}"
    return f"{scope}.{group}.{word}" if word.isidentifier() else f'{scope}.{group}["{word}"]'


def wrong(name: Name, scopes: Mapping[str, Scope]) -> str:
    """Why there is no such name; "" if there is."""
    word, group, last = name
    scope = scopes.get(word)
    if scope is None:
        return f"there is no {word!r}; names begin with {' or '.join(f'{one}.' for one in sorted(scopes))}"
    if group:
        return "" if group in scope.groups else f"{word} has no {group!r}{_nearest(group, scope)}"
    return "" if last in scope.names else f"{word} has no {last!r}{_nearest(last, scope)}"


def _nearest(name: str, scope: Scope) -> str:
    near = difflib.get_close_matches(name, [*scope.names, *scope.groups], 1)
    return f"; it has {near[0]}" if near else f"; it has {', '.join(sorted((*scope.names, *scope.groups)))}"


class Facts(NamedTuple):
    """The values behind one first word."""

    values: Mapping[str, Value | None]
    groups: Mapping[str, Mapping[str, Value]] = {}

    def get(self, group: str, name: str) -> Value | None:
        """None if it is absent."""
        if not group:
            return self.values.get(name)
        return self.groups.get(group, {}).get(name)
