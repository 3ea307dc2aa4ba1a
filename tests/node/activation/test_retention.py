"""What of a log is kept: what can be gone back to, and no more."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from support.logs import Score
from support.moving import nodes

import mielin_cells as cells
from mielin_cells.log.records import SnapshotRef
from mielin_cells.node.activation.activation import Activation
from mielin_cells.node.activation.snapshots import START, still_needed
from mielin_cells.settings import SNAPSHOTS_KEPT


def snap(seq: int, at: float, inbox: int = 0) -> SnapshotRef:
    return SnapshotRef(seq, seq - 1, inbox or seq, f"p{seq}", at)


def test_an_agent_that_never_moved_keeps_no_more_than_its_newest_snapshots() -> None:
    kept: list[SnapshotRef] = []
    for seq in range(10, 1000, 10):
        kept = [*still_needed(kept, [], 0.0, 3600), snap(seq, 0.0)]
    assert [one.seq for one in kept] == [980, 990]


def test_a_handover_is_kept_until_a_snapshot_behind_it_is_as_old_as_the_retention() -> None:
    kept, seen = list[SnapshotRef](), list[int]()
    for number in range(1, 200):
        now = number * 60.0
        kept = [*still_needed(kept, [45], now, 3600), snap(number * 10, now)]
        seen.append(kept[0].seq)
    assert seen[:5] == [0, 10, 20, 30, 40]
    assert set(seen[4:64]) == {40}  # the last snapshot before the handover, for an hour
    assert seen[75] > 45


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=60), st.floats(0, 50))
def test_every_handover_within_the_retention_can_be_loaded(steps: list[tuple[float, bool]], retention_s: float) -> None:
    kept: list[SnapshotRef] = []
    handovers: dict[int, float] = {}
    now, seq = 0.0, 1
    for pause, moves in steps:
        now, seq = now + pause, seq + 10
        if moves:
            handovers[seq - 5] = now
        kept = [*still_needed(kept, handovers, now, retention_s), snap(seq, now)]
        for handed, at in handovers.items():
            if at > now - retention_s:
                assert kept[0].seq <= handed
        assert kept[0] == START or kept[0].seq > 0
        assert [one.seq for one in kept] == sorted({one.seq for one in kept})
        assert len(kept) <= 8 + SNAPSHOTS_KEPT + 2


def test_a_snapshot_that_is_passed_over_leaves_what_it_needs_of_the_inbox_to_the_one_before() -> None:
    kept = still_needed([snap(10, 0.0, 50), snap(20, 1.0, 7), snap(30, 2.0, 60)], [15], 3.0, 3600)
    assert [(one.seq, one.inbox) for one in kept] == [(10, 7), (30, 60)]


async def snapshot(activation: Activation) -> None:
    """Writes one, and trims behind it."""
    before = activation.fold.snap
    activation.snapshots.begin()
    while activation.fold.snap == before or activation._committing is not None:
        await asyncio.sleep(0.001)
    await activation.snapshots.trim()


async def test_an_undo_behind_an_undo_finds_its_messages_though_a_snapshot_came_between() -> None:
    """Seed 6040367: the inbox was trimmed as if it had been worked off in order, which an undo had gone back on."""
    settings = cells.Settings(retention_s=0.0, reconcile_s=600.0, ask_repeat_s=0.2)
    async with nodes("node-1", "node-2", settings=settings) as (client, running):
        score = await client.on("node-1").spawn(Score, "t")
        first = await client.migrate(score, to="node-2")
        assert [await score.add() for _ in range(3)] == [1, 2, 3]
        await snapshot(running["node-2"].activations.live["t"])
        await client.suspend(score)
        await client.rollback(first.migration, to="node-1")
        second = await client.migrate(score, to="node-2")
        assert second.ok
        await client.resume(score)
        assert await score.add() == 4
        await snapshot(running["node-2"].activations.live["t"])
        await client.rollback(second.migration, to="node-1")
        assert await score.add() == 5
        assert running["node-1"].activations.live["t"].fold.ledger.replays == {}
