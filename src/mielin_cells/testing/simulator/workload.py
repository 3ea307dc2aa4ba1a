"""What clients do to agents in a simulated world, and what must have come of it.

By default the agents are accounts: they move tokens among themselves, and remember everything that happened to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from random import Random
from typing import Any

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.errors import AgentTerminated, CellError
from mielin_cells.testing.checkers.attributes import Labelled
from mielin_cells.testing.checkers.failed_turns import DOOMED
from mielin_cells.testing.checkers.outside.once import Clerk
from mielin_cells.testing.checkers.scene import Call, Observed
from mielin_cells.testing.checkers.streams import FAILED, REHEARSE, rehearse
from mielin_cells.testing.checkers.teams.hands import TEAMS
from mielin_cells.testing.checkers.till import PAY, Receipt, pay
from mielin_cells.testing.checkers.topics import Market, deals
from mielin_cells.testing.simulator.clients import movers, odd, outsiders, resolvers, teams
from mielin_cells.testing.simulator.clients.all import begin
from mielin_cells.testing.simulator.clients.families import KIN, SULKS, bosses, families, observe, spawn_bosses
from mielin_cells.testing.simulator.clients.hurried import GIVEN_UP, all_of, hurried, urged
from mielin_cells.testing.simulator.clients.labellers import labellers, look_up
from mielin_cells.testing.simulator.clients.listeners import listeners
from mielin_cells.testing.simulator.clients.readers import readers
from mielin_cells.testing.simulator.deployment import Deployment
from mielin_cells.testing.simulator.loop import Killed
from mielin_cells.testing.simulator.misbehaving import Moods, Odd, OddBefore
from mielin_cells.testing.simulator.swarm import CallPlan, Life

TOKENS = 100
"""What each account begins with."""

ASK_S = 4.0
"""An account's patience with another one, which may be waiting for it in turn."""

TRIES = 20
"""Of a turn that gives tokens away by an ask: what has left arrives, so the giver runs until it is without them."""

TRIMS = 0.08
"""How often, after a call about topics, the store removes the oldest entries of one."""

LATE_S = 2.0
"""What a node may know less of the store's time: an answer of the store may be on its way for so long."""

HURRY_S = 0.5
"""An account's patience with a payment that it can do without."""

RETRY = cells.Retry(tries=4, first_s=0.1, max_s=1.0)
"""An account's patience with the till."""


