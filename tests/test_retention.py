"""What of a log is kept: what can be gone back to, and no more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mielin_cells.core.records import Kept
from mielin_cells.core.settings import SNAPSHOTS_KEPT
from mielin_cells.node.compaction import START, still_needed


def snap(seq: int, at: float) -> Kept:
    return Kept(seq, seq - 1, seq, f"p{seq}", at)


def test_an_agent_that_never_moved_keeps_no_more_than_its_newest_snapshots() -> None:
    kept: list[Kept] = []
    for seq in range(10, 1000, 10):
        kept = [*still_needed(kept, [], 0.0, 3600), snap(seq, 0.0)]
    assert [one.seq for one in kept] == [980, 990]


def test_a_handover_is_kept_until_a_snapshot_behind_it_is_as_old_as_the_retention() -> None:
    kept, seen = list[Kept](), list[int]()
    for number in range(1, 200):
        now = number * 60.0
        kept = [*still_needed(kept, [45], now, 3600), snap(number * 10, now)]
        seen.append(kept[0].seq)
    assert seen[:5] == [0, 10, 20, 30, 40]
    assert set(seen[4:64]) == {40}  # the last snapshot before the handover, for an hour
    assert seen[75] > 45


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=60), st.floats(0, 50))
def test_every_handover_within_the_retention_can_be_loaded(steps: list[tuple[float, bool]], retention_s: float) -> None:
    kept: list[Kept] = []
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
