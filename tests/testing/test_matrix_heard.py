"""The fault matrix of what is heard: a part of a stream, a post of a topic or what a subscriber takes lands while its agent moves.

Clients read committed state, and hear streams, beside all of it.  What must come of it is what the checkers say (I26, I30, I31).
"""

from __future__ import annotations

import itertools
import os

import pytest
from support.matrix import DEEDS, Cell

from mielin_cells.log.ids import LOGS, STREAMS, TOPICS, agent_of, decoded
from mielin_cells.log.records import Committed, decode_record
from mielin_cells.log.topics.names import topic_of
from mielin_cells.log.topics.subs import Took
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.checkers import topics
from mielin_cells.testing.checkers.history import Author
from mielin_cells.testing.simulator.clients import listeners, readers
from mielin_cells.testing.simulator.scenario import play

SEEDS = 1
"""Stories of each cell in which the fault is made; `make test` plays a quarter of the cells."""

SEEDS_MORE = 40
"""Nothing may land in a move in one story: so many are played then."""

MOVES = 30

HEARD = ("a part of a stream", "a post", "what a subscriber takes")


class HeardCell(Cell):
    def __init__(self, seed: int, heard: str, side: str, deed: str) -> None:
        self.heard = heard
        super().__init__(seed, heard, side, deed, MOVES)

    def _at_landing(self, subject: str, entry: Entry, author: Author) -> None:
        super()._at_landing(subject, entry, author)
        agent = self._heard_of(subject, entry)
        if agent in self._open:
            self._strike(agent)

    def _heard_of(self, subject: str, entry: Entry) -> str:
        """The agent that says something, or takes a post, with this entry; "" if it is another one."""
        if self.heard == HEARD[0]:
            return decoded(subject.split(".")[1]) if subject.startswith(STREAMS) else ""
        if self.heard == HEARD[1]:
            return topic_of(subject)[1] if subject.startswith(TOPICS) else ""
        record = decode_record(entry.data, subject) if subject.startswith(LOGS) else None
        takes = isinstance(record, Committed) and any(isinstance(one, Took) for one in record.commit.changes)
        return agent_of(subject) if takes else ""


@pytest.fixture(autouse=True)
def _everybody_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "STREAMING", 1.0)
    monkeypatch.setattr(readers, "READING", 1.0)
    monkeypatch.setattr(topics, "WORLDS", 1.0)


def played(seed: int, heard: str, side: str, deed: str) -> HeardCell:
    return play(lambda: HeardCell(seed, heard, side, deed), seed=seed, steps_max=600_000)


CELLS = list(itertools.product(HEARD, ("source", "target"), DEEDS))


@pytest.mark.parametrize(("heard", "side", "deed"), CELLS if "MATRIX_SEEDS" in os.environ else CELLS[::4])
def test_what_is_heard_while_an_agent_moves_is_whole_whatever_befalls_a_side(heard: str, side: str, deed: str) -> None:
    seed, made = 0, 0
    while made < SEEDS and seed < SEEDS + SEEDS_MORE:
        seed += 1
        cell = played(seed, heard, side, deed)
        assert cell.violations == [], f"seed {seed}"
        made += cell.made > 0
    assert made, f"in {seed} stories the fault was never made"
