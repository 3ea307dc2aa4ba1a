"""A client that lives for long remembers a bounded number of agents."""

from __future__ import annotations

import pytest

from mielin_cells.tasks import recent
from mielin_cells.tasks.recent import Recent


def test_the_agent_that_was_set_longest_ago_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "AGENTS_MAX", 2)
    seen = Recent[int]()
    seen["a"], seen["b"], seen["a"], seen["c"] = 1, 2, 3, 4
    assert seen == {"a": 3, "c": 4}
