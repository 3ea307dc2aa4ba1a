"""The pytest plugin with the fixture `mielin_world`.  It loads the simulator only when a test uses the fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mielin_cells.testing.survive import Survival


@pytest.fixture
def mielin_world() -> Survival:
    """Plays a story with your own agents under the faults that seeds draw: `mielin_world.run(story, seeds=20)`."""
    from mielin_cells.testing.survive import Survival

    return Survival()
