"""A fleet of node processes follows the log of deploys: it starts the new nodes of a deploy, and stops those that are to go.

What runs is what the log says, whether or not its writer still lives.  Only deploys of this fleet count, and those that
were over when the fleet began do not.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blake3 import blake3

from mielin_cells.deployment.connect import Address, open_substrate
from mielin_cells.deployment.fleet import Child, Fleet
from mielin_cells.errors import CellError
from mielin_cells.policy.deploys.events import Failed
from mielin_cells.policy.deploys.machine import UNDOING, Deploy
from mielin_cells.store.deploys import Deploys
from mielin_cells.substrate.ports import Log
from mielin_cells.tasks.supervision import Backoff

LOOK_S = 1.0
"""How soon a node is started again under the name of one that is just ending."""

logger = logging.getLogger("mielin_cells.process")


def fleet_name(folder: Path) -> str:
    """The same whenever a fleet is started for this folder of this machine."""
    return blake3(f"{socket.gethostname()}\0{folder.resolve()}".encode()).hexdigest(length=6)


async def follow_deploys(fleet: Fleet, address: Address) -> None:
    """Runs a follower on a connection of its own, until it is cancelled."""
    backoff = Backoff(cap_s=5.0)
    while True:
        try:
            # A node makes the deployment: it knows with how many shards.
            substrate = await open_substrate(address.existing, makes=False)
        except CellError as error:  # the nodes wait for the server, and say so
            logger.debug("deploys are not followed yet: %s", error)
            await backoff.wait()
            continue
        try:
            await Follower(fleet, substrate.log).run()
        finally:
            await substrate.close()


class Follower:
    """Of one fleet; `run` it in a task."""

    def __init__(self, fleet: Fleet, log: Log, wall: Callable[[], float] = time.time) -> None:
        self._fleet = fleet
        self._deploys = Deploys(log)
        self._wall = wall
        self._over = ""
        """The deploy that was over when the fleet began."""
        self._apps: dict[str, tuple[str, str]] = {}
        """App and configuration file of nodes that a deploy has started; of others they are the fleet's."""
        self._unusable: set[str] = set()
        """New nodes whose app cannot be used."""
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Follows until it is cancelled."""
        backoff = Backoff(cap_s=5.0)
        is_first = True
        while True:
            try:
                deploy = await self._deploys.read_to_end()
                if is_first and deploy is not None and deploy.is_over:
                    self._over = deploy.name
                is_first = False
                await self._follow()
            except CellError as error:
                logger.warning("the log of deploys cannot be followed; trying again: %s", error)
            await backoff.wait()

    async def _follow(self) -> None:
        following = asyncio.create_task(self._deploys.follow(self._changed.set))
        try:
            while not following.done():
                self._changed.clear()
                self._obey()
                changed = asyncio.create_task(self._changed.wait())
                waits: list[asyncio.Future[Any]] = [changed, following, *self._trials()]
                await asyncio.wait(waits, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                await self._report()
            following.result()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    def _mine(self) -> Deploy | None:
        deploy = self._deploys.deploy
        is_mine = deploy is not None and deploy.began.fleet == self._fleet.name and deploy.name != self._over
        return deploy if is_mine else None

    def _obey(self) -> None:
        deploy = self._mine()
        if deploy is None:
            return
        (old, new), fleet = deploy.nodes, self._fleet
        have = {child.name: child for child in fleet.children}
        for name in new:
            self._apps.setdefault(name, (deploy.began.app, deploy.began.config))
        for name in (*old, *new):
            if name not in have and name not in self._unusable and not fleet.is_ending(name):
                fleet.add(name, *self._apps.get(name, ("", "")))
        for name, child in have.items():
            if name in {*deploy.began.old, *deploy.began.new} - {*old, *new}:
                fleet.dismiss(child)

    def _trials(self) -> list[asyncio.Future[Child]]:
        return [child.failed for child in self._fleet.children if child.failed is not None and not child.failed.done()]

    async def _report(self) -> None:
        """A new node whose app cannot be used is not started again, and fails the deploy.

        It is left among the children until that is in the log: an append that raises is made again.
        """
        for child in list(self._fleet.children):
            if child.failed is not None and child.failed.done():
                deploy = self._mine()
                if deploy is not None and not deploy.is_over:
                    why = f"{child.name} cannot be started: {child.last_line}"
                    await self._deploys.append(Failed(deploy=deploy.name, at=self._wall(), why=why), _undone_already)
                self._unusable.add(child.name)
                if child in self._fleet.children:
                    self._fleet.children.remove(child)


def _undone_already(deploy: Deploy | None) -> str:
    """Why one more node that cannot be started says nothing new; "" if it does.

    A failure of an undo pauses it until an operator comes: the other new nodes, which fail for the same reason, are none.
    """
    return "it is being undone" if deploy is None or deploy.phase in UNDOING else ""
