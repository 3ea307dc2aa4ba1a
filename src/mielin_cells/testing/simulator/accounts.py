"""The agents that the simulator runs: they move tokens among themselves, and remember all that happened to them."""

from __future__ import annotations

import contextlib

import mielin_cells as cells
from mielin_cells.testing.checkers.till import Receipt, pay

TOKENS = 100
"""What each account begins with."""

ASK_S = 4.0
"""An account's patience with another one, which may be waiting for it in turn."""


TRIES = 20
"""Of a turn that gives tokens away by an ask: what has left arrives, so the giver runs until it is without them."""

RETRY = cells.Retry(tries=4, first_s=0.1, max_s=1.0)
"""An account's patience with the till."""


class Account(cells.Agent, name="SimAccount"):
    tokens: int = TOKENS
    heard: list[tuple[str, int]] = []  # noqa: RUF012 - a mutable default is copied for each agent
    got: dict[str, list[int]] = {}  # noqa: RUF012
    sent: dict[str, int] = {}  # noqa: RUF012
    receipts: list[Receipt] = []  # noqa: RUF012
    arrivals: int = 0
    alarms: list[str] = []  # noqa: RUF012
    rung: list[str] = []  # noqa: RUF012

    async def on_arrive(self) -> None:
        self.arrivals += 1

    def _heard(self, sender: str, n: int) -> int:
        self.heard.append((sender, n))
        return len(self.heard)

    def _spend(self, to: cells.AgentId, amount: int) -> int:
        self.tokens -= amount
        self.sent[to] = self.sent.get(to, 0) + 1
        return self.sent[to]

    async def _pay(self) -> None:
        with contextlib.suppress(cells.StepFailed):
            self.receipts.append(await cells.step("pay", pay, retry=RETRY))

    @cells.handler
    async def note(self, sender: str, n: int) -> int:
        return self._heard(sender, n)

    @cells.handler
    async def give(self, sender: str, n: int, to: str, amount: int) -> int:
        """Tells `to` of tokens that are on their way."""
        place = self._heard(sender, n)
        number = self._spend(cells.AgentId(to), amount)
        await cells.this().cluster.get(Account, to).receive.tell(cells.this().id, number, amount)
        return place

    @cells.handler(tries=TRIES)
    async def hand(self, sender: str, n: int, to: str, amount: int) -> int:
        """Asks `to` to take tokens, inside the turn.  In time or not: an ask that has left arrives."""
        place = self._heard(sender, n)
        number = self._spend(cells.AgentId(to), amount)
        peer = cells.this().cluster.get(Account, to)
        with contextlib.suppress(cells.AskTimeout):
            await peer.receive.options(timeout=ASK_S)(cells.this().id, number, amount)
        return place

    @cells.handler(tries=TRIES)
    async def settle(self, sender: str, n: int, to: str, amount: int) -> int:
        """As `hand`, between two payments at the till, each a durable step."""
        await self._pay()
        place = await self.hand(sender, n, to, amount)
        await self._pay()
        return place

    @cells.handler
    async def alarm(self, sender: str, n: int, tenths: int) -> int:
        """Sets a timer, sometimes two: the second stands for both."""
        name = f"{sender} {n}"
        if tenths % 3 == 0:
            cells.after(tenths, id=name).ring("never")
        cells.after(tenths / 10, id=name).ring(name)
        self.alarms.append(name)
        return self._heard(sender, n)

    @cells.handler
    async def ring(self, name: str) -> None:
        self.rung.append(name)

    @cells.handler
    async def roam(self, sender: str, n: int) -> int:
        cells.this().migrate()
        return self._heard(sender, n)

    @cells.handler
    async def receive(self, sender: str, number: int, amount: int) -> int:
        self.got.setdefault(sender, []).append(number)
        self.tokens += amount
        return self.tokens

    @cells.handler
    async def show(
        self,
    ) -> tuple[
        int, list[tuple[str, int]], dict[str, list[int]], dict[str, int], list[Receipt], list[str], list[str]
    ]:  # fmt: skip
        return self.tokens, self.heard, self.got, self.sent, self.receipts, self.alarms, self.rung