class Account(Market, Labelled, Clerk, name="SimAccount"):
    tokens: int = TOKENS
    heard: list[tuple[str, int]] = []  # noqa: RUF012 - a mutable default is copied for each agent
    got: dict[str, list[int]] = {}  # noqa: RUF012
    sent: dict[str, int] = {}  # noqa: RUF012
    receipts: list[Receipt] = []  # noqa: RUF012
    arrivals: int = 0
    alarms: list[str] = []  # noqa: RUF012
    rung: list[str] = []  # noqa: RUF012
    late: list[str] = []  # noqa: RUF012
    once_ran: list[tuple[str, int]] = []  # noqa: RUF012

    async def on_arrive(self) -> None:
        self.arrivals += 1

    def _heard(self, sender: str, n: int) -> int:
        self.heard.append((sender, n))
        return len(self.heard)

    def _spend(self, to: cells.AgentId, amount: int) -> int:
        self.tokens -= amount
        self.sent[to] = self.sent.get(to, 0) + 1
        return self.sent[to]

    async def _pay(self, is_alone: bool = True) -> None:
        with contextlib.suppress(cells.StepFailed):
            self.receipts.append(await cells.step(PAY, pay, is_alone, retry=RETRY))

    async def _pay_later(self) -> None:
        await asyncio.sleep(HURRY_S)
        await self._pay(False)

    @cells.handler
    async def note(self, sender: str, n: int) -> int:
        return self._heard(sender, n)

    @cells.handler
    async def timely(self, sender: str, n: int, until: float) -> int:
        """As `note`, called with a deadline: `until`, by the time of the world."""
        turn, now = cells.this(), asyncio.get_running_loop().time()
        if now > until + LATE_S and getattr(turn, "replay", None) is None:
            self.late.append(f"({sender}, {n}), {now - until:.3f} s late")
        return self._heard(sender, n)

    @cells.handler
    async def once(self, key: str, body: int) -> int:
        """Called under the key, by many."""
        self.once_ran.append((key, body))
        return len(self.once_ran)

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
        """As `hand`, between two payments at the till, each a durable step; or all of it at the same time."""
        if amount % 2:
            hand = asyncio.create_task(self.hand(sender, n, to, amount))
            hurried = asyncio.wait_for(self._pay(False), HURRY_S)
            _ = await asyncio.gather(self._pay(False), hand, self._pay_later(), hurried, return_exceptions=True)
            return hand.result()
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

    @cells.handler(shared=True)
    async def look(self, waits_s: float) -> tuple[int, int]:
        """Reads in two halves, between which the agent goes on."""
        tokens = self.tokens
        if waits_s:
            await asyncio.sleep(waits_s)
        return tokens, len(self.heard)

    @cells.handler
    async def recite(self, length: int) -> AsyncIterator[str]:
        """Yields what follows from the state, then has a step emit what is another thing each time, and says what stands."""
        for k in range(length):
            yield f"{len(self.heard)} {k}"
            if k % 4 == 3:
                await asyncio.sleep(0.05)
        try:
            yield "|".join(await cells.step(REHEARSE, rehearse, length, retry=RETRY))
        except cells.StepFailed:
            yield FAILED

    @cells.handler
    async def show(
        self,
    ) -> tuple[
        int, list[tuple[str, int]], dict[str, list[int]], dict[str, int], list[Receipt], list[str], list[str], list[str],
        list[tuple[str, int]],
    ]:  # fmt: skip
        told = self.alarms, self.rung, self.late, self.once_ran
        return self.tokens, self.heard, self.got, self.sent, self.receipts, *told


class Spill(Account, name="SimSpill", inbox_max=2, when_full="drop_oldest"):
    """An account whose inbox is soon full, and then drops its oldest messages."""


class Workload:
    """Base: agents of its own, and nothing more.  A scenario calls `begin`, then `lives`, then `has_arrived` until it is true."""

    told: tuple[type[cells.Agent], ...] = ()
    """The agent classes that nodes say they know when they join; none: all that this process has."""

    def agent(self, name: str) -> str:
        """The agent that an operation means which the seed has drawn for `name`."""
        return name

    async def begin(self, scenario: Deployment) -> None:
        """Before anything goes wrong, by intention; faults of the world happen already.  After a power cut, once more."""

    def lives(self, scenario: Deployment) -> list[Coroutine[Any, Any, None]]:
        """What clients do, all at the same time."""
        return []

    async def has_arrived(self, scenario: Deployment) -> bool:
        """Asked after everything has come to rest, again until it is true: whether all that was on its way is there."""
        return True


