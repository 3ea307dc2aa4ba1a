"""Progress goes forward only, and watchers cannot harm it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mielin_cells as cells
from mielin_cells.migration import (
    CollectingCallback,
    LoggingCallback,
    MultiCallback,
    ProgressEvent,
    ProgressPhase,
    ProgressTracker,
)
from mielin_cells.migration import progress as p


def tracker(total: int = 1000) -> ProgressTracker:
    return ProgressTracker("m-1", "a", total_bytes=total, now=100.0)


def phases(events: list[ProgressEvent]) -> list[ProgressPhase]:
    return [event.phase for event in events]


def transfer(share: int) -> p.TransferProgress:
    return p.TransferProgress(migration_id="m-1", agent_id="a", bytes_done=share, bytes_total=100, percent=share)


def failed() -> p.Failed:
    return p.Failed(migration_id="m-1", agent_id="a", message="gone")


def test_a_whole_migration_in_order() -> None:
    found = tracker()
    found.capturing(50)
    found.transferred(250, 1000, now=101.0)
    found.transferred(1000, 1000, now=102.0)
    found.validating("digest")
    found.restoring(100)
    found.completed(now=102.5)

    events = found.take()

    assert [type(event).__name__ for event in events] == [
        "Started", "CapturingState", "TransferProgress", "TransferProgress", "Validating", "Restoring", "Completed",
    ]  # fmt: skip
    first = events[2]
    assert isinstance(first, p.TransferProgress)
    assert (first.percent, first.bytes_per_s, first.seconds_left) == (25, 250.0, 3.0)
    last = events[-1]
    assert isinstance(last, p.Completed)
    assert (last.duration_ms, last.bytes) == (2500.0, 1000)
    assert found.take() == []


@pytest.mark.parametrize(
    ("done", "total", "share"), [(0, 3, 0), (1, 3, 33), (2, 3, 66), (3, 3, 100), (9, 3, 100), (0, 0, 100), (-1, 3, 0)]
)
def test_a_share_is_rounded_down_and_clamped(done: int, total: int, share: int) -> None:
    assert p.percent(done, total) == share


def test_a_completion_before_everything_is_transferred_is_refused() -> None:
    found = tracker()
    found.transferred(100, 1000, now=101.0)

    with pytest.raises(cells.errors.InvalidTransition):
        found.completed(now=102.0)

    assert found.phase is ProgressPhase.TRANSFERRING


def test_late_events_are_ignored() -> None:
    found = tracker()
    found.transferred(1000, 1000, now=101.0)
    found.validating("digest")
    found.take()

    found.transferred(1000, 1000, now=102.0)
    found.capturing(100)

    assert found.take() == []
    assert found.phase is ProgressPhase.VALIDATING


calls = st.sampled_from(["capturing", "transferred", "validating", "restoring", "completed", "failed"])


@given(st.lists(st.tuples(calls, st.integers(-50, 1500)), max_size=60))
def test_phases_and_shares_only_go_forward_and_nothing_follows_the_end(steps: list[tuple[str, int]]) -> None:
    found, order = tracker(), list(ProgressPhase)
    for call, value in steps:
        match call:
            case "transferred":
                found.transferred(value, 1000, now=100.0 + max(value, 0))
            case "validating" | "failed":
                getattr(found, call)("text")
            case "completed":
                try:
                    found.completed(now=101.0)
                except cells.errors.InvalidTransition:
                    assert not found.phase.is_terminal
            case _:
                getattr(found, call)(value)

    events = found.take()

    places = [order.index(event.phase) for event in events]
    assert places == sorted(places)
    assert all(not event.phase.is_terminal for event in events[:-1])
    for kind in (p.CapturingState, p.TransferProgress, p.Restoring):
        shares = [event.percent for event in events if isinstance(event, kind)]
        assert shares == sorted(set(shares))
        assert all(0 <= share <= 100 for share in shares)


def test_a_long_transfer_has_few_events() -> None:
    found = tracker(100_000)
    for done in range(100_001):
        found.transferred(done, 100_000, now=100.0 + done)

    assert len(found.take()) == 1 + 101


def test_events_that_nobody_fetches_are_bounded() -> None:
    found = tracker()
    found.transferred(1000, 1000, now=101.0)
    for number in range(5000):
        found.validating(str(number))

    assert len(found.take()) == p.EVENTS_WAITING


def test_a_collecting_callback_can_be_read_back_and_cleared() -> None:
    collected = CollectingCallback(kept=2)
    for share in (1, 2, 3):
        collected(transfer(share))

    assert collected.events == [transfer(2), transfer(3)]
    assert collected.latest == transfer(3)
    collected.clear()
    assert collected.latest is None


def test_a_logging_callback_tells_every_tenth_percent_and_failures_apart() -> None:
    lines: list[str] = []
    warnings: list[str] = []
    brief, verbose = (
        LoggingCallback(lines.append, warnings.append),
        LoggingCallback(lines.append, warnings.append, True),
    )
    for share in range(101):
        brief(transfer(share))
    assert len(lines) == 11
    assert lines[1] == "migration m-1 of agent a: transferred 10 of 100 bytes, 10 %"

    verbose(transfer(7))
    verbose(failed())

    assert len(lines) == 12
    assert warnings == ["migration m-1 of agent a: failed: gone"]


def test_a_watcher_that_raises_keeps_nothing_from_the_others() -> None:
    collected = CollectingCallback()
    broken: list[Exception] = []

    def raises(event: ProgressEvent) -> None:
        raise ValueError(event.migration_id)

    several = MultiCallback([raises], broken.append)
    several.add(collected)
    several(failed())

    assert collected.events == [failed()]
    assert [str(error) for error in broken] == ["m-1"]
