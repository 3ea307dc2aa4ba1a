"""The checker of what becomes of plans (I47)."""

from __future__ import annotations

from mielin_cells.log.records import Accepted
from mielin_cells.membership.members import PlanEnded, Planned, PlansStopped
from mielin_cells.migration import journal
from mielin_cells.policy.planning.plan import PlannedMove
from mielin_cells.testing.checkers.checker import Checker, Line, MemberStep, Step, migration_name
from mielin_cells.testing.checkers.scene import STORE_WALL_S, Scene

PLAN_S = 120.0
"""The longest time of a plan."""


class PlansAreFollowed(Checker):
    """I47: a plan is in the log before its moves begin, and ends when they have ended, or when its time is over.

    An agent is in one open plan at most.  Whoever leads goes on with the open plans: at rest there is none.
    """

    invariant = "I47"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._open: dict[int, Planned] = {}
        self._stopped: set[int] = set()
        self._begun: set[str] = set()
        """Migrations that have a journal."""
        self._ended: set[str] = set()
        self._arrived: set[str] = set()
        """Migrations that the agent's log says are completed."""

    def journal(self, line: Line) -> None:
        fold = self.scene.folds.get(line.agent)
        is_lost = line.migration not in self._begun and fold is not None and fold.owner != line.author.name
        self._begun.add(line.migration)
        if is_lost or isinstance(
            line.record, journal.Ended
        ):  # begun by a node that was paused, and has lost the agent: it moves nothing
            self._ended.add(line.migration)

    def record(self, step: Step) -> None:
        if isinstance(step.record, Accepted):
            self._arrived.add(migration_name(step.before.migration))

    def member(self, step: MemberStep) -> None:
        what = f"of {step.author.label} at {step.seq}"
        match step.record:
            case Planned():
                self._begin(f"the plan {what}", step.seq, step.record)
            case PlanEnded():
                self._end(f"the end {what} of the plan at {step.record.plan}", step.record)
            case PlansStopped(run=run):
                self._stopped |= {seq for seq, plan in self._open.items() if run in ("", plan.run)}
            case _:
                pass

    def behind(self) -> object:
        return [*self._open]

    def at_rest(self) -> None:
        for seq in self._open:
            self.fails(f"the plan at {seq} has no end")

    def _begin(self, what: str, seq: int, plan: Planned) -> None:
        moving = {move.agent for one in self._open.values() for move in one.moves}
        if plan.until > plan.at + PLAN_S + 1e-6:
            self.fails(f"{what} lasts {plan.until - plan.at:g} s")
        for move in plan.moves:
            if move.migration in self._begun:
                self.fails(f"{what}: {move.migration} of {move.agent} had begun before")
            if move.agent in moving:
                self.fails(f"{what}: {move.agent} is in an open plan, or twice in this one")
            moving.add(move.agent)
        self._open[seq] = plan
        self.scene.counts["plans made"] += 1

    def _end(self, what: str, record: PlanEnded) -> None:
        plan = self._open.pop(record.plan, None)
        if plan is None:
            self.fails(f"{what}, which is not open")
        open_ = [move for move in plan.moves if self._goes_on(move)]
        now = STORE_WALL_S + self.scene.history.now()
        if (record.dropped or open_) and record.plan not in self._stopped and now < plan.until:
            self.fails(
                f"{what} comes {plan.until - now:g} s before its time is over, and these moves have not ended: "
                f"{[move.migration for move in open_]}; the record says that {record.dropped} have not"
            )
        arrived = sum(move.migration in self._arrived for move in plan.moves)
        if record.moved > arrived:
            self.fails(f"{what} says that {record.moved} agents have moved; by their logs it is {arrived}")
        self.scene.counts["plans ended"] += 1
        self.scene.counts["planned moves completed"] += record.moved
        self.scene.counts["planned moves not completed"] += len(plan.moves) - record.moved

    def _goes_on(self, move: PlannedMove) -> bool:
        return move.migration in self._begun - self._ended and move.migration not in self._arrived
