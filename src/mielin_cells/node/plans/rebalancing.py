"""Rebalancing on the leader: it measures all nodes, proposes moves (`policy.rebalance`), and has plans made of them.

A rebalancing is not recorded itself; its plans are.  A leader that is lost takes its intention with it: what is planned goes on, and
whoever has asked for it asks the next leader, which measures anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING

from mielin_cells.errors import CellError, Fenced
from mielin_cells.node.plans.leading import Leading, nodes_of
from mielin_cells.policy.evaluation.wishes import Wish
from mielin_cells.policy.planning.plan import PlannedMove
from mielin_cells.policy.planning.planner import Wished
from mielin_cells.policy.rebalance.proposal import AGAIN, HOLD, WITHIN, once, proposing, seems_uneven, unevenness
from mielin_cells.policy.rebalance.values import AgentLoad, Proposal, Suggested
from mielin_cells.rpc import plans
from mielin_cells.rpc.call import call
from mielin_cells.rpc.plans import Rebalanced
from mielin_cells.tasks.together import together

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations

logger = logging.getLogger("mielin_cells.plans")

WINDOW_S = 2.0
"""For how long messages are counted."""

MESSAGES, LONGER = 3000, 3
"""What tells whether it is even now is counted for longer, up to so many times, until so many messages should have come."""

ANSWER_S = 8.0
"""More than that for a node to answer."""

ROUNDS = 6
"""Measurements of one rebalancing: loads change while agents move."""

REST_S = 300.0
"""An agent that a plan has moved is not moved by a rebalancing for so long."""

PER_HOUR = 4

QUIET_S = 15.0
"""A round in which nothing was planned and nothing ended for so long is over."""

STUCK_S = 1.0
"""If none of the moves that are wished can be planned for so long, others of the round are wished instead, until it is over."""

PRIORITY = 30
"""Of a wish.  Wishes of policies that are more urgent are planned first."""

AHEAD = 4
"""Moves that are wished of each node at a time, as a multiple of those that may be planned: the planner looks at all of them often."""

KEPT = 16
"""Rebalancings that are remembered."""

NOTHING = Proposal([], {}, {})


class Run:
    """One rebalancing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = plans.RUNNING
        self.proposal = NOTHING
        self.now: dict[str, float] = {}
        self.why = ""
        self.moved = 0
        self.failed: dict[str, str] = {}
        self.left: dict[str, Wish] = {}
        """By agent, what this round still wishes."""
        self.source: dict[str, str] = {}

    def ended(self, move: PlannedMove, outcome: str, why: str) -> None:
        self.left.pop(move.agent, None)
        if outcome == "completed":
            self.moved += 1
            self.failed.pop(move.agent, None)
        else:
            self.failed[move.agent] = why or outcome

    def first(self, node: str, most: int) -> tuple[Wish, ...]:
        """What is wished of a node now, of all that this round still wishes of it."""
        return tuple(islice((wish for agent, wish in self.left.items() if self.source[agent] == node), most))

    def turn(self, most: int) -> None:
        """What is wished of each node now cannot be placed; others may be, so they come first."""
        for node in self.sources:
            for wish in self.first(node, most):
                self.left[wish.agent] = self.left.pop(wish.agent)

    @property
    def sources(self) -> list[str]:
        return sorted(set(self.source.values()))

    def progress(self) -> Rebalanced:
        failed = [f"{agent}: {why}" for agent, why in sorted(self.failed.items())[:32]]
        return Rebalanced(self.name, self.state, self.proposal, self.moved, failed, self.now, self.why)


