"""What clients do beside plain calls: priorities, calls that are given up, waits that somebody resolves, and children (I32, I33,
I37, I38)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from mielin_cells.client.client import Client
from mielin_cells.errors import CellError, RetryError
from mielin_cells.log.inboxes.lines import Priority
from mielin_cells.log.waits.tokens import wait_of
from mielin_cells.testing.checkers.scene import Call, Observed, Told
from mielin_cells.testing.simulator.clients.hurried import GIVEN_UP, patient
from torture.agents import Purse
from torture.check import Recording, Timed

CLIENTS = 4
LEVELS: tuple[Priority, ...] = ("low", "normal", "high", "critical")
DEADLINES_S = (0.5, 3.0, 12.0)
"""Of waits: each ends, also if nobody has its token."""
UNSAID = frozenset(("NoSuchWait", "WaitOver", "NoSuchAgent"))
"""Errors of whoever resolves that are no violations: the call was cancelled, or a replica does not know the agent yet."""


class Talk:
    """Of one round.  `works` are what clients do until `is_over`."""

    def __init__(self, client: Client, recording: Recording, name: str, rng: Random) -> None:
        self._client = client
        self._recording = recording
        self._name = name
        self._rng = rng
        self._tokens = dict[str, None]()
        self.is_over = False
        self._words = -1
        """Said to all agents, when they were last looked at."""
        self.counts: Counter[str] = Counter()
        self.found: list[str] = []

    def works(self) -> list[Coroutine[Any, Any, None]]:
        works = [self._call(number) for number in range(CLIENTS)]
        return [*works, self._resolve(), self._look()]

    # ---- callers -------------------------------------------------------------------------------------------------

    async def _call(self, number: int) -> None:
        rng, numbers = Random(self._rng.random()), Counter[tuple[str, str]]()
        agents = self._recording.agents
        while not self.is_over:
            await asyncio.sleep(rng.random() * rng.choice((0.05, 0.5)))
            agent, to = rng.sample(agents, 2)
            kind = rng.choices(("note", "urge", "dawdle", "apply", "petition", "hire"), (2, 3, 2, 1, 2, 1))[0]
            level = rng.choice(LEVELS)
            sender = f"{self._name}.u{number}.{level}"
            numbers[agent, sender] += 1
            call = Call(agent, sender, numbers[agent, sender], True)
            args: tuple[Any, ...] = (sender, call.n)
            patience_s = 0.0
            if kind == "urge":
                args = *args, to, rng.choice(LEVELS), rng.random() < 0.4
            elif kind == "dawdle":
                seconds = rng.choice((0.1, 1.0))
                args, patience_s = (
                    (*args, to, rng.choice(LEVELS), seconds, rng.random() < 0.3),
                    seconds * rng.random() * 2,
                )
            elif kind in ("apply", "petition"):
                args = *args, rng.choice(DEADLINES_S)
                patience_s = rng.choice((0.0, 0.3, 2.0)) if kind == "apply" else 0.0
            elif kind == "hire":
                args = *args, rng.choice(self._recording.kids)
            bound = getattr(self._client.get(Purse, agent), kind).options(priority=level)
            await self._made(kind, call, bound, args, patience_s)

    async def _made(self, kind: str, call: Call, bound: Any, args: tuple[Any, ...], patience_s: float) -> None:
        timed = Timed(call, time.monotonic())
        self._recording.calls.append(timed)
        try:
            answer = await (patient(bound(*args), patience_s) if patience_s else bound(*args))
            if answer is GIVEN_UP:
                self.counts["given up"] += 1
                return
            call.acked = True
            if kind == "petition":
                call.ask = False  # its answer is no place
                self._tokens[answer] = None
            else:
                call.answer = answer
            self.counts[kind] += 1
        except RetryError as error:
            self._recording.errors[error.code] += 1
        except CellError as error:
            self.found.append(f"I4: {call.sender} called {kind} of {call.agent} and was told {error.code}: {error}")
        finally:
            timed.answered = time.monotonic()

    # ---- whoever resolves ----------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Somebody reads the tokens of open waits off an agent, as `mielin show` prints them."""
        rng = Random(self._rng.random())
        while not self.is_over:
            await asyncio.sleep(rng.random() * 0.2)
            try:
                info = await self._client.show(rng.choice(self._recording.agents))
            except CellError as error:
                self._recording.errors[f"show: {error.code}"] += 1
                continue
            self._tokens |= dict.fromkeys(wait.token for wait in info.waits if wait.token)

    async def _resolve(self) -> None:
        rng, said = Random(self._rng.random()), set[str]()
        while not self.is_over:
            await asyncio.sleep(0.05)
            for token in [token for token in self._tokens if token not in said]:
                said.add(token)
                self._recording.tokens[token] = None
                for number in range(rng.choice((1, 1, 2))):
                    await self._say(token, rng.randint(0, 100) + number)

    async def _say(self, token: str, word: int) -> None:
        """Says a word once: what is not known to have been said, was said or was not."""
        said, client = f"value {word}" if word % 4 else f"rejected no {word}", self._client
        try:
            told = await (client.resolve(token, word) if word % 4 else client.reject(token, f"no {word}"))
        except RetryError as error:
            self._recording.errors[f"resolve: {error.code}"] += 1
            return
        except CellError as error:
            self.counts[f"word: {error.code}"] += 1
            if error.code not in UNSAID:
                self.found.append(f"I38: somebody resolved a wait, and was told {error.code}: {error}")
            return
        self.counts["words said"] += 1
        stands = {"value": f"value {told.value}", "rejected": f"rejected {told.reason}"}.get(told.outcome, told.outcome)
        self._recording.told.append(Told(told.agent, wait_of(token).key, told.accepted, said, stands, 0.0))

    # ---- the end -------------------------------------------------------------------------------------------------

    async def observe(self, shown: dict[str, Observed], until_done: Callable[[Any], Coroutine[Any, Any, Any]]) -> bool:
        """Adds what agents say of all this; False while something that was sent has not come, somebody waits, or words still come."""
        before, self._words, waits = self._words, 0, 0
        for agent, state in shown.items():
            waits += len((await until_done(lambda a=agent: self._client.show(a))).waits)
            told = await until_done(self._client.get(Purse, agent).talk)
            state.urged, state.urgent, state.wronged, state.words = told
            self._words += len(state.words)
        is_quiet = not waits and before == self._words
        return is_quiet and all(
            len(shown[to].urgent.get(f"{agent} {priority}", [])) >= count
            for agent, state in shown.items()
            for (to, _, priority), count in ((key.partition(" "), count) for key, count in state.urged.items())
        )
