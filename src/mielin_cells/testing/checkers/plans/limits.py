"""The checker of how many moves go on at a time (I45)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mielin_cells.log.records import Accepted, Claimed, HandedOff, Returned, Terminated
from mielin_cells.membership.members import PlanEnded, Planned
from mielin_cells.policy.planning.plan import PlannedMove
from mielin_cells.testing.checkers.checker import Checker, MemberStep, Step
from mielin_cells.testing.checkers.scene import Scene


class LimitsHold(Checker):
    """I45: the open plans have no more moves than the limits allow, and a process no more handovers at a time.

    No process is the source of more handovers in doubt than `moves_out`, or has reserved room for more agents than `moves_in`.  The
    processes that live have not been lent more places together than `moves_all`.
    """

    invariant = "I45"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._open: dict[int, tuple[PlannedMove, ...]] = {}
        self._out: dict[str, tuple[str, int]] = {}
        """By agent that is handed over, the process that it leaves."""

    def member(self, step: MemberStep) -> None:
        match step.record:
            case Planned(moves=moves):
                self._open[step.seq] = moves
                self._check_plans(f"the plan of {step.author.label} at {step.seq}", self._open.values())
            case PlanEnded(plan=plan):
                self._open.pop(plan, None)
            case _:
                pass

    def _check_plans(self, what: str, plans: Iterable[tuple[PlannedMove, ...]]) -> None:
        settings = next((node.settings for node in self.scene.nodes.values()), None)
        if settings is None:
            return
        moves = [move for some in plans for move in some]
        for critical in (False, True):
            some = [move for move in moves if (move.priority >= 100) == critical]
            out, into = Counter(move.source for move in some), Counter(move.target for move in some)
            most = max((*out.values(), *into.values(), 0))
            if len(some) > settings.plan_moves or most > settings.plan_moves_node:
                self.fails(
                    f"{what}: {len(some)} moves are open, {most} of one node; limits are {settings.plan_moves} "
                    f"and {settings.plan_moves_node}"
                )
            if len(some) == settings.plan_moves:
                self.scene.counts["plans as full as they may be"] += 1

    def record(self, step: Step) -> None:
        agent = step.agent
        self._check_reserved()
        self._check_lent()
        match step.record:
            case HandedOff(node=node, incarnation=incarnation):
                self._out[agent] = node, incarnation
                self._check_handovers(step, node)
            case Accepted() | Returned() | Claimed() | Terminated():
                self._out.pop(agent, None)
            case _:
                pass

    def _check_handovers(self, step: Step, name: str) -> None:
        node = self.scene.nodes.get(name)
        if node is None:
            return
        count, limit = sum(one == self._out[step.agent] for one in self._out.values()), node.settings.moves_out
        if count > limit:
            self.fails(f"{step.what} is open handover number {count} of {name}, and moves_out is {limit}")
        self.scene.counts["as many moves from a node as may be"] += count == limit

    def _check_reserved(self) -> None:
        """What is reserved is not in any log: a process has it in memory, and it is a limit of what that may hold."""
        for name, node in self.scene.nodes.items():
            limit, copies = node.settings.moves_in, node.copies.by_agent
            if len(copies) < limit:
                continue
            count = sum(copy.epoch > 0 for copy in copies.values())  # others came without a reservation
            if count > limit:
                self.fails(f"{name} has reserved room for {count} agents, and moves_in is {limit}")
            self.scene.counts["as many moves to a node as may be"] += count == limit

    def _check_lent(self) -> None:
        """Loans are in no log either."""
        lent = {name: node.migrations.attempts.places.loan for name, node in self.scene.nodes.items()}
        total = sum(lent.values())
        if not total:
            return
        limit = max(node.settings.moves_all for node in self.scene.nodes.values())
        if total > limit:
            self.fails(f"{lent} places for moves are lent, and moves_all is {limit}")
        self.scene.counts["as many places lent as there are"] += total == limit
