"""The n-th call: one migration, in which the n-th call of the substrate goes wrong, for n = 1, 2, 3, ... until one is untouched.

A call fails; times out without effect, with it, or with it seconds later; or its process crashes before it, after it, or when its
answer is there.  What must come of it is what the simulator's checkers say.  So it goes for an undo and for a claim, too.
`make nth` plays each n, `make ci` one in five, `make test` one in thirty.
"""

from __future__ import annotations

import pytest
from support.depth import depth
from support.nth import STORIES, played

from mielin_cells.testing.simulator.view import FATES

STRIDE = depth(31, 5, 1)


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("story", STORIES)
def test_whichever_call_goes_wrong_no_invariant_is_violated(story: str, fate: str) -> None:
    n = 1 + (FATES.index(fate) * (STRIDE // len(FATES) + 1)) % STRIDE
    while (nth := played(story, n, fate)).was_struck:
        assert nth.violations == [], f"{fate}: call {n}, {nth.was_struck}"
        n += STRIDE
    assert nth.violations == []
    assert nth.calls >= STORIES[story][1], "an untouched story has more calls"
