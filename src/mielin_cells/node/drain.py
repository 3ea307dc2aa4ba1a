"""Moves every agent off a node that is about to stop: quiet agents first, some at a time, each to a node that has room.

The agents are moved as by `migrate`, so each is safe whatever happens.  An agent that has not gone by the deadline stays claimable.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from mielin_cells.errors import CellError, Fenced, MigrationInProgress, NoSuchAgent, RetryError, described
from mielin_cells.membership.selection import UNREAD, need_of, nowhere
from mielin_cells.membership.whereabouts import Placer
from mielin_cells.node.moves.admission import ask_offer
from mielin_cells.policy.placement.values import Need, Places
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import DONE, OVER, ROWS_MAX, RUNNING, STOPPED, DrainProgress, Row
from mielin_cells.tasks.together import together

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations
    from mielin_cells.node.activation.presence.sleeper import Owned
    from mielin_cells.node.moves.admission import Copies
    from mielin_cells.node.moves.manager import Migrations
    from mielin_cells.node.moves.recovery import Recovery

logger = logging.getLogger("mielin_cells.drain")

MOVES = 16
"""Moves at the same time: they share round trips, and the agents that wait for their move go on working."""

ROUND_S = 0.5
"""Wait between two rounds; each round offers the remaining agents again."""

SOON_S = 0.05
"""Wait before a round that offers agents which have only just come: other nodes are drained at the same time."""

END_S = 1.0
"""Time after the deadline for moves to be cancelled; a move that has handed over completes by itself."""

PROBES = 64
"""Agents of a dry run that are offered at the same time."""

NAMES_MAX = 64
"""Ended drains whose progress a node still reports."""


ABORTED = "its move was aborted, and is not begun again"
NOWHERE = "no other node takes it"
IMMOVABLE = "its policy says that it is immovable; `mielin migrate` moves it"


class Drain:
    """One drain; `run` it once.  A patient one waits until the deadline for nodes that may come to take agents."""

    def __init__(
        self, activations: Activations, migrations: Migrations, copies: Copies, deadline_s: float, *, is_patient: bool
    ) -> None:
        self._activations = activations
        self._migrations = migrations
        self._copies = copies
        self.state = RUNNING
        self.moved = 0
        self._is_patient = is_patient
        self._begun = activations.clock()
        self._until = self._begun + deadline_s
        self._ended_at = 0.0
        self._rows: dict[str, Row] = {}
        self._kept: set[str] = set()
        """Agents whose move an operator has aborted."""
        self._offered: set[str] = set()
        """Agents that the last round has offered."""
        self._spread = Placer(activations.home.log)
        self._ending = asyncio.Event()

    # ---- steering --------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Begins no further move; running ones continue."""
        if self.state == RUNNING:
            self.state = STOPPED
            self._ending.set()

    def extend(self, deadline_s: float) -> None:
        """Sets another deadline, from now."""
        self._until = self._activations.clock() + deadline_s

    async def run(self) -> None:
        """Moves the agents, and ends by the deadline and `END_S`."""
        activations = self._activations
        logger.info("node %s: the drain begins, with %d agents to move", activations.name, activations.count)
        rounds = asyncio.create_task(self._rounds())
        clock = asyncio.create_task(self._watch_the_clock())
        try:
            await asyncio.wait((rounds, clock), return_when=asyncio.FIRST_COMPLETED)
            if not rounds.done():
                self._ending.set()
                await asyncio.wait((rounds,), timeout=END_S)
        finally:
            rounds.cancel()
            clock.cancel()
            [failed, lost] = await asyncio.gather(rounds, clock, return_exceptions=True)
        errors = [error for error in (failed, lost) if isinstance(error, Exception)]
        for error in errors:
            logger.error("the drain of node %s failed: %r", activations.name, error, exc_info=error)
        if self.state == RUNNING:
            self.state = OVER if errors else DONE
        for row in self._rows.values():
            if row.state == "moving":
                self.moved += not activations.owns(row.agent)  # it has gone just as its move was no longer waited for
                row.state, row.blocker = "blocked", f"the deadline came while it was moved to {row.target}"
        self._ended_at = activations.clock()
        progress = self.progress()
        logger.info(
            "node %s: the drain moved %d of %d agents in %.1f s%s", activations.name, progress.moved, progress.agents,
            progress.seconds,
            f"; {progress.left} stay and can be claimed" if progress.left else "",
        )  # fmt: skip

    async def _rounds(self) -> None:
        activations = self._activations
        while not self._ending.is_set():
            try:
                goes_on = await self._round()
            except CellError as error:
                logger.warning("the drain of node %s waits for the store: %s", activations.name, error)
                goes_on = True
            if not goes_on:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), SOON_S if self._has_new() else ROUND_S)

    def _has_new(self) -> bool:
        """True if agents have come since the round began, or may be coming: they were sent before this node was cordoned."""
        known, activations = self._offered | self._kept, self._activations
        return self._copies.is_deciding or not known.issuperset((*activations.live, *activations.asleep))

    async def _watch_the_clock(self) -> None:
        """Returns when the deadline has come, after cancelling the moves that have not handed over."""
        activations = self._activations
        while (left := self._until - activations.clock()) > 0:
            await asyncio.sleep(min(left, ROUND_S))
        self.state = OVER
        self._ending.set()
        for agent in [agent for agent, row in self._rows.items() if row.state == "moving"]:
            move = self._migrations.open.get(agent)
            if move is not None:
                activations.home.begin(_abort(move))

    # ---- moving ----------------------------------------------------------------------------------------------

    async def _round(self) -> bool:
        """Offers every agent that is here once; True if another round is due."""
        activations = self._activations
        self._spread.follow(activations.members.table, activations.home.rng, activations.name)
        todo = sorted(
            (owned for owned in activations.owned() if owned.agent not in self._kept),
            key=lambda owned: (owned.waiting, owned.size_bytes, owned.agent),
        )
        self._offered = {owned.agent for owned in todo}
        for owned in todo:
            self._rows.setdefault(owned.agent, Row(agent=owned.agent))
        queue = iter(todo)

        async def worker() -> None:
            for owned in queue:
                if self._ending.is_set():
                    return
                try:
                    await self._move(owned)
                except RetryError:
                    raise
                except Exception as error:  # a bug, of ours or of the agent's class: the other agents go on
                    logger.exception("node %s: moving agent %s away failed", activations.name, owned.agent)
                    row = self._rows.setdefault(owned.agent, Row(agent=owned.agent))
                    row.state, row.blocker = "blocked", f"its move raised {described(error)}"

        await together(worker() for _ in range(MOVES))
        self._rows = {agent: row for agent, row in self._rows.items() if activations.owns(agent)}
        if not self._is_patient and not self._spread:
            return False
        return self._copies.is_deciding or any(owned.agent not in self._kept for owned in activations.owned())

    async def _move(self, owned: Owned) -> None:
        """Offers the agent to one node after the other; its row then says why it stays."""
        activations, agent = self._activations, owned.agent
        row, refused = self._rows[agent], {activations.name, *self._migrations.unfit()}
        need, places = await self._spread.look(need_of(owned))
        if need.policy.immovable:
            row.state, row.blocker = "blocked", IMMOVABLE
            self._kept.add(agent)
            return
        if not need.is_known:
            row.state, row.blocker = "blocked", UNREAD
            return
        row.blocker = ""
        while not self._ending.is_set() and activations.owns(agent):
            target = self._spread.choose(refused, need, places)
            if target is None:
                row.blocker = row.blocker or self._nowhere(refused, need, places)
                break
            row.state, row.target = "moving", target
            if await self._has_gone(owned, row, target):
                self.moved += 1
                del self._rows[agent]
                return
            self._spread.gives_back(target, need)
            if row.state != "refused":
                break
            refused.add(target)
        row.state = "blocked" if row.blocker else "waiting"

    def _nowhere(self, refused: set[str], need: Need, places: Places) -> str:
        if not need.policy.decides or not self._spread:
            return NOWHERE
        return nowhere(self._spread.explain(refused, need, places))

    async def _has_gone(self, owned: Owned, row: Row, target: str) -> bool:
        activations, agent = self._activations, owned.agent
        request = requests.Migrate(
            agent, f"m-{activations.home.rng.randbytes(8).hex()}", owned.epoch, target, 0.0, self._recovery()
        )
        try:
            report = await self._migrations.to_its_end(request, heeds_pause=self._is_patient)
        except MigrationInProgress:
            move = self._migrations.open.get(agent)
            if move is not None:
                row.blocker = f"{move.migration} moves it"
                await asyncio.wait((move.done,))
            return not activations.owns(agent)
        except (NoSuchAgent, Fenced):
            return not activations.owns(agent)
        except CellError as error:
            row.blocker = error.message
            return False
        if report is None:
            return not activations.owns(agent)
        if report.code == "Cancelled":
            if self.state == OVER:
                row.blocker = f"the deadline came while it was moved to {target}"
            else:
                self._kept.add(agent)
                row.blocker = ABORTED
        elif not report.ok:
            row.blocker = "; ".join(report.reasons) or report.reason
            row.state = "refused" if report.code == "MigrationRefused" else "blocked"
        return report.ok

    def _recovery(self) -> dict[str, float]:
        """Quick retries within the remaining time, and a rollback rather than giving up, so that the agent keeps running."""
        seconds_left = max(1.0, self._until - self._activations.clock())
        return {
            "max_retries": 2.0, "initial_retry_delay_secs": min(0.25, seconds_left), "max_retry_delay_secs": min(2.0, seconds_left),
            "recovery_timeout_secs": seconds_left, "auto_rollback": 1.0,
        }  # fmt: skip

    # ---- showing ---------------------------------------------------------------------------------------------

    def progress(self) -> DrainProgress:
        activations, now = self._activations, self._ended_at or self._activations.clock()
        seconds, agents_left = now - self._begun, activations.count + len(activations.unloadable)
        eta_s = seconds / self.moved * activations.count if self.moved and self.state == RUNNING else 0.0
        here = [row for row in self._rows.values() if activations.owns(row.agent)]
        rows = sorted(here, key=lambda row: ("moving", "blocked", "waiting").index(_shown(row)))
        shown = [self._row(row) for row in rows[:ROWS_MAX]]
        shown += [_unloadable(agent, info.error) for agent, info in sorted(activations.unloadable.items())[:ROWS_MAX]]
        return DrainProgress(
            node=activations.name, state=self.state if self._ended_at else RUNNING, agents=self.moved + agents_left, moved=self.moved,
            left=agents_left, rows=shown, seconds=seconds, left_s=max(0.0, self._until - now), eta_s=eta_s,
        )  # fmt: skip

    def _row(self, row: Row) -> Row:
        activation, recovery = self._activations.live.get(row.agent), self._migrations.open.get(row.agent)
        sleeper = self._activations.asleep.get(row.agent)
        phase = recovery.progress().phase if recovery is not None else ""
        waits = self._migrations.attempts.places.why if phase == "PLANNED" else ""
        return Row(
            agent=row.agent, state=_shown(row), target=row.target, phase=phase, blocker=row.blocker or waits,
            messages=activation.inbox.waiting_in_all if activation is not None else 0,
            bytes=activation.fold.size_bytes if activation is not None else sleeper.size_bytes if sleeper is not None else 0,
        )  # fmt: skip


