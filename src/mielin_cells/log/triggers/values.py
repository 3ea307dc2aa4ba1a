"""When an agent should leave its node: the thresholds of its policy.  Values that travel in its log."""

from __future__ import annotations

import math
import re
import typing
from functools import cache
from typing import Annotated

import msgspec

from mielin_cells.errors import ConfigError
from mielin_cells.settings import TIMEOUT_S_MAX, check_ranges

Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Loaded = Annotated[float, msgspec.Meta(ge=50, le=100)]
"""A load below half is no load."""
Celsius = Annotated[float, msgspec.Meta(ge=0, le=200)]
Sustained = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Cooldown = Annotated[float, msgspec.Meta(ge=1, le=86_400)]
PerHour = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Money = Annotated[float, msgspec.Meta(ge=0, le=TIMEOUT_S_MAX)]
Days = Annotated[
    tuple[int, ...], msgspec.Meta(description="days of the week, 0 (Monday) to 6, such as (5, 6); empty: every day")
]
TimeOfDay = Annotated[str, msgspec.Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$", description="a time such as 02:30")]

MINUTES = 24 * 60


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what follows.  Raises `ConfigError` for a number out of its range."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if type(value) is int and name in _floats(
                type(self)
            ):  # else it would load as another value than was sealed
                msgspec.structs.force_setattr(self, name, float(value))
            elif isinstance(value, list):
                msgspec.structs.force_setattr(self, name, tuple(value))
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{type(self).__name__}: {name} = {value!r} is not a finite number.", field=name)
        check_ranges(self, f"{type(self).__name__}: {{field}} = {{value!r}}")


@cache
def _floats(cls: type[Value]) -> frozenset[str]:
    return frozenset(name for name, hint in typing.get_type_hints(cls).items() if hint is float)


