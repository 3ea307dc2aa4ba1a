"""The fault matrix of what is heard while an agent moves, and of what comes by other ways than calls.

A part of a stream, a post of a topic or what a subscriber takes lands while its agent moves; or a message of a priority, a cancel, a
word about a wait, or a child that its parent makes.  What must come of it is what the checkers say (I26, I30 to I38).
"""

from __future__ import annotations

import itertools

import pytest
from support.depth import DEPTH
from support.matrix import DEEDS, Cell

from mielin_cells.log.commit import StepCall
from mielin_cells.log.family.made import MEANT
from mielin_cells.log.ids import INBOXES, LOGS, STREAMS, TOPICS, agent_of, decoded
from mielin_cells.log.inboxes.cancels import CANCEL
from mielin_cells.log.inboxes.lines import NORMAL, priority_of
from mielin_cells.log.message import decode_mail
from mielin_cells.log.records import Committed, Stepped, decode_record
from mielin_cells.log.topics.names import topic_of
from mielin_cells.log.topics.subs import Took
from mielin_cells.log.waits.resolving import RESOLVE
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.checkers import topics
from mielin_cells.testing.checkers.history import Author
from mielin_cells.testing.checkers.lines import priorities
from mielin_cells.testing.checkers.waits import outcomes
from mielin_cells.testing.simulator.clients import families, listeners, readers
from mielin_cells.testing.simulator.scenario import play

SEEDS = 1
"""Stories of each cell in which the fault is made; `make test` plays a quarter of the cells."""

SEEDS_MORE = 40
"""Nothing may land in a move in one story: so many are played then."""

MOVES = 30

HEARD = ("a part of a stream", "a post", "what a subscriber takes")
SAID = ("a message of a priority", "a cancel", "a word about a wait", "a child")


class HeardCell(Cell):
    def __init__(self, seed: int, heard: str, side: str, deed: str) -> None:
        self.heard = heard
        super().__init__(seed, heard, side, deed, MOVES)
        if heard == SAID[3]:
            self.swarm.ops = [op._replace(agent=families.bosses(seed)[0]) for op in self.swarm.ops]

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
        if self.heard in SAID:
            return _said_to(self.heard, subject, entry)
        record = decode_record(entry.data, subject) if subject.startswith(LOGS) else None
        takes = isinstance(record, Committed) and any(isinstance(one, Took) for one in record.commit.changes)
        return agent_of(subject) if takes else ""


def _said_to(said: str, subject: str, entry: Entry) -> str:
    """The agent that gets such a message, or makes a child, with this entry; "" if it is another one."""
    if said == SAID[3]:
        record = decode_record(entry.data, subject) if subject.startswith(LOGS) else None
        calls = record.calls if isinstance(record, Stepped) else ()
        return (
            agent_of(subject)
            if any(call.name.startswith(MEANT) for call in calls if isinstance(call, StepCall))
            else ""
        )
    mail = decode_mail(entry.data, subject) if subject.startswith(INBOXES) else None
    if mail is None or not mail.messages or priority_of(mail.sender) == NORMAL:
        return ""
    handlers = {message.handler for message in mail.messages}
    wanted = {SAID[1]: CANCEL in handlers, SAID[2]: RESOLVE in handlers}
    return mail.to if wanted.get(said, not handlers & {CANCEL, RESOLVE}) else ""


@pytest.fixture(autouse=True)
def _everybody_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "READING", 1.0)


@pytest.fixture
def everybody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "STREAMING", 1.0)
    monkeypatch.setattr(topics, "WORLDS", 1.0)


@pytest.fixture
def everybody_talks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priorities, "WORLDS", 1.0)
    monkeypatch.setattr(outcomes, "WORLDS", 1.0)
    monkeypatch.setattr(families, "FAMILIES", 1.0)


def played(seed: int, heard: str, side: str, deed: str) -> HeardCell:
    return play(lambda: HeardCell(seed, heard, side, deed), seed=seed, steps_max=600_000)


def holds(heard: str, side: str, deed: str) -> None:
    seed, made = 0, 0
    while made < SEEDS and seed < SEEDS + SEEDS_MORE:
        seed += 1
        cell = played(seed, heard, side, deed)
        assert cell.violations == [], f"seed {seed}"
        made += cell.made > 0
    assert made, f"in {seed} stories the fault was never made"


CELLS = list(itertools.product(HEARD, ("source", "target"), DEEDS))
SAID_CELLS = list(itertools.product(SAID, ("source", "target"), DEEDS))


@pytest.mark.usefixtures("everybody_listens")
@pytest.mark.parametrize(("heard", "side", "deed"), CELLS[::7] if DEPTH == "test" else CELLS)
def test_what_is_heard_while_an_agent_moves_is_whole_whatever_befalls_a_side(heard: str, side: str, deed: str) -> None:
    holds(heard, side, deed)


@pytest.mark.usefixtures("everybody_talks")
@pytest.mark.parametrize(("said", "side", "deed"), SAID_CELLS[::15] if DEPTH == "test" else SAID_CELLS)
def test_what_is_said_to_an_agent_while_it_moves_has_its_effect_once_whatever_befalls_a_side(
    said: str, side: str, deed: str
) -> None:
    holds(said, side, deed)
