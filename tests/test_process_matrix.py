"""From pause to accept, with real processes on JetStream: a process is killed at a step of a move, and comes back."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from benchmarks.agents import Counter

from mielin_cells.cli.stage import processes
from mielin_cells.errors import Fenced, NoResponder, NoSuchAgent, WireTimeout
from mielin_cells.node import journal
from mielin_cells.node.client import Client
from mielin_cells.node.reader import load

WAIT_S = 60

CELLS = {
    "the source, in the pause": "pause:crash:1:1@node-1",
    "the source, before the handover is sent": "handed_off:crash:1:1@node-1",
    "the source, which does not hear of its handover": "handed_off:lose_answer:1:1@node-1",
    "the target, in probation": "probe:crash:1:1@node-2",
    "the target, before it accepts": "accepted:crash:1:1@node-2",
    "the target, which does not hear that it has accepted": "accepted:lose_answer:1:1@node-2",
}


@pytest.mark.parametrize("spec", CELLS.values(), ids=CELLS.keys())
async def test_a_process_that_ends_in_a_handover_leaves_one_owner_and_nothing_lost(tmp_path: Path, spec: str) -> None:
    async with processes(3, tmp_path, "lazy", None, app="benchmarks.agents", faults=spec) as (client, _, _):
        assert isinstance(client, Client)
        counter = await client.on("node-1").spawn(Counter, "c")
        sent, going = 0, True

        async def traffic() -> None:
            nonlocal sent
            while going:
                await counter.add(1)
                sent += 1
                await asyncio.sleep(0.005)

        async with asyncio.timeout(WAIT_S):
            task = asyncio.create_task(traffic())
            await asyncio.sleep(0.1)
            # The source may be gone, and with it whoever could tell: the journal does.
            with contextlib.suppress(NoResponder, WireTimeout, Fenced, NoSuchAgent):
                await client.migrate(counter, to="node-2")
            while (found := (await journal.all_of(client.log, "c"))[0]) and found[0].end is None:
                await asyncio.sleep(0.1)
            before = sent
            while sent < before + 5:  # it is served again
                await asyncio.sleep(0.01)
            going = False
            await task
            assert await counter.add(0) == sent
        fold = await load(client.log, "c")
        assert found[0].end is not None
        completed = any(fold.outcomes.get(attempt.id) == "completed" for attempt in found[0].attempts)
        assert found[0].end.outcome == ("completed" if completed else "rolled_back")