class Thermal(Value, frozen=True, kw_only=True, omit_defaults=True):
    """The node is hot.

    >>> from mielin_cells.policies import MigrationPolicy, Thermal
    >>> MigrationPolicy(thermal=Thermal(warn_c=60)).thermal.critical_c
    85.0
    """

    warn_c: Celsius = 70.0
    critical_c: Celsius = 85.0
    """From here on the agent leaves at once, cooldown or not."""
    sustained_s: Sustained = 10.0
    """Of a warning; a critical heat does not wait."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critical_c <= self.warn_c:
            raise ConfigError(
                f"Thermal: critical_c = {self.critical_c:g} is not above warn_c = {self.warn_c:g}.", field="critical_c"
            )


class Battery(Value, frozen=True, kw_only=True, omit_defaults=True):
    """The node runs on a battery that is nearly empty.

    >>> from mielin_cells.policies import Battery, MigrationPolicy
    >>> MigrationPolicy(battery=Battery(min_percent=40)).battery.prefer_mains
    True
    """

    min_percent: Percent = 15.0
    prefer_mains: bool = True
    """A node on mains does not count as low, and is preferred as the target."""
    sustained_s: Sustained = 5.0


class Load(Value, frozen=True, kw_only=True, omit_defaults=True):
    """The node has too much to do.  Some of its agents leave, not all, and then the node has `sustained_s` to recover.

    >>> from mielin_cells.policies import Load, MigrationPolicy
    >>> MigrationPolicy(load=Load(cpu=70, sustained_s=15)).load.memory
    90.0
    """

    cpu: Loaded = 85.0
    memory: Loaded = 90.0
    waiting: Annotated[int, msgspec.Meta(ge=1, le=10**9)] = 100
    """Messages in the inboxes of all its agents."""
    sustained_s: Sustained = 30.0


class Latency(Value, frozen=True, kw_only=True, omit_defaults=True):
    """The node is far from the store.

    >>> from mielin_cells.policies import Latency, MigrationPolicy
    >>> MigrationPolicy(latency=Latency(max_ms=20)).latency.sustained_s
    30.0
    """

    max_ms: Annotated[float, msgspec.Meta(ge=1, le=60_000)] = 100.0
    min_bytes_per_s: Money = 1_000_000.0
    """Read from a sensor named `bytes_per_s`; without one, nothing follows from it."""
    sustained_s: Sustained = 30.0


class Cost(Value, frozen=True, kw_only=True, omit_defaults=True):
    """The node costs too much.

    >>> from mielin_cells.policies import Cost, MigrationPolicy
    >>> MigrationPolicy(cost=Cost(max_per_hour=0.5)).cost.reduction
    20.0
    """

    max_per_hour: Money = 1.0
    reduction: Percent = 20.0
    """The target must cost at least this percentage less than `max_per_hour`."""
    sustained_s: Sustained = 60.0


class Window(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A time of the week, in UTC, in which moves that are not critical may begin.  It may last over midnight.

    >>> from mielin_cells.policies import Window
    >>> Window(begin="22:00", end="05:00", days=(5, 6)).has(0)  # the first second of 1970, a Thursday
    False
    """

    begin: TimeOfDay
    end: TimeOfDay
    days: Days = ()
    """Those on which it begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("begin", "end"):
            if re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", getattr(self, name)) is None:
                raise ConfigError(f"Window: {name} = {getattr(self, name)!r} is no time such as 02:30.", field=name)
        if not all(0 <= day <= 6 for day in self.days):
            raise ConfigError(f"Window: days = {self.days!r}: a day is 0 (Monday) to 6.", field="days")
        if self.begin == self.end:
            raise ConfigError(f"Window: it begins and ends at {self.begin}, and is never open.", field="end")

    def has(self, wall: float) -> bool:
        """True if the window is open at this time, in seconds since 1970."""
        minute = int(wall // 60)
        day, at = (minute // MINUTES + 3) % 7, minute % MINUTES  # 1970 began on a Thursday
        begin, end = (int(text[:2]) * 60 + int(text[3:]) for text in (self.begin, self.end))
        if begin < end:
            return begin <= at < end and self._is_on(day)
        return (at >= begin and self._is_on(day)) or (at < end and self._is_on((day - 1) % 7))

    def _is_on(self, day: int) -> bool:
        return not self.days or day in self.days


class MigrationPolicy(Value, frozen=True, kw_only=True, omit_defaults=True):
    """When an agent should leave the node that it is on.  A trigger that is None is off; a fact that is absent triggers nothing.

    >>> from mielin_cells.policies import Load, MigrationPolicy, Policy, Window
    >>> night = Window(begin="22:00", end="05:00")
    >>> class Camera(cells.Agent, policy=Policy(migration=MigrationPolicy(load=Load(cpu=70), windows=(night,)))):
    ...     shots: int = 0
    ...
    >>> camera = await cluster.spawn(Camera, "door")
    >>> (await cluster.show(camera)).policy.migration.load.cpu
    70.0
    """

    thermal: Thermal | None = Thermal()
    battery: Battery | None = Battery()
    load: Load | None = Load()
    latency: Latency | None = Latency()
    cost: Cost | None = None
    cooldown_s: Cooldown = 60.0
    """An agent that has come to a node stays for so long, whatever brought it there.  A critical trigger does not wait for it; but
    two critical moves of one agent are at least this far apart."""
    per_hour: PerHour = 10
    """Moves by policies within any hour, critical ones besides."""
    windows: tuple[Window, ...] = ()
    """Moves that are not critical begin within one of these.  Empty: at any time."""

    def is_open(self, wall: float) -> bool:
        """True if a move that is not critical may begin now."""
        return not self.windows or any(window.has(wall) for window in self.windows)


def performance(**changes: object) -> MigrationPolicy:
    """For agents that are to answer fast: they leave early.

    >>> from mielin_cells import policies
    >>> policies.performance(cooldown_s=30).load.cpu
    70.0
    """
    return _preset(
        MigrationPolicy(
            load=Load(cpu=70, memory=80, waiting=50, sustained_s=15),
            latency=Latency(max_ms=50, min_bytes_per_s=10_000_000),
        ), changes,
    )  # fmt: skip


def cost(**changes: object) -> MigrationPolicy:
    """For agents that are to run where it is cheap, and may wait.

    >>> from mielin_cells import policies
    >>> policies.cost().cost.max_per_hour
    0.5
    """
    return _preset(
        MigrationPolicy(
            cost=Cost(max_per_hour=0.5, reduction=10), load=Load(cpu=95, memory=95, waiting=200, sustained_s=60)
        ),
        changes,
    )


def battery(**changes: object) -> MigrationPolicy:
    """For agents on machines with batteries: they leave before it is nearly empty, and do not load it much.

    >>> from mielin_cells import policies
    >>> policies.battery().battery.min_percent
    30.0
    """
    return _preset(MigrationPolicy(battery=Battery(min_percent=30), load=Load(cpu=60)), changes)


def _preset(policy: MigrationPolicy, changes: dict[str, object]) -> MigrationPolicy:
    return msgspec.structs.replace(policy, **changes)


PRESETS = {"performance": performance, "cost": cost, "battery": battery}
