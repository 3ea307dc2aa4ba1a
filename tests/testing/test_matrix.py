"""The fault matrix: at each moment of a migration, each kind of fault to each side, in the simulated world.

A cell strikes at the landing of a record: there something has just been decided, and nobody knows of it yet.  What must come of
it is what the simulator's checkers say: one owner at every step, nothing lost or doubled, every migration ended as the agent's log
tells, and every agent answering once the world has healed.
"""

from __future__ import annotations

import itertools

import pytest
from support.depth import DEPTH, depth
from support.matrix import DEEDS, MOMENTS, Cell

from mielin_cells.testing.simulator.scenario import play

SEEDS = depth(1, 3, 6)
"""Stories of each cell."""

SEEDS_MORE = 4
"""One story may have no move to strike: so many more are played then."""


def played(seed: int, moment: str, side: str, deed: str) -> Cell:
    return play(lambda: Cell(seed, moment, side, deed), seed=seed, steps_max=600_000)


CELLS = list(itertools.product(MOMENTS, DEEDS, ("source", "target")))
SOME = [CELLS[2 * n + n // 2 % 2] for n in range(0, len(CELLS) // 2, 2)]
"""A quarter of them: every moment and deed occurs, on both sides."""


@pytest.mark.parametrize(("moment", "deed", "side"), SOME if DEPTH == "test" else CELLS)
def test_a_fault_at_a_moment_of_a_migration_leaves_one_owner_and_nothing_lost(
    moment: str, deed: str, side: str
) -> None:
    seed, made = 0, 0
    while seed < SEEDS or (not made and seed < SEEDS + SEEDS_MORE):
        seed += 1
        cell = played(seed, moment, side, deed)
        assert cell.violations == [], f"seed {seed}"
        made += cell.made
    assert made, f"in {seed} stories the fault was never made"
