"""The agents that are tortured: they move tokens among themselves and remember every call, as the simulator's do.

A call costs what it changes, however much was remembered before: a run makes thousands of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import mielin_cells as cells
from mielin_cells.errors import NameTaken, WaitRejected, WaitTimeout
from mielin_cells.log.inboxes.lines import Priority
from mielin_cells.testing.checkers.streams import FAILED, REHEARSE, rehearse

TOKENS = 100
"""What each purse begins with."""

ASK_S = 5.0
"""A purse's patience with another one, which may be waiting for it in turn."""


class Kid(cells.Agent, name="TortureKid"):
    """A child of a purse."""

    worked: int = 0

    @cells.handler
    async def work(self) -> int:
        self.worked += 1
        return self.worked


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
    urged: cells.Table[str, int] = cells.Table()
    """By receiving agent and priority, how many messages were sent to it."""
    urgent: cells.Table[str, list[int]] = cells.Table()
    """By sending agent and priority, the numbers of its messages in order of arrival."""
    wronged: list[str] = []
    """Turns that went on and were told that their ask is cancelled."""
    words: cells.Table[str, list[str]] = cells.Table()
    """By the call that waited, what was said."""
    hired: int = 0

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

    # ---- priorities, cancels, waits and children -----------------------------------------------------------------

    @cells.handler
    async def urge(self, sender: str, n: int, to: str, priority: Priority, asks: bool) -> int:
        """Sends the next number of its count to `to` at this priority.  In time or not: an ask that has left arrives."""
        place, key, mine = self._heard(sender, n), f"{to} {priority}", f"{cells.this().id} {priority}"
        number = self.urged[key] = self.urged.get(key, 0) + 1
        bound = cells.this().cluster.get(Purse, to).take_urgent.options(priority=priority, timeout=ASK_S)
        if asks:
            with contextlib.suppress(cells.AskTimeout):
                await bound(mine, number)
        else:
            await bound.tell(mine, number)
        return place

    @cells.handler
    async def take_urgent(self, line: str, number: int) -> None:
        self.urgent.setdefault(line, []).append(number)

    @cells.handler
    async def dawdle(self, sender: str, n: int, to: str, priority: Priority, seconds: float, hurry: bool) -> int:
        """Asks `to` to do nothing for a while.  With `hurry` it gives that up soon, and goes on."""
        place = self._heard(sender, n)
        linger = cells.this().cluster.get(Purse, to).linger.options(priority=priority, timeout=ASK_S)
        try:
            with contextlib.suppress(cells.AskTimeout, TimeoutError):
                async with asyncio.timeout(seconds / 4 if hurry else None):
                    await linger(seconds)
        except cells.errors.Cancelled as error:  # by whom? this turn goes on
            self.wronged.append(f"({sender}, {n}): {error}")
        return place

    @cells.handler
    async def linger(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @cells.handler
    async def apply(self, sender: str, n: int, deadline_s: float) -> int:
        """Stands still until somebody has said a word, or the deadline has passed."""
        wait = cells.external("word", int, deadline=deadline_s)
        _ = await wait.open()
        try:
            word = f"value {await wait}"
        except WaitRejected as error:
            word = f"rejected {error.reason}"
        except WaitTimeout:
            word = "timeout"
        self.words.setdefault(f"{sender} {n}", []).append(word)
        return self._heard(sender, n)

    @cells.handler
    async def petition(self, sender: str, n: int, deadline_s: float) -> str:
        """Goes on meanwhile, and gives out the token."""
        token = await cells.external("favour", then=self.granted, otherwise=self.denied, deadline=deadline_s)(
            f"{sender} {n}"
        )
        self._heard(sender, n)
        return token

    @cells.handler
    async def granted(self, value: int, who: str) -> None:
        self.words.setdefault(who, []).append(f"value {value}")

    @cells.handler
    async def denied(self, why: str, who: str) -> None:
        self.words.setdefault(who, []).append("timeout" if why.startswith("Nobody") else f"rejected {why}")

    @cells.handler
    async def hire(self, sender: str, n: int, name: str) -> int:
        """Has a child made, and given work; it may be there already."""
        with contextlib.suppress(NameTaken):
            kid = await cells.child(when_parent_ends="keep").spawn(Kid, name)
            await kid.work.tell()
            self.hired += 1
        return self._heard(sender, n)

    @cells.handler
    async def talk(self) -> tuple[dict[str, int], dict[str, list[int]], list[str], list[tuple[str, str]]]:
        words = [(who, word) for who, some in self.words.items() for word in some]
        return dict(self.urged), dict(self.urgent), self.wronged, words

    @cells.handler(shared=True)
    async def glance(self) -> tuple[int, tuple[str, int]]:
        """How many calls it has heard, and the last of them."""
        return self.count, self.heard[self.count] if self.count else ("", 0)

    @cells.handler
    async def show(self) -> tuple[int, list[tuple[str, int]], dict[str, list[int]], dict[str, int]]:
        heard = [self.heard[place] for place in range(1, self.count + 1)]
        return self.tokens, heard, dict(self.got), dict(self.sent)