async def _abort(move: Recovery) -> None:
    with contextlib.suppress(CellError):  # too late: it is handed over, and goes forward
        await move.abort()


def _shown(row: Row) -> str:
    return "blocked" if row.state == "refused" else row.state


def _unloadable(agent: str, error: str) -> Row:
    return Row(agent=agent, state="blocked", blocker=f"it cannot be loaded: {error}")


async def _planned(activations: Activations, spread: Placer, owned: Owned) -> Row:
    refused, blocker = {activations.name}, ""
    row = Row(agent=owned.agent, messages=owned.waiting, bytes=owned.size_bytes)
    need, places = await spread.look(need_of(owned))
    if need.policy.immovable or not need.is_known:
        row.state, row.blocker = "blocked", IMMOVABLE if need.policy.immovable else UNREAD
        return row
    while (target := spread.choose(refused, need, places)) is not None:
        try:
            reasons = await ask_offer(activations, target, owned, activations.settings.prepare_s)
        except CellError as error:
            reasons = [error.message]
        if not reasons:
            row.state, row.target = "fits", target
            return row
        blocker = "; ".join(reasons)
        spread.gives_back(target, need)
        refused.add(target)
    if not blocker:
        blocker = nowhere(spread.explain(refused, need, places)) if need.policy.decides and spread else NOWHERE
    row.state, row.blocker = "blocked", blocker
    return row


