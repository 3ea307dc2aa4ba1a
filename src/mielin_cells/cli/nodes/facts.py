"""Facts of nodes as a line of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mielin_cells.cli.show import duration
from mielin_cells.policy.facts import Facts, Value

SHOWN: dict[str, Callable[[Any], str]] = {
    "cpu": lambda value: f"cpu {value:.0f}%",
    "load": lambda value: f"load {value:.2f}",
    "memory": lambda value: f"memory {value:.0f}%",
    "disk": lambda value: f"disk {value:.0f}%",
    "battery": lambda value: f"battery {value:.0f}%",
    "mains": lambda value: "on mains" if value else "on battery",
    "temperature_c": lambda value: f"{value:.0f}°C",
    "store_ms": lambda value: f"store {value:.1f} ms",
    "waiting": lambda value: f"waiting {value:,}" if value else "",
    "oldest_s": lambda value: f"oldest {duration(value)}" if value else "",
    "slots": lambda value: f"slots {value:,}",
    "cost_per_hour": lambda value: f"cost {value:g}/h",
}
"""What is shown of a fact, in this order; nothing of those that say the same as another column."""


def facts_text(facts: Facts) -> str:
    """What is known, and no word of what is not."""
    said = [text for name, show in SHOWN.items() if (value := facts.get(name)) is not None and (text := show(value))]
    said += [f"{name}={_value_text(value)}" for name, value in facts.sensors.items()]
    said += [f"{name} fails" for name in facts.failing]
    return ", ".join(said)


def _value_text(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
