"""The n-th call where agents talk in every way: priorities, cancels, waits, streams, topics, children, services and groups.

As `test_nth_call`, with more that may be struck.  `make nth` plays one in twenty of the calls, `make ci` one in sixty, `make test` one
of each story.
"""

from __future__ import annotations

import pytest
from support.depth import DEPTH, depth
from support.nth import STORIES, played

from mielin_cells.testing.checkers import topics
from mielin_cells.testing.checkers.lines import priorities
from mielin_cells.testing.checkers.teams import hands
from mielin_cells.testing.checkers.waits import outcomes
from mielin_cells.testing.simulator.clients import families, listeners, readers
from mielin_cells.testing.simulator.view import FATES

STRIDE = depth(1000, 60, 20)
CASES = [(story, fate) for story in STORIES for fate in FATES]


@pytest.fixture(autouse=True)
def _everybody_talks(monkeypatch: pytest.MonkeyPatch) -> None:
    for where in (priorities, outcomes, topics, hands):
        monkeypatch.setattr(where, "WORLDS", 1.0)
    monkeypatch.setattr(families, "FAMILIES", 1.0)
    monkeypatch.setattr(listeners, "STREAMING", 1.0)
    monkeypatch.setattr(readers, "READING", 1.0)


@pytest.mark.parametrize(("story", "fate"), CASES[:: len(FATES) + 1] if DEPTH == "test" else CASES)
def test_whichever_call_goes_wrong_where_agents_talk_no_invariant_is_violated(story: str, fate: str) -> None:
    n = 1 + CASES.index((story, fate)) % min(STRIDE, STORIES[story][1])
    while (nth := played(story, n, fate)).was_struck:
        assert nth.violations == [], f"{fate}: call {n}, {nth.was_struck}"
        n += STRIDE
    assert nth.violations == []
    assert nth.calls >= STORIES[story][1], "an untouched story has more calls"
