"""One seed's story: a deployment of production code, clients that call its agents, an operator, and a nemesis.

A story has two stages.  First everything goes wrong that the seed has drawn, and nothing unsafe may happen.  Then a drawn majority of
the nodes heals, the others stay dead for good, and everything must come to rest within a bound (I15); then the checkers look at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import traceback
from collections.abc import Callable, Container
from functools import partial
from random import Random
from typing import Any, TypeVar

from mielin_cells.errors import CellError, RecordInvalid, SupervisionFailed, TurnDeadlineExceeded
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import LOGS, agent_of, inbox_subject
from mielin_cells.log.inboxes.lines import NORMAL, PRIORITIES
from mielin_cells.log.inboxes.places import InboxPlace
from mielin_cells.log.message import decode_mail
from mielin_cells.node.node import Node
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.checkers import CHECKERS
from mielin_cells.testing.checkers.checker import Checker
from mielin_cells.testing.checkers.history import Author
from mielin_cells.testing.checkers.members import MembersAgree
from mielin_cells.testing.checkers.migrations import ComesToRest, NothingLeft, ValidPath
from mielin_cells.testing.checkers.scene import Violation
from mielin_cells.testing.checkers.till import Till
from mielin_cells.testing.checkers.waits.outcomes import WaitsStand
from mielin_cells.testing.simulator import loop, misbehaving
from mielin_cells.testing.simulator.coverage import Matrix
from mielin_cells.testing.simulator.deployment import OPERATOR, Deployment
from mielin_cells.testing.simulator.environment import FOR_GOOD, causes
from mielin_cells.testing.simulator.nemesis import Nemesis
from mielin_cells.testing.simulator.swarm import REFUSED, Swarm
from mielin_cells.testing.simulator.workload import Accounts, Workload

C = TypeVar("C", bound=Checker)
S = TypeVar("S", bound="Scenario")

STORY_S = 900.0
"""Virtual time within which a story with its rest is over."""

STAGE_S = 300.0
"""Virtual time that the first stage has."""

REST_S = 200.0
"""Virtual time from healing to rest (I15): several whole migrations, the longest pauses of retries, and the times after which a node
settles what others have left."""

TURN_S = 6.0
"""More of it for each message that waits then: a call that pays at the till twice takes so long if both payments are retried."""

LOOK_S = 1.0
"""The interval of looking whether everything has come to rest."""

AFTER_STOP_S = 60.0
"""A node that stops may finish the request that it is answering, and wait for a slow store."""

FOR_GOOD_S = 1e6


class Bugs(logging.Handler):
    """Makes an error that production code logs as its own failure a violation, and drops the rest of its logs."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(logging.ERROR)
        self._scenario = scenario

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or isinstance(error, GeneratorExit):
            return
        if any(id(one) in self._scenario.world.errors for one in causes(error)):
            self._scenario.scene.counts[f"said of a refusal: {error.__class__.__name__}"] += 1
        elif any(
            isinstance(one, (misbehaving.Refused, SupervisionFailed, TurnDeadlineExceeded)) for one in causes(error)
        ):
            self._scenario.scene.counts["said of a handler"] += 1
        elif self._scenario.is_torn(error):
            self._scenario.scene.counts[f"stopped by {type(error).__name__}"] += 1  # it says so, and is right
        else:
            trace = "".join(traceback.format_exception(error)[-6:])
            self._scenario.violate(f"I21: a bug: {record.getMessage()}\n{trace}")

    def __enter__(self) -> None:
        logger = logging.getLogger("mielin_cells")
        self._before = logger.level, logger.propagate
        logger.addHandler(self)
        logger.setLevel(logging.ERROR)
        logger.propagate = False

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("mielin_cells")
        logger.removeHandler(self)
        level, logger.propagate = self._before
        logger.setLevel(level)  # not `logger.level`: what is disabled is remembered by each logger below


