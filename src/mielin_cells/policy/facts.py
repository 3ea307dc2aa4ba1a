"""What a node has measured of itself, as policies see it.

A fact that a node cannot measure is absent, never zero: a rule on it says so instead of being right or wrong by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from mielin_cells.log.codec import UNREADABLE

Value: TypeAlias = float | int | bool | str


class Facts(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Facts that change while a node runs.  What it says once, when it joins, is in its `Announcement`."""

    cpu: float | None = None
    """Percent of all its cores that are in use, 0 to 100."""
    load: float | None = None
    """Load average of one minute for each core."""
    memory: float | None = None
    """Percent of its memory that is in use."""
    memory_free_bytes: int | None = None
    """Memory that programs can still have, in bytes."""
    disk: float | None = None
    """Percent of the disk of its data that is in use."""
    disk_free_bytes: int | None = None
    """Free bytes of that disk."""
    battery: float | None = None
    """Percent of charge; absent on a machine without a battery."""
    mains: bool | None = None
    """It is not running on its battery."""
    temperature_c: float | None = None
    """Of its hottest sensor, in degrees Celsius."""
    store_ms: float | None = None
    """Median round trip to the store, in milliseconds."""
    agents: int | None = None
    """Agents that it owns."""
    waiting: int | None = None
    """Messages in the inboxes of its agents."""
    oldest_s: float | None = None
    """Seconds that the oldest of these messages has waited."""
    messages_s: float | None = None
    """Messages that its agents take in a second."""
    slots: int | None = None
    """Agents that it takes before it is full; absent if it has no limit."""
    cost_per_hour: float | None = None
    """As `[node]` of `mielin.toml`, or a sensor, says it."""
    sensors: dict[str, Value] = {}
    """What the deployment's own sensors say, by name."""
    failing: dict[str, str] = {}
    """Sensors that say nothing, and why: they raise, or do not answer."""

    def get(self, name: str) -> Value | None:
        """The fact of this name, or the sensor's; None if it is absent."""
        if name in NAMES:
            value: Value | None = getattr(self, name)
            return value
        return self.sensors.get(name)

    def known(self) -> Mapping[str, Value]:
        """All facts that are not absent, by name."""
        return {name: value for name in (*NAMES, *self.sensors) if (value := self.get(name)) is not None}


NAMES: tuple[str, ...] = tuple(name for name in Facts.__struct_fields__ if name not in ("sensors", "failing"))

UNKNOWN = Facts()
"""Of a node that has said nothing yet."""

SENSORS_MAX = 64
"""Sensors of one node: what they say is read by all nodes."""

TEXT_MAX = 100
"""Characters of a sensor's name, of what it says, and of why it fails."""

BYTES_MAX = 4096
"""Of the facts of one node."""

PERCENT_MAX = dict.fromkeys(("cpu", "memory", "disk", "battery"), 100.0)
CAN_BE_NEGATIVE = {"temperature_c"}
MAX = 1e18
"""Of any number: what is above it is a slip."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Facts)


def packed(facts: Facts) -> bytes:
    """As they travel in a heartbeat.  Sensors that say too much together are left out, and named as failing."""
    data = _encoder.encode(facts)
    if len(data) <= BYTES_MAX:
        return data
    why = {"sensors": f"all sensors together say more than {BYTES_MAX:,} bytes"}
    return _encoder.encode(msgspec.structs.replace(facts, sensors={}, failing=why))


def unpacked(data: bytes) -> Facts | None:
    """The facts without what cannot be; None for no facts, and for bytes that are none: they come from the wire."""
    try:
        return tidied(_decoder.decode(data)) if 0 < len(data) <= BYTES_MAX else None
    except UNREADABLE:
        return None


def tidied(facts: Facts) -> Facts:
    """The facts without what cannot be: it is absent, as if it were not measured.

    A node may say anything.  A number that is no number would compare as false with everything, for ever.
    """
    wrong = {name: None for name in NAMES if (value := getattr(facts, name)) is not None and not _can_be(name, value)}
    sensors, failing = facts.sensors, facts.failing
    if sensors:
        sensors = {
            name: value[:TEXT_MAX] if isinstance(value, str) else value
            for name, value in list(sensors.items())[:SENSORS_MAX]
            if len(name) <= TEXT_MAX and name not in NAMES and (isinstance(value, str) or abs(value) <= MAX)
        }
    if failing:
        failing = {name: why[:TEXT_MAX] for name, why in list(failing.items())[:SENSORS_MAX] if len(name) <= TEXT_MAX}
    if not wrong and sensors == facts.sensors and failing == facts.failing:
        return facts
    return msgspec.structs.replace(facts, **wrong, sensors=sensors, failing=failing)


def _can_be(name: str, value: Value) -> bool:
    if isinstance(value, (bool, str)):
        return True
    return (-MAX if name in CAN_BE_NEGATIVE else 0) <= value <= PERCENT_MAX.get(name, MAX)
