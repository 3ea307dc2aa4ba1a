"""The soak finds what grows: `make soak` plays the same rounds for minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from soak import sizes
from soak import town as module
from soak.sizes import ROUNDS_MIN, Series, size_of
from soak.town import Town, town


def series(values: list[float], slack: float = 0.0) -> Series:
    found = Series()
    for value in values:
        found.note("x", value, slack)
    return found


def test_a_series_that_is_larger_at_its_end_than_in_its_middle_grows() -> None:
    assert series([1, 5, 10, 10, 10, 10, 10, 11, 10]).growing() == []
    assert series([1, 2, 3, 4, 5, 6, 7, 8, 9]).growing() == ["x grows: 5 in the middle of the run, 8 at its end"]
    assert series([1, 2, 3, 4, 5, 6, 7, 8, 9], slack=4).growing() == []
    with pytest.raises(ValueError, match="rounds are needed"):
        series([1.0] * (ROUNDS_MIN - 1)).growing()


def test_all_that_hangs_on_an_object_is_counted_once() -> None:
    held = {"a": [b"x" * 10_000]}
    assert 10_000 < size_of(held) < 11_000
    assert size_of(held, held["a"]) == size_of(held)
    assert size_of(held, but=[held["a"]]) < 1_000


async def test_a_planted_leak_is_found_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SESSIONS", "GUESTS", "MOVES"):
        monkeypatch.setattr(module, name, 1)
    monkeypatch.setattr(module, "SETTINGS", replace(module.SETTINGS, reconcile_s=0.05, heartbeat_s=0.05))

    def leak(at: Town) -> None:
        at.nodes[0].activations._unloadable[f"agent-{at.left}"] = b"x" * 20_000  # type: ignore[assignment] # what a forgotten one might hold

    monkeypatch.setattr(sizes, "ROUNDS_MIN", 6)
    async with town(tmp_path) as found:
        found.leak = leak
        for _ in range(6):
            await found.round()
        growing = found.series.growing()
    assert any(sentence.startswith("bytes of node-1 grows") for sentence in growing), growing
