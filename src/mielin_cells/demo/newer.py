"""The app of the main job in its next version: other fields, and upgrades of the stored states."""

from __future__ import annotations

import mielin_cells as cells
from mielin_cells.demo.values import AircraftTotals, AirportTotals, chained


class Airport(cells.Agent, version=2):
    arrivals: int = 0
    minutes: int = 0

    @cells.upgrade(from_version=1)
    def _minutes(self, old: dict[str, object]) -> dict[str, object]:
        return {"arrivals": old["arrivals"], "minutes": old["delay"]}

    @cells.handler
    async def arrived(self, delay: int) -> None:
        self.arrivals += 1
        self.minutes += delay

    @cells.handler
    async def totals(self) -> AirportTotals:
        return AirportTotals(self.arrivals, self.minutes)


class Aircraft(cells.Agent, version=2):
    sums: AircraftTotals = AircraftTotals()

    @cells.upgrade(from_version=1)
    def _sums(self, old: dict[str, object]) -> dict[str, object]:
        return {"sums": old}

    @cells.handler
    async def fly(self, to: Airport, dest: str, miles: int, delay: int | None, label: str) -> None:
        sums = self.sums
        sums.flights += 1
        sums.miles += miles
        sums.airport = dest
        sums.digest = chained(sums.digest, label)
        if delay is None:
            sums.without_delay += 1
        else:
            sums.delay += delay
            await to.arrived.tell(delay)

    @cells.handler
    async def totals(self) -> AircraftTotals:
        return self.sums
