"""The agents that are tortured: they move tokens among themselves and remember every call, as the simulator's do.

A call costs what it changes, however much was remembered before: a run makes thousands of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import mielin_cells as cells
from mielin_cells.testing.checkers.streams import FAILED, REHEARSE, rehearse

TOKENS = 100
"""What each purse begins with."""

ASK_S = 5.0
"""A purse's patience with another one, which may be waiting for it in turn."""


class Purse(cells.Agent, name="TorturePurse"):
    tokens: int = TOKENS
    count: int = 0
    heard: cells.Table[int, tuple[str, int]] = cells.Table()
    """By place, the caller and its number."""
    got: cells.Table[str, list[int]] = cells.Table()
    """By sending agent, the numbers of its transfers in order of arrival."""
    sent: cells.Table[str, int] = cells.Table()
    """By receiving agent, how many transfers were sent to it."""
    posted: int = 0
    came: cells.Table[str, list[int]] = cells.Table()
    """By publisher, the numbers of its posts in order of arrival."""
    gaps: int = 0

    def _heard(self, sender: str, n: int) -> int:
        self.count += 1
        self.heard[self.count] = sender, n
        return self.count

    def _spend(self, to: str, amount: int) -> int:
        self.tokens -= amount
        self.sent[to] = self.sent.get(to, 0) + 1
        return self.sent[to]

    @cells.handler
    async def note(self, sender: str, n: int) -> int:
        return self._heard(sender, n)

    @cells.handler
    async def give(self, sender: str, n: int, to: str, amount: int) -> int:
        """Tells `to` of tokens that are on their way."""
        place, number = self._heard(sender, n), self._spend(to, amount)
        await cells.this().cluster.get(Purse, to).receive.tell(cells.this().id, number, amount)
        return place

    @cells.handler
    async def hand(self, sender: str, n: int, to: str, amount: int) -> int:
        """Asks `to` to take tokens, inside the turn.  In time or not: an ask that has left arrives."""
        place, number = self._heard(sender, n), self._spend(to, amount)
        with contextlib.suppress(cells.AskTimeout):
            await cells.this().cluster.get(Purse, to).receive.options(timeout=ASK_S)(cells.this().id, number, amount)
        return place

    @cells.handler
    async def receive(self, sender: str, number: int, amount: int) -> int:
        self.got.setdefault(sender, []).append(number)
        self.tokens += amount
        return self.tokens

    # ---- topics, streams and reads -------------------------------------------------------------------------------

    @cells.handler
    async def post(self, sender: str, n: int, topic: str) -> int:
        self.posted += 1
        cells.publish(topic, self.posted)
        return self._heard(sender, n)

    @cells.handler
    async def attend(self, topic: str) -> None:
        await cells.subscribe(topic, self.on_post, since="first", on_gap=self.on_gap)

    @cells.handler
    async def on_post(self, value: int, about: cells.Published) -> None:
        self.came.setdefault(about.publisher, []).append(value)

    @cells.handler
    async def on_gap(self, gap: cells.TopicGap) -> None:
        self.gaps += 1

    @cells.handler
    async def attended(self) -> tuple[int, dict[str, list[int]], int]:
        return self.posted, dict(self.came), self.gaps

    @cells.handler
    async def recite(self, length: int) -> AsyncIterator[str]:
        """Yields what follows from the state, then has a step emit what is another thing each time, and says what stands."""
        for k in range(length):
            yield f"{self.count} {k}"
        try:
            yield "|".join(await cells.step(REHEARSE, rehearse, length))
        except cells.StepFailed:
            yield FAILED

    @cells.handler(shared=True)
    async def glance(self) -> tuple[int, tuple[str, int]]:
        """How many calls it has heard, and the last of them."""
        return self.count, self.heard[self.count] if self.count else ("", 0)

    @cells.handler
    async def show(self) -> tuple[int, list[tuple[str, int]], dict[str, list[int]], dict[str, int]]:
        heard = [self.heard[place] for place in range(1, self.count + 1)]
        return self.tokens, heard, dict(self.got), dict(self.sent)
