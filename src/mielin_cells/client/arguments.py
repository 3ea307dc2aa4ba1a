"""Arguments of a cluster's methods, checked before anything is sent."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from mielin_cells.agents.agent import STANDBY_MAX
from mielin_cells.agents.reference import Reference, agent_id
from mielin_cells.errors import AlreadySpawned, ConfigError, UsageError
from mielin_cells.log.ids import AgentId
from mielin_cells.settings import TIMEOUT_S_MAX


def warn_of_other_state(agent: str, cls: str, state: Mapping[str, Any]) -> None:
    """Warns that the agent exists and was made with another initial state."""
    names = ", ".join(state)
    warnings.warn(
        AlreadySpawned(
            f"Agent {agent!r} exists already, and was made with another initial state: what was given now ({names}) is not used. "
            f"Change its state by a handler of {cls}, or spawn another id."
        ),
        stacklevel=4,
    )


def check_copies(given: Any) -> None:
    if type(given) is not int or not 0 <= given <= STANDBY_MAX:
        raise UsageError(f"{given!r} copies of an agent are out of range; wanted: 0 to {STANDBY_MAX}, a whole number.")


def check_deadline(node: str, given: Any) -> None:
    if given is not None and (type(given) not in (int, float) or not 0 <= given <= TIMEOUT_S_MAX):
        raise UsageError(
            f"drain of {node}: deadline_s = {given!r} cannot be; give seconds from 0 to {TIMEOUT_S_MAX:g}."
        )


def node_name(given: Any, what: str) -> str:
    """Raises `UsageError` for a value that cannot be a node's name."""
    if not isinstance(given, str) or not given or not given.isprintable():
        raise UsageError(f'{what}: {given!r} can be the name of no node; give its name, such as "node-1".')
    return "".join(given)


def numbers(recovery: Mapping[str, float] | None) -> dict[str, float] | None:
    """The recovery settings to send; the source checks their ranges.  Raises `ConfigError` for a value that is not a number."""
    for name, value in (recovery or {}).items():
        if not isinstance(value, (int, float)):
            raise ConfigError(f"{name} = {value!r} is out of range (a number).", field=name, range="a number")
    return {name: float(value) for name, value in recovery.items()} if recovery else None


def id_of(agent: Reference | str) -> str:
    return agent_id(agent) if isinstance(agent, Reference) else str(AgentId(agent))
