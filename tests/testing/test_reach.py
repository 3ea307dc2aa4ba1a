"""What a campaign must have reached, by its length."""

from __future__ import annotations

from collections import Counter

import pytest

from mielin_cells.testing.simulator.coverage import (
    CELLS,
    EVERY_CELL_SEEDS,
    SOMETIMES,
    WORLD_FAULTS,
    list_unreached,
    reached_too_little,
)

ALL = Counter(WORLD_FAULTS), Counter([*SOMETIMES, *(f"cell {cell}" for cell in CELLS)])


def without(*names: str) -> list[str]:
    faults, counts = (Counter({name: n for name, n in found.items() if name not in names}) for found in ALL)
    return list_unreached(faults, counts)


@pytest.mark.parametrize("name", [*WORLD_FAULTS, *SOMETIMES])
def test_each_fault_and_deed_must_have_happened(name: str) -> None:
    assert without(name) == [name]
    assert reached_too_little(without(name), 500)


@pytest.mark.parametrize(("missing", "seeds", "is_too_little"), [
    (0, 1, False), (12, 500, False), (40, 500, True), (1, EVERY_CELL_SEEDS, True), (0, EVERY_CELL_SEEDS, False),
])  # fmt: skip
def test_a_short_campaign_may_miss_rare_cells_and_a_long_one_none(
    missing: int, seeds: int, is_too_little: bool
) -> None:
    found = without(*(f"cell {cell}" for cell in CELLS[:missing]))
    assert len(found) == missing
    assert reached_too_little(found, seeds) is is_too_little
