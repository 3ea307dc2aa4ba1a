"""`[[policies]]` of `mielin.toml`: policies by label selectors.

[[policies]]
match = { class = "Chat", tier = "gold" }
require = ["node.labels.zone == 'eu-1'"]
prefer = [{ that = "node.mains", weight = 0.5 }]
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import msgspec

from mielin_cells.agents.finding.rules import wrong_in
from mielin_cells.errors import ConfigError
from mielin_cells.log.policy import Policy
from mielin_cells.policy.selectors import Selector, overlaps

logger = logging.getLogger("mielin_cells.process")

REFUSED = ("standby",)
"""Fields that an entry cannot set: copies are kept as the agent's own policy, its class, or an order says."""


def read_policies(path: Path, text: str, given: Any) -> tuple[Selector, ...]:
    """The entries, in order.  Raises `ConfigError`, which names file and line."""
    if not isinstance(given, list):
        raise _refusal(path, 1, "policies", "wanted: entries, each under [[policies]]")
    heads = [number for number, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*policies\s*\]\]", line)]
    found = list[Selector]()
    for number, entry in enumerate(given):
        line = heads[number] if number < len(heads) else 1
        found.append(_read(path, line, entry))
    return tuple(found)


def warn_of_overlaps(selectors: tuple[Selector, ...]) -> None:
    """Names the entries that may contradict each other about one agent."""
    for one in overlaps(selectors):
        logger.warning("mielin.toml, [[policies]]: %s", one)


def _read(path: Path, line: int, entry: Any) -> Selector:
    if not isinstance(entry, dict):
        raise _refusal(path, line, "policies", "wanted: a table")
    fields = dict(entry)
    match = fields.pop("match", None)
    if (
        not isinstance(match, dict)
        or not match
        or not all(isinstance(v, str | int | float | bool) for v in match.values())
    ):
        raise _refusal(path, line, "match", 'wanted: labels with values, such as { class = "Chat", tier = "gold" }')
    names = [name for name in Policy.__struct_fields__ if name not in REFUSED]
    for name in fields:
        if name not in names:
            raise _refusal(path, line, name, f"there is no such field of a policy here; there are {', '.join(names)}")
    try:
        policy = msgspec.convert(fields, Policy)
    except (msgspec.ValidationError, ConfigError) as error:
        raise _refusal(path, line, "policies", str(error).rstrip(".")) from error
    if why := wrong_in(policy):
        raise _refusal(path, line, why.partition(":")[0], why.rstrip("."))
    return Selector(match=match, policy=policy)


def _refusal(path: Path, line: int, name: str, why: str) -> ConfigError:
    return ConfigError(f"{path}, line {line}: [[policies]]: {why}.", field=name, range=why, file=str(path))
