"""Plans on the leader: what nodes wish becomes a record of the log of the members, and then moves (`policy.planning` decides).

A node that does not lead holds nothing of it.  A plan lies in the log before any of its moves begins, so the next leader goes on
with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from mielin_cells.errors import CellError, RetryError
from mielin_cells.membership.members import PlanEnded, Planned, Status, Table, selectors_of
from mielin_cells.membership.selection import candidate
from mielin_cells.membership.whereabouts import Whereabouts
from mielin_cells.node.plans.performing import UNKNOWN, cancel, perform
from mielin_cells.policy.placement.values import Need, Places, Term
from mielin_cells.policy.planning.choice import Node, need_of
from mielin_cells.policy.planning.plan import Limits, Plan, PlannedMove
from mielin_cells.policy.planning.planner import Begin, Cancel, Close, Effect, Ended, Looked, Planner, Record, Wished
from mielin_cells.policy.rebalance.values import AgentLoad
from mielin_cells.rpc import plans

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations

logger = logging.getLogger("mielin_cells.plans")

LOOK_S = 0.25
"""Between two looks while anything is wished or open; otherwise nothing is looked at."""

TOGETHER_S = 0.02
"""What happens within this time is looked at together."""

SLICE = 500
"""Policies that are read before others run."""

FAILED_MAX = 8
"""Failures that the record of a plan's end names."""


