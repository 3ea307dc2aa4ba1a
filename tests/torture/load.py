"""The load of a round: callers, movers, and readers who ask who owns an agent, through one client; all of it recorded."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from random import Random
from typing import Any

from mielin_cells.client.client import Client
from mielin_cells.errors import CellError, Fenced, InvalidTransition, NoSuchAgent, RetryError
from mielin_cells.log.ids import log_subject
from mielin_cells.log.records import decode_record
from mielin_cells.testing.checkers.scene import Call, Observed
from torture.agents import Purse
from torture.check import Read, Recording, Report, Timed, has_arrived
from torture.listen import SUBSCRIBERS, Attended, Heard, list_missing
from torture.talk import Talk

CALLERS = 16
MOVERS = 3
READERS = 2
LISTENERS = 2
KIDS = 6
"""Ids of children, over which the agents of a round contend."""
REST_S = 90.0
"""From healing until every agent answers and everything that was sent has arrived (I15)."""

TRIES = 5
"""Of a call with a key, while no answer comes: it must run once."""

DEADLINE_S = 3600.0
"""Of such a call: whatever clocks do, none lapses."""

KINDS, WEIGHTS = ("note", "give", "hand", "post"), (5, 3, 2, 1)


class Load:
    """Agents of one round.  `begin`, then `end` when the world has healed, then `rest`."""

    def __init__(self, client: Client, nodes: list[str], round_name: str, count: int, rng: Random) -> None:
        self._client = client
        self._nodes = nodes
        self._name = round_name
        self._rng = rng
        self._is_over = False
        self._tasks: list[asyncio.Task[None]] = []
        self._busy: Counter[str] = Counter()
        """Calls on their way, by agent."""
        self.recording = Recording([f"{round_name}-{number}" for number in range(count)])
        self.recording.kids = [f"{round_name}-kid-{number}" for number in range(KIDS)]
        self.talk = Talk(client, self.recording, round_name, Random(rng.random()))
        self.heard = Heard(f"torture.{round_name}", recitals=self.recording.recitals)
        self._places: dict[str, int] = {}
        """By agent, the highest place that an answer has named."""
        self.posts = 0
        self.found: list[str] = []
        """Violations that need no checker: what a client must never be told."""

    async def begin(self) -> None:
        agents = self.recording.agents
        for number, agent in enumerate(agents):
            await self._until_done(self._spawned(self._nodes[number % len(self._nodes)], agent))
        for agent in agents[:SUBSCRIBERS]:
            await self._until_done(self._attends(agent))
        heard, client = self.heard, self._client
        works = [self._calls(number) for number in range(CALLERS)]
        works += [heard.glance(client, agents, self._places, Random(self._rng.random())) for _ in range(READERS)]
        works += [heard.listen(client, agents, Random(self._rng.random())) for _ in range(LISTENERS)]
        works += self.talk.works()
        works += [self._moves() for _ in range(MOVERS)]
        works += [self._reads() for _ in range(READERS)]
        self._tasks = [asyncio.create_task(work) for work in works]

    def _spawned(self, node: str, agent: str) -> Any:
        return lambda: self._client.on(node).spawn(Purse, agent)

    def _attends(self, agent: str) -> Any:
        return lambda: self._client.get(Purse, agent).attend(self.heard.topic)

    async def _until_done(self, call: Any) -> Any:
        """Again until it is done.  Raises `TimeoutError` after the time in which all must come to rest."""
        async with asyncio.timeout(REST_S):
            while True:
                try:
                    return await call()
                except (RetryError, NoSuchAgent, InvalidTransition, Fenced) as error:
                    self.recording.errors[f"operator: {error.code}"] += 1
                    await asyncio.sleep(0.1)

    # ---- what clients do -------------------------------------------------------------------------------------

    async def _calls(self, number: int) -> None:
        rng, sender = Random(self._rng.random()), f"{self._name}.{number}"
        numbers: Counter[str] = Counter()
        while not self._is_over:
            await asyncio.sleep(rng.random() * rng.choice((0.02, 0.3)))
            agent = rng.choice(self.recording.agents)
            to = rng.choice([other for other in self.recording.agents if other != agent])
            numbers[agent] += 1
            tells, kind = rng.random() < 0.2, rng.choices(KINDS, WEIGHTS)[0]
            call = Call(agent, sender, numbers[agent], not tells)
            args: list[Any] = [sender, call.n]
            if kind == "post":
                args.append(self.heard.topic)
            elif kind != "note":
                args += [to, rng.randint(1, 5)]
            bound: Any = getattr(self._client.get(Purse, agent), kind)
            has_key = kind == "note" and not tells
            if has_key:
                bound = bound.options(key=f"{sender}-{call.n}", deadline=DEADLINE_S)
            made = partial(bound.tell if tells else bound, *args)
            await self._call(Timed(call, time.monotonic()), made, TRIES if has_key else 1)

    async def _call(self, timed: Timed, made: Callable[[], Coroutine[Any, Any, Any]], tries: int) -> None:
        """Makes the call, and again while it is not known whether it has taken effect: it has a key then."""
        call = timed.call
        self.recording.calls.append(timed)
        self._busy[call.agent] += 1
        try:
            while tries and not call.acked:
                tries -= 1
                try:
                    answer = await made()
                    call.acked = True
                    call.answer = answer if call.ask else None
                    if call.ask:
                        self._places[call.agent] = max(self._places.get(call.agent, 0), answer)
                except RetryError as error:
                    self.recording.errors[error.code] += 1
        except CellError as error:
            self.found.append(f"I4: {call.sender} called {call.agent} and was told {error.code}: {error}")
        finally:
            timed.answered = time.monotonic()
            self._busy[call.agent] -= 1

    async def _moves(self) -> None:
        """Moves agents that have calls on their way, as the demo does."""
        rng = Random(self._rng.random())
        while not self._is_over:
            await asyncio.sleep(rng.random() * 0.3)
            drawn = rng.sample(self.recording.agents, min(3, len(self.recording.agents)))
            agent = max(drawn, key=lambda name: self._busy[name])
            if rng.random() < 0.1:
                agent = rng.choice(self.recording.kids)  # which may not be there
            to, asked = rng.choice((None, *self._nodes)), time.monotonic()
            try:
                report = await self._client.migrate(agent, to=to)
            except CellError as error:
                self.recording.errors[f"migrate: {error.code}"] += 1
                continue
            self.recording.reports.append(Report(report, asked, time.monotonic()))

    async def _reads(self) -> None:
        rng = Random(self._rng.random())
        while not self._is_over:
            await asyncio.sleep(rng.random() * 0.1)
            agent, asked = rng.choice(self.recording.agents), time.monotonic()
            try:
                last = await self._client.log.last(log_subject(agent))
            except RetryError as error:
                self.recording.errors[f"read: {error.code}"] += 1
                continue
            if last is not None:
                decode_record(last.data, agent)
                self.recording.reads.append(Read(agent, asked, time.monotonic(), last.seq))

    # ---- the end ---------------------------------------------------------------------------------------------

    async def end(self) -> None:
        """No more is begun, and what was begun comes to its end.  Raises whatever broke the load itself."""
        self._is_over = self.heard.is_over = self.talk.is_over = True
        done, late = await asyncio.wait(self._tasks, timeout=REST_S)
        for task in late:
            task.cancel()
        if late:
            self.found.append(f"I15: {len(late)} calls or moves are not over {REST_S:g} s after everything was healed")
        for task in done:
            task.result()

    async def rest(self) -> dict[str, Observed]:
        """What the agents say of themselves, once everything that was sent has arrived, or at the latest after `REST_S`."""
        shown, until = dict[str, Observed](), time.monotonic() + REST_S
        while True:
            for agent in self.recording.agents:
                try:
                    shown[agent] = Observed(*await self._until_done(self._client.get(Purse, agent).show))
                except TimeoutError:
                    self.found.append(f"I15: {agent} does not answer {REST_S:g} s after everything was healed")
                    return shown
            is_there = await self.talk.observe(shown, self._until_done) and has_arrived(shown)
            missing = await self._missing_posts() if is_there else []
            if (is_there and not missing) or time.monotonic() > until:
                self.found += self.talk.found
                self.found += [f"I30: {one}" for one in missing] + self.heard.list_wrong(shown) + self.heard.found
                return shown
            await asyncio.sleep(0.2)

    async def _missing_posts(self) -> list[str]:
        agents = self.recording.agents
        told = {agent: Attended(*await self._until_done(self._client.get(Purse, agent).attended)) for agent in agents}
        self.posts = sum(one.posted for one in told.values())
        return list_missing(told, agents[:SUBSCRIBERS])

    async def leave(self) -> None:
        """The agents of the round end: nodes need not look after them any more."""
        for agent in self.recording.agents:
            await self._until_done(self._terminated(agent))
        for kid in self.recording.kids:
            with contextlib.suppress(NoSuchAgent):
                await self._client.terminate(kid)

    def _terminated(self, agent: str) -> Any:
        return lambda: self._client.terminate(agent)