class Accounts(Workload):
    """Tokens among accounts: none is made or lost, and each call has the place that its answer says."""

    told = (Account, Spill, Odd, movers.Mover, *KIN, *TEAMS)  # whatever else is loaded, a seed tells the same story

    async def begin(self, scenario: Deployment) -> None:
        rng, scene = Random(f"accounts {scenario.swarm.seed}"), scenario.scene
        await begin(scenario)
        scene.tokens = TOKENS * len(scenario.swarm.agents)
        has_families = bool(bosses(scenario.swarm.seed))
        if scenario.swarm.odd or scenario.swarm.crowd or has_families:
            moods = Random(f"moods {scenario.swarm.seed}")
            children = SULKS if has_families and not scenario.is_healed else 0.0
            scenario.moods = Moods(moods, scenario.swarm.sulks, scenario.swarm.slow_s, children)
            await spawn_bosses(scenario)
        for agent in (*scenario.swarm.agents, *scenario.swarm.odd):
            nodes = scenario.swarm.nodes
            first = nodes.index(rng.choice(nodes))
            ways = itertools.cycle([*nodes[first:], *nodes[:first]])  # after a power cut one may be cordoned
            cls = OddBefore if scenario.swarm.old and agent in scenario.swarm.odd[::2] else class_of(agent)
            with contextlib.suppress(AgentTerminated):  # after a power cut
                await scenario.until_done(lambda a=agent, w=ways, c=cls: scenario.operator.on(next(w)).spawn(c, a))  # type: ignore[misc]
        turns = itertools.cycle(scenario.swarm.nodes)

        async def made(agent: str) -> None:
            with contextlib.suppress(AgentTerminated):
                await scenario.until_done(lambda: scenario.operator.on(next(turns)).spawn(Odd, agent))  # type: ignore[call-arg]

        await asyncio.gather(*(made(agent) for agent in scenario.swarm.crowd))

    def lives(self, scenario: Deployment) -> list[Coroutine[Any, Any, None]]:
        return [*(self._life(scenario, life) for life in scenario.swarm.lives), *outsiders.writers(scenario)]

    async def _life(self, scenario: Deployment, life: Life) -> None:
        accounts = [agent for agent in scenario.swarm.agents if class_of(agent) is Account]
        for number in range(3):
            try:
                view, client = await scenario.client(life.name)
                if number == 0 and life.dies_at is not None:
                    scenario.world.later(life.dies_at, scenario.crash, view)
                name = f"{life.name}.{number}"
                works = [self._work(scenario, client, f"{name}.{w}", p) for w, p in enumerate(life.workers)]
                works.append(self._deal(scenario, client, f"{name}.t"))
                works += hurried(scenario, accounts, f"{name}.u", partial(self._hurried, scenario, client))
                works += labellers(scenario, client, Account, accounts, f"{name}.a", self._called)
                works += readers(scenario, client, class_of, name)
                works += families(scenario, client, name)
                works += movers.bumpers(scenario, client, name)
                works += teams.employers(scenario, client, name)
                works += resolvers.applicants(scenario, client, Account, accounts, f"{name}.w")
                works += outsiders.heeders(scenario, client, Account, accounts, f"{name}.o", self._called)
                works += listeners(scenario, client, Account, accounts, name)
                await view.process.run(all_of(works))
                await view.process.run(client.close())
                return
            except Killed:
                if scenario.is_healed:
                    return

    async def _work(self, scenario: Deployment, client: Client, sender: str, plans: list[CallPlan]) -> None:
        numbers: Counter[str] = Counter()
        for plan in plans:
            await asyncio.sleep(plan.rest_s)
            numbers[plan.agent] += 1
            n, ref = numbers[plan.agent], client.get(class_of(plan.agent), plan.agent)
            call = Call(plan.agent, sender, n, not plan.tells, doomed="maybe" if plan.kind in DOOMED else "")
            scenario.scene.calls.append(call)
            await self._called(scenario, plan, call, ref)

    async def _deal(self, scenario: Deployment, client: Client, sender: str) -> None:
        """In some worlds a client has agents publish and subscribe, and the store removes what it has of topics."""
        numbers, rng, world = Counter[str](), Random(f"trims {scenario.swarm.seed} {sender}"), scenario.world
        agents = [agent for agent in scenario.swarm.agents if class_of(agent) is Account]  # another one drops messages
        for number, deal in enumerate(deals(scenario.swarm.seed, sender, agents)):
            await asyncio.sleep(deal.rest_s)
            numbers[deal.agent] += 1
            call = Call(deal.agent, sender, numbers[deal.agent], True)
            scenario.scene.calls.append(call)
            plan = CallPlan(number, 0.0, deal.agent, deal.kind, deal.topic, deal.size, False)
            await self._called(scenario, plan, call, client.get(Account, deal.agent))
            topics = world.store.subjects("topic.")
            if topics and rng.random() < TRIMS:
                subject, last = rng.choice(topics)
                before = rng.choice([entry.seq for entry in world.store.read(subject, 0, 1000)])
                trimmed = world.history.trimmed
                trimmed[subject] = max(trimmed.get(subject, 0), min(before, last))
                world.store.trim(subject, before)

    async def _hurried(self, scenario: Deployment, client: Client, plan: CallPlan, call: Call) -> None:
        await self._outcome(scenario, plan, call, urged(client.get(Account, plan.agent), plan, call))

    async def _called(self, scenario: Deployment, plan: CallPlan, call: Call, ref: cells.Agent) -> None:
        bound = getattr(ref, plan.kind)
        args: tuple[Any, ...] = (call.sender, call.n)
        if plan.kind in ("give", "hand", "settle", "post", "attend", "depart", "label", "heed", "unheed"):
            args = *args, plan.to, plan.amount
        elif plan.kind == "alarm":
            args = *args, plan.amount**2
        elif plan.deadline_s:
            args = *args, scenario.world.loop.time() + plan.deadline_s
            bound = bound.options(deadline=plan.deadline_s)
        elif plan.kind == "once":
            call.key, call.body = f"k{plan.amount}", int(plan.number % 5 == 0)
            args, bound = (call.key, call.body), bound.options(key=call.key)
        await self._outcome(scenario, plan, call, bound.tell(*args) if plan.tells else bound(*args))

    async def _outcome(
        self, scenario: Deployment, plan: CallPlan, call: Call, answers: Coroutine[Any, Any, Any]
    ) -> None:
        counts = scenario.scene.counts
        try:
            answer = await answers
            if answer is GIVEN_UP:
                counts["call cancelled"] += 1
                return
            if call.doomed:
                call.doomed = "stored" if plan.tells else "answered"
                call.at = scenario.world.loop.time()
                counts["doomed tell stored"] += plan.tells
                return
            if plan.deadline_s and plan.tells:
                call.timely, call.at = "stored", scenario.world.loop.time()
                counts["timely tell stored"] += 1
                return
            if call.key:
                call.keyed, call.at = 0 if plan.tells else answer, scenario.world.loop.time()
                counts["keyed call acknowledged"] += 1
                return
            call.acked, call.at = True, scenario.world.loop.time()
            call.answer = None if plan.tells else answer
            counts["call acknowledged"] += 1
        except CellError as error:
            has_ended = error.code == "AgentTerminated" and scenario.may_have_ended(plan.agent)
            if has_ended or scenario.is_passing(error) or scenario.is_torn(error):
                counts[f"call: {error.code}"] += 1
                return
            if call.key and error.code == "KeyConflict":
                call.keyed, call.at = -1, scenario.world.loop.time()
                counts["call: KeyConflict"] += 1
                return
            if plan.deadline_s and error.code in ("Expired", "InboxFull"):
                call.timely, call.at = "expired", scenario.world.loop.time()
                counts[f"call: {error.code}"] += 1
                return
            if call.doomed and error.code in ("HandlerFailed", "TurnDeadlineExceeded"):
                call.doomed = "failed"
                counts[f"call: {error.code}"] += 1
                return
            if error.code == "NoSuchAgent" and scenario.world.power:
                counts["call: NoSuchAgent"] += 1  # its creation was forgotten, too, and it is created again
                return
            scenario.violate(f"I4: {call.sender} called {call.agent}.{plan.kind} and got {error.code}: {error}")

    async def has_arrived(self, scenario: Deployment) -> bool:
        observed = scenario.scene.observed
        if not await odd.observe(scenario):
            return False
        for agent in scenario.swarm.agents:
            ref = scenario.operator.get(Spill if class_of(agent) is Spill else Account, agent)
            observed[agent] = Observed(*await scenario.until_done(ref.show))
            await resolvers.observe(scenario, ref, observed[agent])
            await outsiders.observe(scenario, ref, observed[agent])
        await teams.hush(scenario)
        if any(one.behind() for one in scenario.checkers.all) or not await observe(scenario):
            return False
        await look_up(scenario)
        transfers = all(len(observed[to].got.get(a, [])) >= n for a, s in observed.items() for to, n in s.sent.items())
        waiting = scenario.scene.waiting = scenario.scene.count_waiting_timers()
        return transfers and all(len(one.rung) + waiting[a] >= len(one.alarms) for a, one in observed.items())


def class_of(agent: str) -> type[cells.Agent]:
    """The names of those that misbehave begin with b, that of the one with a small inbox with c."""
    return Odd if agent.startswith("b") else Spill if agent.startswith("c") else Account
