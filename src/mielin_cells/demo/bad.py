"""A version of the main job's app with a mistake in it, which no check can see: it loads every state, and fails when it works."""

from __future__ import annotations

import mielin_cells as cells
from mielin_cells.demo.values import AircraftTotals, AirportTotals


class Airport(cells.Agent, version=2):
    arrivals: int = 0
    minutes: int = 0

    @cells.handler
    async def arrived(self, delay: int) -> None:
        self.arrivals += 1
        self.minutes += delay

    @cells.handler
    async def totals(self) -> AirportTotals:
        return AirportTotals(self.arrivals, self.minutes)


class Aircraft(cells.Agent, version=2):
    sums: AircraftTotals = AircraftTotals()

    @cells.handler
    async def fly(self, to: Airport, dest: str, miles: int, delay: int | None, label: str) -> None:
        self.sums.flights += 1
        hubs: dict[str, int] = {}
        self.sums.miles += hubs[dest]  # the mistake

    @cells.handler
    async def totals(self) -> AircraftTotals:
        return self.sums
