"""What a node says of itself beside its machine: what waits, what its agents do, and how many more it takes."""

from __future__ import annotations

from support.nodes import deployment

import mielin_cells as cells
from mielin_cells.policy.facts import Facts


class Counted(cells.Agent, name="OwnFactsCounted"):
    n: int = 0

    @cells.handler
    async def add(self) -> int:
        self.n += 1
        return self.n


async def test_a_sensor_goes_before_what_the_node_counts_itself() -> None:
    async with deployment("node-1") as opened:
        node = opened.nodes["node-1"]
        node.facts.note_trip(0.002)
        assert node.facts.current().store_ms == 2.0
        assert node.facts.current().slots is None, "it has no limit"
        node.facts._measure = lambda: Facts(store_ms=400.0, slots=7, waiting=3)
        said = node.facts.current()
        assert (said.store_ms, said.slots, said.waiting) == (400.0, 7, 3)
        node.facts._measure = lambda: Facts(failing={"store_ms": "raised OSError"})
        assert node.facts.current().store_ms is None, "what its sensor cannot say is absent"


async def test_agents_weigh_what_they_did_between_two_looks() -> None:
    async with deployment("node-1") as opened:
        node, client = opened.nodes["node-1"], opened.client
        busy, quiet = [await client.spawn(Counted, name) for name in ("busy", "quiet")]
        await quiet.add()
        await node.facts._waiting.look(1.0)
        assert node.facts.weights() == {"quiet": 1}
        for _ in range(5):
            await busy.add()
        await node.facts._waiting.look(2.0)
        assert node.facts.weights() == {"busy": 5}
        assert node.facts.current().messages_s == 5.0