# ---- requests ------------------------------------------------------------------------------------------------


class Drains:
    """A node's drains: one at a time, each known by the names under which it was asked for."""

    def __init__(self, activations: Activations, migrations: Migrations, copies: Copies) -> None:
        self._activations = activations
        self._migrations = migrations
        self._copies = copies
        self._named: dict[str, Drain] = {}

    def new(self, deadline_s: float, *, is_patient: bool) -> Drain:
        """A drain without a name, to be run by the caller."""
        return Drain(self._activations, self._migrations, self._copies, deadline_s, is_patient=is_patient)

    @property
    def running(self) -> Drain | None:
        return next((drain for drain in self._named.values() if drain.state == RUNNING), None)

    def begin(self, name: str, deadline_s: float) -> DrainProgress:
        """Begins a drain, or gives the running one another deadline; under a name that is known it only shows the progress."""
        drain = self._named.get(name)
        if drain is None:
            drain = self.running
            if drain is None:
                drain = self.new(deadline_s, is_patient=True)
                self._activations.home.begin(drain.run())
            else:
                drain.extend(deadline_s)
            self._named[name] = drain
            while len(self._named) > NAMES_MAX:
                del self._named[next(iter(self._named))]
        return drain.progress()

    def progress(self, name: str) -> DrainProgress:
        drain = self._named.get(name)
        return drain.progress() if drain is not None else DrainProgress(node=self._activations.name)

    def stop(self) -> None:
        if (running := self.running) is not None:
            running.stop()

    async def planned(self) -> DrainProgress:
        """Where each agent would go, or what would keep it here; nothing is changed."""
        activations = self._activations
        spread = Placer(activations.home.log)
        spread.follow(activations.members.table, activations.home.rng, activations.name)
        limit = asyncio.Semaphore(PROBES)

        async def one(owned: Owned) -> Row:
            async with limit:
                return await _planned(activations, spread, owned)

        rows = await together(one(owned) for owned in activations.owned())
        rows += [_unloadable(agent, info.error) for agent, info in activations.unloadable.items()]
        rows.sort(key=lambda row: (row.state != "blocked", row.messages, row.bytes, row.agent))
        left = sum(row.state == "blocked" for row in rows)
        return DrainProgress(node=activations.name, state="dry run", agents=len(rows), left=left, rows=rows[:ROWS_MAX])
