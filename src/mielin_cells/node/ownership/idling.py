"""Agents without work leave their node's memory, and come back when there is something for them to do.

An agent that sleeps is an agent of its node in all other respects: nothing is written when it wakes, and its epoch goes on.  Waking
reads the log as a restart does.  If the log does not end where it ended when the agent went to sleep, the node looks at it as at the
log of any agent that does not run here, and claims the agent if it is still this node's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING

from mielin_cells.errors import CellError, RetryError, described
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject
from mielin_cells.log.lifecycle import Phase
from mielin_cells.node.activation.presence.sleeper import Sleeper
from mielin_cells.node.activation.run import is_failure
from mielin_cells.node.activation.snapshots import SMALL_BYTES, WORTH
from mielin_cells.node.ownership.standby import copies_wanted
from mielin_cells.store.reader import load_behind
from mielin_cells.tasks.supervision import persist
from mielin_cells.tasks.together import together

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation, Activations
    from mielin_cells.node.moves.manager import Migrations
    from mielin_cells.node.ownership.adoption import Adoption
    from mielin_cells.node.ownership.claims import Claims
    from mielin_cells.node.ownership.quarantine import Quarantine

logger = logging.getLogger("mielin_cells.node")

LOOKS = 4
"""An agent is looked at so many times in its `idle_s`: it leaves memory at most a quarter late."""

LOOK_S_MIN, LOOK_S_MAX = 0.05, 30.0
"""Seconds between two looks at all agents."""

SLICE = 500
"""Agents that are looked at before other tasks run: about 0.2 ms."""

BORN_RECORDS = 2
"""Of an agent that was made and never called: they are read as fast as a snapshot, which would be two more."""

AT_ONCE = 32
"""Agents that go to sleep at the same time."""


class Idling:
    """Of one node: puts agents without work to sleep, and wakes them."""

    def __init__(
        self,
        activations: Activations,
        migrations: Migrations,
        claims: Claims,
        adoption: Adoption,
        quarantine: Quarantine,
    ) -> None:
        self._activations = activations
        self._migrations = migrations
        self._claims = claims
        self._adoption = adoption
        self._quarantine = quarantine
        self._context: Context = copy_context()
        """That of the node's own tasks: what wakes an agent may come from the store's."""
        self._logged: set[str] = set()
        """Agents whose `on_depart` keeps them in memory."""
        self._pause_s = LOOK_S_MAX
        self._hurry = asyncio.Event()
        self._has_any = False
        """An agent that may leave memory has run here: until then no look goes through all agents."""

    # ---- to sleep --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Looks after agents without work, for as long as the node lasts."""
        self._context = copy_context()
        while not self._activations.is_stopping:
            self._pause_s = await self.round()
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), self._pause_s)

    def served(self, activation: Activation) -> None:
        """The agent runs here now: if it may leave memory sooner than all others, the next look comes sooner."""
        if not (idle_s := self._idle_s(activation)):
            return
        self._has_any = True
        if max(LOOK_S_MIN, idle_s / LOOKS) < self._pause_s:
            self._hurry.set()

    async def round(self) -> float:
        """Puts the agents to sleep that have had nothing to do for their `idle_s`.  Returns the seconds until the next look.

        An agent's work shows in the end of its log and in the messages that have come.  So a turn costs nothing more for it.
        """
        now, shortest, due = asyncio.get_running_loop().time(), LOOK_S_MAX * LOOKS, list["Activation"]()
        if not self._has_any:
            return LOOK_S_MAX
        for count, activation in enumerate(list(self._activations.live.values()), 1):
            if count % SLICE == 0:
                await asyncio.sleep(0)
            idle_s = self._idle_s(activation)
            if not idle_s:
                continue
            shortest = min(shortest, idle_s)
            seq, arrived, since = activation.rested
            if (activation.fold.seq, activation.inbox.arrived_in_all) != (seq, arrived):
                activation.rested = activation.fold.seq, activation.inbox.arrived_in_all, now
            elif now - since >= idle_s and not activation.has_to_stay:
                due.append(activation)
        for start in range(0, len(due), AT_ONCE):
            await together(self._put_to_sleep(activation) for activation in due[start : start + AT_ONCE])
        return max(LOOK_S_MIN, shortest / LOOKS)

    def _idle_s(self, activation: Activation) -> float:
        """After this time without work the agent leaves memory; 0: never."""
        own: float | None = activation.spec.cls.__mielin_idle__
        return self._activations.settings.idle_s if own is None else own

    def _is_needed(self, activation: Activation) -> bool:
        """True if somebody works with this very activation, or it is not served any more."""
        agent, activations = activation.fold.agent, self._activations
        is_moving = agent in self._migrations.open or agent in self._migrations.attempts.moves
        is_served = activations.live.get(agent) is activation and not activations.is_stopping
        return is_moving or not is_served or activations.is_starting(agent) or activation.keeps > 0

    async def _put_to_sleep(self, activation: Activation) -> None:
        """Has the agent leave memory, unless something comes meanwhile.  Whatever fails, the agent stays and goes on."""
        if self._is_needed(activation) or not activation.is_idle:
            return
        try:
            async with asyncio.timeout(self._activations.settings.pause_s):
                await self._make_short(activation)
                if not await activation.intake.stop_at_once():
                    return
        except (CellError, TimeoutError) as error:
            self._stays(activation, error)
            return
        departs, is_asleep = activation.spec.overrides("on_depart"), False
        try:
            async with asyncio.timeout(self._activations.settings.pause_s):
                if departs:
                    await activation.runner.hook("on_depart")
                await self._save(activation)
            is_asleep = not self._is_needed(activation) and activation.may_sleep and self._leave(activation)
        except BaseException as error:  # also whatever a user's hook raises
            if not is_failure(error):
                raise
            self._stays(activation, error)
        if not is_asleep:
            await self._stay(activation, departs)

    async def _make_short(self, activation: Activation) -> None:
        """Writes a snapshot, so that waking reads one record; not of a state that is large beside what was appended since the last."""
        fold = activation.fold
        is_small = fold.size_bytes <= SMALL_BYTES or fold.behind_bytes >= fold.size_bytes // WORTH
        if is_small and fold.behind_records > (0 if fold.snap else BORN_RECORDS):
            activation.snapshots.begin()
            await activation.snapshots.written()
            activation.commit_soon()
            await activation.settled()

    async def _save(self, activation: Activation) -> None:
        """What the log does not hold yet: else a message that is stored at its receiver would be sent again after each waking."""
        if activation.has_news:
            activation.touch()
        await activation.flush()
        await activation.settled()

    def _leave(self, activation: Activation) -> bool:
        """The log holds everything: from here to the end nothing else runs, and what comes later wakes the agent."""
        activations, fold = self._activations, activation.fold
        sleeper = Sleeper(fold, activation.timers.dues, copies_wanted(activation), self._wake_up)
        tails = activation.inbox.release_tails(sleeper.heard)
        if tails is None:
            return False
        waits_due = activation.desk.next_due() if activation.desk is not None else None
        dues = [due for due in (activation.timers.next_due(), waits_due) if due is not None]
        sleeper.begin(tails[0], tails[1:], min(dues, default=None), self._context)
        activations.drop(activation)
        activations.asleep[fold.agent] = sleeper
        self._logged.discard(fold.agent)
        return True

    def _stays(self, activation: Activation, error: BaseException) -> None:
        agent = activation.fold.agent
        if agent not in self._logged:
            self._logged.add(agent)
            logger.warning(
                "agent %s has had nothing to do and stays in memory all the same: %s; it goes on",
                agent,
                described(error),
            )

    async def _stay(self, activation: Activation, has_departed: bool) -> None:
        """The agent goes on as after a move that failed."""
        activation.rested = (*activation.rested[:2], asyncio.get_running_loop().time())
        if activation.lost is not None or not activation.is_open:
            return
        if has_departed:
            try:
                await activation.runner.hook("on_arrive")
            except Exception as error:  # a hook may raise anything: the agent is then in ERROR, which `resume` retries
                with contextlib.suppress(CellError):  # else the activation is lost, and says so itself
                    await activation.failed(error)
        activation.intake.resume()

    # ---- awake -----------------------------------------------------------------------------------------------

    def _wake_up(self, sleeper: Sleeper) -> None:
        if not self._activations.is_stopping:
            self._activations.home.begin(self._wake(sleeper))

    async def _wake(self, sleeper: Sleeper) -> None:
        """Serves the agent again, in its epoch if its log ends where it ended."""
        agent, activations = sleeper.agent, self._activations
        with activations.starting(agent):
            try:
                fold = await persist(partial(self._read, sleeper), RetryError, partial(self._failed, agent))
                if fold is not None and activations.asleep.get(agent) is sleeper and not activations.is_stopping:
                    await self._claims.resume(fold, sleeper)
                    return
            except Exception as error:  # of whatever kind: reading it as at a restart says why, and what can be done
                logger.info("agent %s does not wake as it went to sleep: %s", agent, described(error))
        self._give_up(sleeper)

    def _failed(self, agent: str, error: Exception) -> None:
        logger.info("agent %s is to wake, and its log was not read; trying again: %s", agent, error)

    async def _read(self, sleeper: Sleeper) -> Fold | None:
        """The agent as its log says; None if the log does not end where it ended, or the node is another process by now."""
        home, agent = self._activations.home, sleeper.agent
        last = await home.log.last(log_subject(agent))
        if last is None or last.seq != sleeper.seq:
            return None
        fold = await load_behind(home.log, agent, last)
        is_own = fold.owner == home.name and fold.incarnation == home.incarnation and fold.phase is Phase.RUN
        return fold if is_own and fold.seq == sleeper.seq and fold.epoch == sleeper.epoch else None

    def _give_up(self, sleeper: Sleeper) -> None:
        """Leaves the agent to those who look at logs that name this node."""
        agent = sleeper.agent
        if self._activations.asleep.get(agent) is sleeper:
            self._quarantine.seen[agent] = max(sleeper.seq, self._quarantine.seen.get(agent, 0))
            self._activations.forget(agent)
            self._adoption.look(agent)
