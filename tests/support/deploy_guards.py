"""Guards of deploys (D1 to D3), which the simulator misses when they are taken away.  D4 has a story: `test_own_moves.py`."""

from __future__ import annotations

import asyncio
from typing import Any

from mielin_cells.client.deploys.driver import Driver
from mielin_cells.log.ids import DEPLOYS
from mielin_cells.policy.deploys.events import AnyEvent
from mielin_cells.policy.deploys.machine import Deploy, Effect
from mielin_cells.substrate.ports import Outcome
from mielin_cells.testing.simulator.view import View
from support.guards import Patch, guard


@guard(within=400)
def deploys_expect_the_last_record(patch: Patch) -> None:
    """An event of a deploy is stored, whatever its author has read (D1)."""
    append = View.append

    async def anyhow(
        self: View, subject: str, data: bytes, expect: int | None = None, owner: str | None = None
    ) -> Outcome:
        return await append(self, subject, data, None if subject == DEPLOYS else expect, owner)

    patch.setattr(View, "append", anyhow)


@guard(within=200)
def the_next_driver_does_what_was_due(patch: Patch) -> None:
    """Who takes a deploy on does what becomes due from then on, and not what the driver before it had begun (D2)."""
    run, persist = Driver.run, Driver._persist
    left: dict[Driver, tuple[Effect, ...]] = {}

    async def noted(self: Driver) -> Deploy:
        deploy = await self._deploys.read_to_end()
        if deploy is not None and deploy.driver:
            left[self] = deploy.due
        return await run(self)

    async def but_those(self: Driver, effect: Effect) -> AnyEvent:
        if effect in left.get(self, ()):
            await asyncio.Event().wait()
        return await persist(self, effect)

    patch.setattr(Driver, "run", noted)
    patch.setattr(Driver, "_persist", but_those)


@guard(within=200)
def one_process_drives(patch: Patch) -> None:
    """A driver goes on although another one has said that it drives (D3)."""

    def any_drivers(self: Driver) -> Deploy:
        deploy = self._deploys.deploy
        assert deploy is not None
        return deploy

    async def append(self: Driver, event: AnyEvent, due: Any) -> None:
        await self._deploys.append(event)

    patch.setattr(Driver, "_mine", any_drivers)
    patch.setattr(Driver, "_append", append)