class Leading:
    """Of one node.  `run` as long as it lives; it does nothing while another node leads."""

    def __init__(self, activations: Activations) -> None:
        self._activations = activations
        self._home = activations.home
        self._members = activations.members
        settings = activations.settings
        self.limits = Limits(
            moves=settings.plan_moves, moves_out=settings.plan_moves_node, moves_in=settings.plan_moves_node
        )
        self.planner = Planner(self.limits)
        self._term = 0
        """The term that the planner belongs to; 0: this node does not lead."""
        self._whereabouts = Whereabouts(activations.home.log)
        self._wake = asyncio.Event()
        self.ended: Callable[[str, PlannedMove, str, str], None] = lambda run, move, outcome, why: None
        """Called with the run, the move, its outcome and the reason."""

    @property
    def is_leader(self) -> bool:
        return self._members.table.leader == (self._home.name, self._home.incarnation)

    def changed(self, table: Table) -> None:
        """The log of the members has grown."""
        if (self.is_leader and table.plans.open) or (self._term and not self.is_leader):
            self._wake.set()

    def wish(self, request: plans.Wishes) -> None:
        """A node's wishes.  One that does not lead ignores them: the node asks again, and will know better."""
        self.take(Wished(self._home.clock.now(), request.node, request.wishes))

    def take(self, event: Wished) -> None:
        if self.is_leader:
            self._follow_term()
            self.planner.on(event)
            self._wake.set()

    # ---- the loop --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        while not self._activations.is_stopping:
            await self._rest()
            await asyncio.sleep(TOGETHER_S)
            self._wake.clear()
            try:
                while await self._look():
                    pass
            except RetryError as error:
                logger.info("node %s: plans wait for the store: %s", self._home.name, error)
                await asyncio.sleep(LOOK_S)
                self._wake.set()

    async def _rest(self) -> None:
        """Until something happens; nothing is awaited for a time while nothing is wished and no plan is open."""
        is_busy = self.is_leader and (self._members.table.plans.open or not self.planner.is_idle)
        try:
            async with asyncio.timeout(LOOK_S if is_busy else None):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _follow_term(self) -> None:
        """A new term begins with what the log says."""
        term = self._members.table.term if self.is_leader else 0
        if term != self._term:
            self._term, self.planner = term, Planner(self.limits)

    async def _look(self) -> bool:
        """One look at the log; True if it appended, and another look is due."""
        self._follow_term()
        if not self._term:
            return False
        await self._home.clock.refresh()
        needs, places = await self._describe()
        self._follow_term()
        table = self._members.table
        if not self._term:
            return False
        look = Looked(self._home.clock.now(), table.term, table.seq, nodes_of(table), table.plans, places, needs)
        _, effects = self.planner.on(look)
        appends = [effect for effect in effects if isinstance(effect, (Record, Close))]
        for effect in effects:
            self._begin(effect)
        if not appends or self._members.table is not table or table.seq != look.seq:
            return False
        return await self._append(appends[0], table)

    async def _describe(self) -> tuple[dict[str, Need], Places]:
        """The wished agents with their policies as entries of `mielin.toml` change them, and where the agents are that these look at.

        Nothing is read for agents whose policies say nothing about where they run.  One whose policy is not known now is left out.
        """
        selectors, needs, found = selectors_of(self._members.table), dict[str, Need](), dict[Term, Mapping[str, str]]()
        for wish in self.planner.wished():
            need = need_of(wish)
            if selectors:
                resolved = await self._whereabouts.resolve(need, selectors)
                if not resolved.is_known:
                    continue
                need = need._replace(policy=resolved.policy)
            if need.policy.decides:
                need, places = await self._whereabouts.look(need)
                found |= places
            needs[wish.agent] = need
        return needs, found

    async def apply_entries(self, loads: dict[str, list[AgentLoad]]) -> set[str]:
        """Gives the agents of each node the policies that entries of `mielin.toml` make of theirs.

        Returns those whose policies are not known now: they must stay where they are.
        """
        selectors, count, unknown = selectors_of(self._members.table), 0, set[str]()
        for node, some in loads.items() if selectors else ():
            for place, one in enumerate(some):
                need = Need(one.agent, one.cls, one.version, one.policy, one.size_bytes)
                resolved = await self._whereabouts.resolve(need, selectors)
                loads[node][place] = msgspec.structs.replace(one, policy=resolved.policy)
                if not resolved.is_known:
                    unknown.add(one.agent)
                count += 1
                if count % SLICE == 0:
                    await asyncio.sleep(0)
        return unknown

    def _begin(self, effect: Effect) -> None:
        match effect:
            case Begin(plan=plan, move=move):
                self._home.begin(self._perform(self.planner, plan, move))
            case Cancel(move=move):
                self._home.begin(cancel(self._activations, move))
            case _:
                pass

    async def _perform(self, planner: Planner, plan: Plan, move: PlannedMove) -> None:
        try:
            outcome, why = await perform(self._activations, plan, move)
        except CellError as error:  # of the store, or unreadable: the plan's time ends it
            logger.warning("the end of migration %s of agent %s was not learnt: %s", move.migration, move.agent, error)
            return
        if outcome != UNKNOWN:  # else the move may go on, and the next leader learns its end
            planner.on(Ended(self._home.clock.now(), move, outcome, why))
        self.ended(plan.run, move, outcome, why)
        self._wake.set()

    async def _append(self, effect: Record | Close, table: Table) -> bool:
        """Behind exactly what was looked at: of two leaders that decide at the same time, one is first."""
        name, incarnation = table.leader
        if isinstance(effect, Record):
            moves = effect.moves
            if await self._members.try_append(
                Planned(name, incarnation, table.term, effect.run, effect.at, effect.until, moves)
            ):
                for move in moves:
                    logger.info("agent %s is moved from %s to %s: %s", move.agent, move.source, move.target, move.why)
                return True
            return False
        seq = effect.plan.seq
        ended = PlanEnded(name, incarnation, table.term, seq, effect.moved, effect.failed[:FAILED_MAX], effect.dropped)
        if not await self._members.try_append(ended):
            return False
        for failed in effect.failed:
            logger.info("plan %d: %s", seq, failed)
        if effect.dropped:
            logger.warning("plan %d ended before the end of %d of its moves was known", seq, effect.dropped)
        return True


def nodes_of(table: Table) -> dict[str, Node]:
    """The nodes that serve, as plans see them."""
    return {
        member.name: Node(candidate(member.info()), member.agents)
        for member in table
        if member.status is Status.SERVING
    }