class Scenario(Deployment):
    """Made inside a `VirtualLoop`.  `play` runs the story and leaves what it found in `violations`."""

    def __init__(self, swarm: Swarm, workload: Workload | None = None) -> None:
        super().__init__(swarm, CHECKERS)
        self.workload = workload or Accounts()
        self.told = self.workload.told
        self._healed_at = 0.0
        self._has_held = False
        self._states = dict[str, bytes]()
        """A record of an agent's log has shown messages that were put off since `_held` was noted."""
        self._held = dict[str, set[int]]()
        self.nemesis = Nemesis(self, self.workload)
        self.matrix = Matrix(self.scene)
        self.world.on_append(self.count_failovers)
        self.world.on_append(self.guard(self.checkers.landed))
        self.world.on_append(self._look_for_held)
        self.world.on_publish(self.guard(self.checkers.published))
        self.world.on_append(self.nemesis.at_landing)
        self.world.on_harm(self.matrix.harmed)

    def checker(self, kind: type[C]) -> C:
        return next(checker for checker in self.checkers.all if isinstance(checker, kind))

    async def play(self) -> None:
        """The whole story; ends early at the first violation."""
        story = asyncio.ensure_future(self._story())
        try:
            await asyncio.wait((story, self._failed), timeout=STORY_S, return_when=asyncio.FIRST_COMPLETED)
            if story.done():
                story.result()
            elif not self._failed.done():
                self.violate(f"I15: the story is not over after {STORY_S:g} s")
        except Violation as error:
            self.violate(str(error))
        finally:
            story.cancel()
            for job in self._jobs:
                job.cancel()
            self._is_over = True
            Till.close()
            WaitsStand.close()
            misbehaving.close()

    # ---- the story -------------------------------------------------------------------------------------------

    async def _story(self) -> None:
        await asyncio.gather(*(self._start(name) for name in self.swarm.nodes))
        await self._open_operator()
        await self._open_asker()
        await self.workload.begin(self)
        for life in self.workload.lives(self):
            self.job(life)
        self.job(self.nemesis.act_all())
        await self._stage_is_over()
        self._heal()
        self._healed_at = self.world.loop.time()
        until = self._healed_at + REST_S + TURN_S * self._unread()
        await self._rest(until)
        await self._settled(until)
        while not await self._is_still():
            await self._settled(until)
        self.checkers.at_rest()
        await self._end()

    @property
    def _healed_s(self) -> float:
        return round(self.world.loop.time() - self._healed_at)

    def _unread(self) -> int:
        """Messages that an agent has not taken from its inbox, each counted once."""
        count = 0
        for agent, fold in self.scene.folds.items():
            unread = set[tuple[str, int]]()
            for priority in PRIORITIES:
                place = fold.ledger if priority == NORMAL else (fold.ledger.inboxes or {}).get(priority, InboxPlace())
                for entry in self.world.store.read(inbox_subject(agent, priority), place.cursor, sys.maxsize):
                    with contextlib.suppress(RecordInvalid):
                        mail = decode_mail(entry.data, agent)
                        unread |= {(mail.sender, message.n) for message in mail.messages}
            count += len(unread)
        return count

    async def _stage_is_over(self) -> None:
        """Waits for all jobs, also those that jobs begin; one that does not end may still do so after healing."""
        until = self.world.loop.time() + STAGE_S
        while self._jobs and self.world.loop.time() < until:
            done, _ = await asyncio.wait(self._jobs, timeout=until - self.world.loop.time())
            self._take(done)

    def _take(self, done: Container[asyncio.Task[Any]]) -> None:
        for job in [job for job in self._jobs if job in done]:  # in the order in which they began
            del self._jobs[job]
            job.result()

    def _heal(self) -> None:
        dead, world = self.swarm.dead, self.world
        self.is_healed = True
        if self.moods is not None:
            self.moods.calm()
        self.scene.lost = frozenset(dead)
        world.heal(*dead)
        for name, how in dead.items():
            world.counts[f"dead for good: {how}"] += 1
            if how == "crash":
                world.crash(name)
            elif how == "pause":
                world.pause(name, FOR_GOOD_S)
            elif how == REFUSED:
                world.refuse(name, Random(f"refused {name} {world.seed}").choice(FOR_GOOD), FOR_GOOD_S)
            else:
                world.cut(name, FOR_GOOD_S, store=True)
        for name in sorted(self.old - dead.keys()):
            self.old.discard(name)
            world.crash(name)
        for name in self.swarm.nodes:
            if name not in dead and world.views[name].process.is_dead:
                self.job(self._start(name))
        if world.views[OPERATOR].process.is_dead:
            self.job(self._open_operator())

    def _resting(self) -> str:
        """What is not at rest yet; "" if everything is."""
        if self._jobs:
            return f"{len(self._jobs)} jobs are not over: {[*self._jobs]}"
        if self.world.pending:
            return f"{self.world.pending} late messages have not come yet"
        for agent in self.checkers.agents:
            owner = self.checkers.owner(agent)
            if owner and owner not in self.scene.lost and not self.scene.nodes[owner].activations.owns(agent):
                return f"{agent}, which is {owner}'s, is not served there"
            if owner in self.scene.lost:
                return f"{agent} belongs to {owner}, which is dead for good"
        for node in self.scene.living():
            if trouble := self._overslept(node):
                return trouble
            if node.copies.by_agent or node.migrations.open or node.migrations.attempts.moves:
                return f"{node.name} has {[*node.copies.by_agent, *node.migrations.open]} to move"
        if self.swarm.keepers and (wrong := self._members_disagree()):
            return wrong
        journals = self.checker(ValidPath).open
        return f"migrations {journals} have no end" if journals else ""

    def _members_disagree(self) -> str:
        """A node that the store refuses for good still sends heartbeats: it may serve, and leads while it need not write."""
        lost = {name for name in self.scene.lost if self.swarm.dead[name] != REFUSED}
        return self.checker(MembersAgree).disagrees({node.name for node in self.scene.living()}, lost)

    def _overslept(self, node: Node) -> str:
        """The agent of the node that has left memory and has something to do; "" if there is none.

        The next message would wake it, so nobody who asks it would notice.
        """
        for agent, sleeper in node.activations.asleep.items():
            for priority, cursor in ((NORMAL, sleeper.cursor), *sleeper.cursors):
                last = self.world.store.last(inbox_subject(agent, priority))
                if last is not None and last.seq > cursor:
                    return f"{agent} has left the memory of {node.name}, and a message waits for it"
            if sleeper.dues and min(sleeper.dues.values()) < self.world.loop.time():
                return f"{agent} has left the memory of {node.name}, and a timer of it is due"
        return ""

    async def _rest(self, until: float) -> None:
        """Until everything has come to rest.  Raises a violation of I15 if it has not by `until`."""
        while trouble := self._resting():
            if self.world.loop.time() > until:
                self.checker(ComesToRest).fails(f"{self._healed_s:g} s after the world has healed {trouble}")
            await asyncio.sleep(LOOK_S)
            self._take([job for job in self._jobs if job.done()])
            await self._adopt()

    async def _adopt(self) -> None:
        """Claims the agents of nodes that are dead for good.  With failover in the world, nodes do this by themselves.

        But an agent that was rolled back to go on at a node that is dead now needs the decision of an operator.
        """
        lost, living = self.scene.lost, [name for name in self.swarm.nodes if name not in self.scene.lost]
        for number, agent in enumerate(self.checkers.agents):
            goes_to = self.scene.folds[agent].goes_to
            owner = self.checkers.owner(agent)
            is_kept = self.swarm.keepers and self.swarm.dead.get(owner) != REFUSED  # such a node still sends heartbeats
            if goes_to not in lost and (is_kept or owner not in lost):
                continue
            force, to = goes_to in lost, goes_to if goes_to in living else living[number % len(living)]
            try:
                await self.as_operator(partial(self.operator.claim, agent, to=to, force=force))
                self.scene.counts["agents taken from the dead"] += 1
            except CellError as error:
                self.scene.counts[f"adopt: {error.code}"] += 1

    async def _settled(self, until: float) -> None:
        """Every agent runs again, answers, and has what was sent to it.  Raises a violation of I15."""
        try:
            async with asyncio.timeout_at(until):
                await self.wake_all()
                while not await self._has_arrived():
                    await asyncio.sleep(LOOK_S)
                    await self.wake_all()
        except TimeoutError:
            live = {name: sorted(node.activations.live) for name, node in self.scene.nodes.items()}
            states = {agent: fold.lifecycle.state.value for agent, fold in self.scene.folds.items()}
            self.checker(ComesToRest).fails(
                f"{self._healed_s:g} s after the world has healed not everything is where it was sent; "
                f"agents are {states}, hosted: {live}"
            )
        await self._rest(until + REST_S)

    async def _has_arrived(self) -> bool:
        """True if the workload says so, and no message was put off while it asked the agents."""
        before, self._has_held = self._put_off(), False
        self._held = {agent: _held(fold) for agent, fold in self.scene.folds.items()}
        has_arrived, self._states = await self.workload.has_arrived(self), self._digests()
        is_quiet = before == self._put_off() and not any(waits for _, _, waits in before.values())
        return has_arrived and is_quiet and not self._has_held

    def _look_for_held(self, subject: str, entry: Entry, author: Author) -> None:
        """An agent that has put off messages may end, or leave memory, before anybody looks: its log knows."""
        fold = self.scene.folds.get(agent_of(subject)) if self.is_healed and subject.startswith(LOGS) else None
        if fold is not None:
            self._has_held |= not _held(fold) <= self._held.get(fold.agent, set())

    def _put_off(self) -> dict[str, tuple[int, int, int]]:
        """By agent: its activation, how often a message was put off there, and how many senders have one put off now.

        One that has put nothing off may leave memory and come back meanwhile.
        """
        return {
            agent: (id(activation), activation.intake.delays.count, len(activation.intake.delays.senders))
            for node in self.scene.living()
            for agent, activation in node.activations.live.items()
            if activation.intake.delays.count
        }

    async def _is_still(self) -> bool:
        """Loads every agent afresh; true if nothing has moved meanwhile, and no state since they were all asked for it.

        Agents that were asked write their snapshots and go to sleep again first: both are records.
        """
        idle_s = self.swarm.settings.idle_s
        await asyncio.sleep(2 * idle_s + LOOK_S if idle_s < STORY_S / 10 else LOOK_S)  # else nobody goes to sleep
        before = {agent: fold.seq for agent, fold in self.scene.folds.items()}
        for agent in self.checkers.agents:
            self.scene.loaded[agent] = await self.as_operator(partial(load, self.operator.log, agent))
        is_same = (
            before == {agent: fold.seq for agent, fold in self.scene.folds.items()} and self._states == self._digests()
        )
        return is_same and not self._resting()

    def _digests(self) -> dict[str, bytes]:
        return {agent: fold.state.digest() for agent, fold in self.scene.folds.items()}

    async def _end(self) -> None:
        for node in self.scene.living():
            await self.world.views[node.name].process.run(node.stop())
        for view, client in self._clients.values():
            if not view.process.is_dead:
                await view.process.run(client.close())
        until = self.world.loop.time() + AFTER_STOP_S
        while left := self._left():
            if self.world.loop.time() > until:
                self.checker(NothingLeft).fails(left)
            await asyncio.sleep(LOOK_S)

    def _left(self) -> str:
        """What a stopped process has left behind; "" if nothing (I19)."""
        for view in self.world.views.values():
            if view.process.is_dead or view.process.is_paused or view.name in self.scene.lost:
                continue
            remains = [str(getattr(task.get_coro(), "__qualname__", "a task")) for task in view.process.tasks()]
            remains += [repr(tail) for tail in view.tails]
            remains += ["<a watch of a topic>" for _ in view.watches]
            remains += [f"<service of {wired.subject}>" for wired in (*view.subscriptions, *view.servers)]
            if remains:
                return f"{view.label} was stopped and left {remains}"
        return ""


def _held(fold: Fold) -> set[int]:
    """Entries of all of an agent's inboxes that wait for something."""
    return {*fold.ledger.held, *(seq for place in (fold.ledger.inboxes or {}).values() for seq in place.held)}


def play(make: Callable[[], S], *, seed: int, steps_max: int) -> S:
    """Makes a scenario inside a loop of its own and plays it to its end; the scenario.  Raises what `loop.run` does."""
    made: list[S] = []
    logs = contextlib.ExitStack()

    async def main() -> None:
        made.append(make())
        logs.enter_context(Bugs(made[0]))
        await made[0].play()

    with logs:
        loop.run(main(), seed=seed, steps_max=steps_max)
    return made[0]
