"""The checker of reads of committed state: I26."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from mielin_cells.agents.values.wire import plain
from mielin_cells.log.fold import Fold
from mielin_cells.testing.checkers.checker import Checker, Step
from mielin_cells.testing.checkers.scene import Scene


class ReadsCommitted(Checker):
    """I26: a read is answered with the state of a record of the log, one that its reader has seen or a later one.

    A linearizable read is answered with a record that comes after all that had landed when it began.
    """

    invariant = "I26"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._states: defaultdict[str, dict[int, Any]] = defaultdict(dict)
        """By agent and record, what the log gives for the fields that a read shows."""

    def record(self, step: Step) -> None:
        fold = self.scene.folds.get(step.agent)
        if fold is not None:
            self._states[step.agent][step.seq] = _shown(fold)

    def at_rest(self) -> None:
        for read in self.scene.reads:
            if read.revision < read.least:
                self.fails(f"a read of {read.agent} was to see record {read.least}, and was given {read.revision}")
            states = self._states[read.agent]
            if read.revision not in states:
                self.fails(f"a read of {read.agent} was given revision {read.revision}, which is no record")
            if states[read.revision] != read.shown:
                wanted = states[read.revision]
                self.fails(f"a read of {read.agent} at {read.revision} was given {read.shown}; the log says {wanted}")


def _shown(fold: Fold) -> Any:
    """Of an account: its tokens, and how many calls it has heard."""
    fields = fold.state.plain
    return (plain(fields["tokens"]), len(plain(fields["heard"]))) if "tokens" in fields else None
