"""The agents that are tortured: they move tokens among themselves and remember every call, as the simulator's do.

A call costs what it changes, however much was remembered before: a run makes thousands of them.
"""

from __future__ import annotations

import contextlib

import mielin_cells as cells

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

    @cells.handler
    async def show(self) -> tuple[int, list[tuple[str, int]], dict[str, list[int]], dict[str, int]]:
        heard = [self.heard[place] for place in range(1, self.count + 1)]
        return self.tokens, heard, dict(self.got), dict(self.sent)
