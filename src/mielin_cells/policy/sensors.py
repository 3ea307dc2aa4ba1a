"""Sensors: what a deployment measures besides the machine, by functions of its own."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from mielin_cells.errors import ConfigError
from mielin_cells.policy.facts import Value

Read: TypeAlias = Callable[[], Value | None] | Callable[[], Awaitable[Value | None]]

F = TypeVar("F", bound=Read)

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

EVERY_S, TIMEOUT_S = 5.0, 5.0
LIMIT_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """One function that is called every `every_s` seconds on a thread of its own.

    What it returned last is a fact; None, or an error, makes the fact absent.  So does an answer that takes longer than `timeout_s`.
    """

    name: str
    read: Read
    every_s: float = EVERY_S
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        name: object = self.name
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigError(
                f"A sensor cannot be named {self.name!r}; wanted: 1 to 64 letters, digits and _, no digit first.",
                field="name", range="a name",
            )  # fmt: skip
        if not callable(self.read):
            raise ConfigError(
                f"Sensor {self.name} is {self.read!r}; wanted: a function.", field="read", range="a function"
            )
        for field in ("every_s", "timeout_s"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= LIMIT_S:
                raise ConfigError(
                    f"Sensor {self.name}: {field} = {value!r} is out of range (above 0, to {LIMIT_S:,.0f} seconds).",
                    field=field, range=f"above 0, to {LIMIT_S:,.0f} seconds",
                )  # fmt: skip


sensors: dict[str, Sensor] = {}
"""The sensors of this process by name.  One that is defined again takes its own place."""


notices: dict[str, Sensor] = {}
"""The notices of this process by name: functions that say how many seconds a machine still has, or None."""


def notice(name: str, *, every_s: float = EVERY_S, timeout_s: float = TIMEOUT_S) -> Callable[[F], F]:
    """Declares a function that says that this machine goes away: `@notice("spot")`.

    It is called every `every_s` seconds on a thread of its own, and returns None, or the seconds that are left.  The node then drains
    within them, as on SIGTERM, and stops.  One that raises or hangs is logged, and nothing else is affected.  Raises `ConfigError` for
    a name or time that cannot be.

        >>> from mielin_cells.sensors import notice
        >>> @notice("spot", every_s=1)
        ... def spot() -> float | None:
        ...     return None  # here you would ask the cloud; a number is the seconds that are left
        ...
    """

    def declare(read: F) -> F:
        notices[name] = Sensor(name=name, read=read, every_s=every_s, timeout_s=timeout_s)
        return read

    return declare


def sensor(name: str, *, every_s: float = EVERY_S, timeout_s: float = TIMEOUT_S) -> Callable[[F], F]:
    """Declares that a function is a sensor of each node of this process: `@sensor("gpu_free")`.

    The function takes nothing and returns a number, a text, true or false, or None while there is nothing to say; it may be `async`.
    It runs on a thread of its own, so it may block, and must not touch agents.  Named like a measured fact (`battery`,
    `cost_per_hour`, ...) it replaces that fact.  A sensor that raises, or takes longer than `timeout_s`, is named by `mielin nodes`;
    its fact is absent, and everything else goes on.  Raises `ConfigError` for a name or time that cannot be.

        >>> from mielin_cells.sensors import sensor
        >>> @sensor("gpu_free")
        ... def gpu_free() -> float:
        ...     return 0.75  # here you would ask the driver
        ...
    """

    def declare(read: F) -> F:
        sensors[name] = Sensor(name=name, read=read, every_s=every_s, timeout_s=timeout_s)
        return read

    return declare