class Rebalancing:
    """Of one node."""

    def __init__(self, activations: Activations, leading: Leading) -> None:
        self._activations = activations
        self._home = activations.home
        self._leading = leading
        self._runs: dict[str, Run] = {}
        leading.ended = self._ended

    # ---- requests --------------------------------------------------------------------------------------------

    async def begin(self, request: plans.Rebalance) -> Rebalanced:
        self._check_leads()
        run = self._runs.get(request.name)
        if request.is_dry:
            proposal, _ = await self._propose(WINDOW_S, is_first=True)
            state = plans.DONE if proposal.moves else plans.EVEN if proposal.is_best else plans.STALLED
            return Rebalanced(request.name, state, proposal, now=proposal.before)
        if run is None:
            run = self._runs[request.name] = Run(request.name)
            while len(self._runs) > KEPT:
                del self._runs[next(iter(self._runs))]
            self._home.begin(self._run(run))
        return run.progress()

    def read(self, request: plans.ReadRebalance) -> Rebalanced:
        self._check_leads()
        run = self._runs.get(request.name)
        return run.progress() if run is not None else Rebalanced(request.name, plans.UNKNOWN, NOTHING)

    def _check_leads(self) -> None:
        if not self._leading.is_leader:
            self._runs.clear()
            leader = self._activations.members.table.leader[0] or "nobody"
            raise Fenced(f"Node {self._home.name} does not lead; {leader} does. Ask it.", node=self._home.name)

    def _ended(self, run: str, move: PlannedMove, outcome: str, why: str) -> None:
        if run in self._runs:
            self._runs[run].ended(move, outcome, why)

    # ---- the work --------------------------------------------------------------------------------------------

    async def _run(self, run: Run) -> None:
        try:
            await self._rounds(run)
        except CellError as error:
            run.state, run.why = plans.STALLED, error.message
        finally:
            if run.state == plans.RUNNING:
                run.state = plans.STOPPED
        logger.info(
            "rebalancing %s: %s; %d agents were moved, %d were not%s", run.name, run.state, run.moved, len(run.failed),
            f" ({run.why})" if run.why else "",
        )  # fmt: skip

    async def _rounds(self, run: Run) -> None:
        window_s = WINDOW_S
        for number in range(ROUNDS):
            proposal, loads = await self._propose(window_s, is_first=number == 0)
            if number == 0 and (rate := sum(proposal.rates.values())):
                window_s = min(max(WINDOW_S, MESSAGES / rate), LONGER * WINDOW_S)
            run.now = proposal.before
            logger.info(
                "rebalancing %s: round %d: %s of the work; %d moves", run.name, number + 1,
                ", ".join(f"{node} {part:.1%}" for node, part in proposal.before.items()), len(proposal.moves),
            )  # fmt: skip
            if number == 0:
                run.proposal = proposal
            if self._is_over(run):
                return
            if not proposal.moves or number == ROUNDS - 1:
                is_even = proposal.is_best if not proposal.moves else unevenness(proposal.before) <= WITHIN
                run.state = (plans.DONE if number else plans.EVEN) if is_even else plans.STALLED
                run.why = "" if is_even else "no move that is possible now would make it more even"
                return
            await self._move_all(run, proposal.moves, loads)
            if self._is_over(run):
                return

    def _is_over(self, run: Run) -> bool:
        return not self._leading.is_leader or run.name in self._activations.members.table.plans.stopped

    async def _move_all(self, run: Run, moves: list[Suggested], loads: Mapping[str, AgentLoad]) -> None:
        """Wishes the moves until each is decided, or nothing happens any more."""
        run.left = {move.agent: _wish(move, loads[move.agent]) for move in moves}
        run.source = {move.agent: move.source for move in moves}
        clock, most = self._activations.clock, AHEAD * self._leading.limits.moves_out
        seen, since = len(run.left), clock()
        turned = since
        while run.left and not self._is_over(run):
            open_ = any(plan.run == run.name for plan in self._activations.members.table.plans.open.values())
            if len(run.left) != seen or open_:
                seen, since = len(run.left), clock()
            if clock() - since > QUIET_S:
                break
            if clock() - max(since, turned) > STUCK_S:
                turned = clock()
                run.turn(most)
            for node in run.sources:
                self._leading.take(Wished(self._home.clock.now(), node, run.first(node, most), run.name))
            await asyncio.sleep(0.2)
        for node in run.sources:
            self._leading.take(Wished(self._home.clock.now(), node, (), run.name))

    async def _propose(self, window_s: float, *, is_first: bool) -> tuple[Proposal, dict[str, AgentLoad]]:
        """With what was measured, by agent."""
        table, told = self._activations.members.table, dict[str, list[AgentLoad]]()

        async def measure(node: str) -> None:
            try:
                told[node] = await call(self._home.wire, node, plans.ListLoads(window_s), window_s + ANSWER_S)
            except CellError as error:  # it keeps its agents, and gets none
                logger.info("rebalancing: node %s does not say what its agents do: %s", node, error)

        await self._home.clock.refresh()
        await together(measure(name) for name in nodes_of(table))
        loads = once(told)  # what a wish says of an agent must come from the node that the proposal takes it from
        await asyncio.sleep(0)
        unknown = await self._leading.apply_entries(loads)
        now = self._home.clock.now()
        nodes = {name: node for name, node in nodes_of(table).items() if name in loads}
        resting = {one.agent for one in table.plans.recent if now - one.at < REST_S}
        within, hold = (WITHIN, HOLD) if is_first else (AGAIN, 0.0)
        proposal: Proposal | None = None
        for proposal in proposing(nodes, loads, fixed=resting | unknown, window_s=window_s, within=within, hold=hold):
            if proposal is None:
                await asyncio.sleep(0)
        return proposal or NOTHING, {one.agent: one for some in loads.values() for one in some}

    # ---- automatic -------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Every `rebalance_s` the leader looks at the table, and measures only if that says that the spread is uneven."""
        while not self._activations.is_stopping:
            await asyncio.sleep(self._activations.settings.rebalance_s)
            table = self._activations.members.table
            is_busy = any(run.state == plans.RUNNING for run in self._runs.values())
            if self._leading.is_leader and not is_busy and seems_uneven(nodes_of(table).values()):
                await self.begin(plans.Rebalance(f"auto-{table.term}-{table.seq}"))


def _wish(move: Suggested, load: AgentLoad) -> Wish:
    return Wish(
        move.agent, "rebalance", PRIORITY, move.why, cooldown_s=REST_S, per_hour=PER_HOUR, cls=load.cls, version=load.version,
        epoch=load.epoch, size_bytes=load.size_bytes, policy=load.policy, to=move.target,
    )  # fmt: skip
