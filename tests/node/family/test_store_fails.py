"""A store that fails while a turn spawns says nothing about the child: the turn runs again until it knows."""

from __future__ import annotations

from support.moving import nodes
from support.virtual import virtually

import mielin_cells as cells
from mielin_cells.log.ids import log_subject
from mielin_cells.node.family.turning import RETRY
from mielin_cells.testing.forwarded import ForwardedLog


class Apprentice(cells.Agent):
    @cells.handler
    async def ready(self) -> bool:
        return True


class Master(cells.Agent):
    hired: int = 0

    @cells.handler
    async def hire(self, id: str) -> int:
        await cells.spawn(Apprentice, id)
        self.hired += 1
        return self.hired


class Silent(ForwardedLog):
    """Does not say whether the child is there, for more calls than a step has tries."""

    asked = 0

    def called(self, what: str, subject: str) -> None:
        if what == "last" and subject == log_subject("kid"):
            self.asked += 1
            if self.asked <= 2 * RETRY.tries:
                raise cells.errors.StoreUnreachable("The store did not answer; try again.")


@virtually
async def test_a_spawn_outlasts_a_store_that_does_not_answer_for_all_tries_of_its_step() -> None:
    async with nodes("node-1", settings=cells.Settings(retry_first_s=0.0, ask_timeout_s=300.0)) as (client, running):
        master = await client.spawn(Master, "m")
        home = running["node-1"].home
        silent = home.log = Silent(home.log)
        assert await master.hire("kid") == 1
        assert silent.asked > 2 * RETRY.tries
        assert await client.get(Apprentice, "kid").ready()
        assert (await client.show(master)).dead == 0
