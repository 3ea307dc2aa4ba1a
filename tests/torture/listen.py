"""What is heard beside calls: streams, posts of a topic, and shared reads; and what is wrong with it (I26, I30, I31)."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from mielin_cells.client.client import Client
from mielin_cells.errors import CellError, RetryError
from mielin_cells.testing.checkers.scene import Observed, Recital
from torture.agents import Purse

SUBSCRIBERS = 3
"""Agents of a round that take all its posts."""

LINEARIZABLE = 0.3
"""The share of the reads that must see everything, also what this client has not heard of."""

UNHEARD = frozenset(("AnswerExpired", "NoSuchAgent", "SessionExpired"))
"""Errors that are no violations: nothing tells how a call has ended, or a replica that was asked does not know the agent yet."""


class Glance(NamedTuple):
    """A shared read, and how many calls its agent had heard at least when it began, as answers to this client said."""

    agent: str
    least: int
    calls: int
    last: tuple[str, int]


class Attended(NamedTuple):
    """What an agent says of topics at rest."""

    posted: int
    came: dict[str, list[int]]
    gaps: int


@dataclass(slots=True)
class Heard:
    """Of one round."""

    topic: str
    glances: list[Glance] = field(default_factory=list)
    recitals: list[Recital] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    found: list[str] = field(default_factory=list)
    is_over: bool = False

    def note(self, what: str, invariant: str, agent: str, error: CellError) -> None:
        """An error that may be tried again is counted; any other one a client must never be told."""
        self.errors[f"{what}: {error.code}"] += 1
        if not isinstance(error, RetryError) and error.code not in UNHEARD:
            self.found.append(f"{invariant}: a {what} of {agent} was told {error.code}: {error}")

    # ---- clients -------------------------------------------------------------------------------------------------

    async def glance(self, client: Client, agents: list[str], places: dict[str, int], rng: Random) -> None:
        """Reads shared state; `places`: by agent, the highest place that an answer has named."""
        while not self.is_over:
            await asyncio.sleep(rng.random() * 0.1)
            agent = rng.choice(agents)
            bound, least = client.get(Purse, agent).glance, places.get(agent, 0)
            if rng.random() < LINEARIZABLE:
                bound = bound.options(consistency="linearizable")
            try:
                count, last = await bound()
            except CellError as error:
                self.note("read", "I26", agent, error)
                continue
            self.glances.append(Glance(agent, least, count, last))

    async def listen(self, client: Client, agents: list[str], rng: Random) -> None:
        """Calls handlers that answer with streams, and hears them to their ends, wherever the agents go meanwhile."""
        while not self.is_over:
            await asyncio.sleep(rng.random() * 0.3)
            agent, length = rng.choice(agents), rng.choice((0, 1, 3, 12))
            stream = client.get(Purse, agent).recite(length)
            recital = Recital(agent, length)
            stream.on_restart(recital.restarted)
            try:
                _ = await stream.start()
                recital.sender, recital.n = client.session(agent).sender, int(stream.id.partition(".")[0])
                async for part in stream:
                    recital.parts.append(part)
            except CellError as error:
                self.note("stream", "I31", agent, error)
            else:
                self.recitals.append(recital)
            finally:
                stream.close()

    # ---- what must hold at rest ------------------------------------------------------------------------------------

    def list_wrong(self, shown: dict[str, Observed]) -> list[str]:
        """Reads that saw less than they had to, or what no commit has."""
        wrong = list[str]()
        for one in self.glances:
            if one.calls < one.least:
                wrong.append(f"I26: a read of {one.agent} was to see {one.least} calls, and saw {one.calls}")
            heard = shown[one.agent].heard if one.agent in shown else []
            if one.calls and (one.calls > len(heard) or heard[one.calls - 1] != one.last):
                wrong.append(
                    f"I26: a read of {one.agent} saw {one.last} as call {one.calls}, which is not what it has heard"
                )
        return wrong


def list_missing(attended: dict[str, Attended], subscribers: list[str]) -> list[str]:
    """Posts that have not come to a subscriber, or not once and in order; [] if all have."""
    missing = list[str]()
    for name in subscribers:
        came, gaps = attended[name].came, attended[name].gaps
        for publisher, (posted, _, _) in attended.items():
            if came.get(publisher, []) != [*range(1, posted + 1)]:
                missing.append(f"{name} has {came.get(publisher, [])} of the {posted} posts of {publisher}")
        if gaps:
            missing.append(f"{name} was told of {gaps} gaps, and nothing was removed")
    return missing
