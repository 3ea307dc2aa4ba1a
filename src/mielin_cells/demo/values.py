"""What the agents of the main job answer and keep, in every version of its app.  No agent class is defined here."""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3


@dataclass(slots=True)
class AircraftTotals:
    flights: int = 0
    miles: int = 0
    delay: int = 0
    without_delay: int = 0
    airport: str = ""
    digest: str = ""


@dataclass(slots=True)
class AirportTotals:
    arrivals: int = 0
    delay: int = 0


def chained(digest: str, label: str) -> str:
    """A running digest: equal only if the same events came in the same order."""
    return blake3(f"{digest}|{label}".encode()).hexdigest(16)
