"""Heartbeats and keepers in a simulated world: failover as production does it, with nobody but the nodes themselves.

In a real process the heart beats on a thread of its own; here it is a task of its process, which is paused and dies with it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mielin_cells.log.ids import BEATS, LOGS, agent_of
from mielin_cells.log.records import Claimed, decode_record
from mielin_cells.membership.heartbeat import Ear, encode_beat
from mielin_cells.membership.takeover import FAILOVER
from mielin_cells.node.failover import Keeper
from mielin_cells.node.node import Node
from mielin_cells.rpc.answers import Beat
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.simulator.view import View

if TYPE_CHECKING:
    from mielin_cells.testing.simulator.scenario import Scenario


class Hearts:
    """Of one scenario.  `attach` to each node that has entered."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._world = scenario.world
        self._counts = scenario.scene.counts

    def attach(self, node: Node, view: View) -> None:
        """The node beats, hears the others, and keeps if that falls to it."""
        ear = Ear(self._world.loop.time)
        node.heard = ear.heard
        node.home.begin(self._beat(node, view, ear))
        node.home.begin(Keeper(node, ear.heard).run())

    async def _beat(self, node: Node, view: View, ear: Ear) -> None:
        subscription = await view.subscribe(BEATS, ear.hear)
        try:
            while not node.is_stopping:
                beat = Beat(node.name, node.home.incarnation, node.refused_s(), is_starting=node.is_starting)
                await view.publish(BEATS, encode_beat(beat))
                await asyncio.sleep(node.settings.heartbeat_s)
        finally:
            subscription.close()

    def landed(self, subject: str, entry: Entry, author: View) -> None:
        """Counts claims that a keeper has asked for.  To be told of an entry before the checkers are."""
        if not subject.startswith(LOGS) or FAILOVER.encode() not in entry.data:
            return
        agent = agent_of(subject)
        record = decode_record(entry.data, agent)
        if not isinstance(record, Claimed) or not record.cause.startswith(FAILOVER):
            return
        self._counts["taken over by failover"] += 1
        former = self._world.views.get(self._scenario.checkers.owner(agent))
        if former is not None and not former.process.is_dead and former.name not in self._scenario.scene.lost:
            self._counts["suspected wrongly"] += 1
