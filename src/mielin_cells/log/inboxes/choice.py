"""Which inbox the next message is taken from, when several have some (rule T1)."""

from __future__ import annotations

from collections.abc import Collection

from mielin_cells.log.inboxes.lines import PRIORITIES

PASSED_MAX = 16
"""An inbox that has waited while so many messages were taken from higher ones is next."""

_RANK = {priority: rank for rank, priority in enumerate(PRIORITIES)}


class Turns:
    """Counts, for each inbox that waits, the messages taken from higher ones meanwhile.

    One count for all would not do: with messages in three inboxes all the time, the two higher ones would take turns.
    """

    __slots__ = ("_passed",)

    def __init__(self) -> None:
        self._passed = dict.fromkeys(PRIORITIES, 0)

    def choose(self, waiting: Collection[str]) -> str:
        """The priority to take from, out of those that have a message; at least one has.  Changes nothing."""
        due = [one for one in waiting if self._passed[one] >= PASSED_MAX]
        if due:
            return max(due, key=lambda one: (self._passed[one], -_RANK[one]))
        return max(waiting, key=_RANK.__getitem__)

    def took(self, priority: str, waiting: Collection[str]) -> None:
        """A message was taken from this inbox, while these waited."""
        for one, passed in self._passed.items():
            if one == priority or one not in waiting:
                self._passed[one] = 0
            elif _RANK[one] < _RANK[priority]:
                self._passed[one] = passed + 1
