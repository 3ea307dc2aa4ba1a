"""The checker of what policies demand of nodes (I44)."""

from __future__ import annotations

from mielin_cells.log.records import Accepted, Claimed, Created, HandedOff
from mielin_cells.membership.claims import FAILOVER
from mielin_cells.membership.members import Joined, Member, Planned, Status, Table
from mielin_cells.policy.facts import Facts
from mielin_cells.policy.planning.plan import PlannedMove
from mielin_cells.testing.checkers.checker import Checker, MemberStep, Step
from mielin_cells.testing.checkers.plans.kinds import Kind, kind_of
from mielin_cells.testing.checkers.scene import Scene


class RequirementsHold(Checker):
    """I44: a plan moves no agent to a node that its policy rules out, and none that is immovable.

    Judged by the table as it was right before the plan's record: by that the leader has decided.  What lasts, the label of a node,
    holds for every move and every claim but those that an operator orders by name.
    """

    invariant = "I44"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._table = Table()
        self._labels: dict[str, dict[str, str]] = {}
        """Of each node that has ever joined."""

    def member(self, step: MemberStep) -> None:
        if isinstance(step.record, Joined):
            self._labels[step.record.name] = step.record.about.labels
        if isinstance(step.record, Planned):
            for move in step.record.moves:
                self._check(f"the plan of {step.author.label} at {step.seq}", move)
        self._table.apply(step.seq, step.record)

    def _check(self, what: str, move: PlannedMove) -> None:
        self.scene.counts[f"planned: priority {move.priority}"] += 1
        target, kind = self._table.get(move.target), kind_of(move.agent)
        where = f"{what} moves {move.agent} from {move.source} to {move.target}"
        if target is None or not _is_open(target) or move.target == move.source:
            self.fails(f"{where}, which takes no agents: {target}")
        if why := _unwanted(move.priority, target.facts):
            self.fails(f"{where} with priority {move.priority}: {why}")
        if kind is None:
            return
        if kind.is_fixed:
            self.fails(f"{where}, and it is immovable")
        if why := kind.why_not(target.about.labels, target.facts):
            self.fails(f"{where}, which its policy rules out: {why}")

    def record(self, step: Step) -> None:
        kind = kind_of(step.agent)
        if kind is None:
            return
        match step.record:
            case HandedOff(to=to):
                if kind.is_fixed:
                    self.fails(f"{step.what} moves it to {to}, and it is immovable")
                self._owned(step, kind, to)
            case Created(node=node) | Accepted(node=node):
                self._owned(step, kind, node)
            case Claimed(node=node, cause=cause) if cause.startswith(
                FAILOVER
            ):  # what an operator orders looks at no policy
                self._owned(step, kind, node)
            case _:
                pass

    def _owned(self, step: Step, kind: Kind, node: str) -> None:
        if kind.is_lasting and (why := kind.why_not(self._labels.get(node, {}), Facts())):
            self.fails(f"{step.what} gives it to {node}, which its policy rules out: {why}")


def _is_open(member: Member) -> bool:
    return member.status is Status.SERVING and not member.is_cordoned and not member.is_leaving


def _unwanted(priority: int, facts: Facts) -> str:
    """What a trigger of this priority does not want of a target; "" if nothing, also of what is not known."""
    match priority:
        case 100 if facts.temperature_c is not None and facts.temperature_c > 70:
            return f"its temperature is {facts.temperature_c}"
        case 80 if facts.temperature_c is not None and facts.temperature_c > 60:
            return f"its temperature is {facts.temperature_c}"
        case 90 if facts.battery is not None and facts.battery < 25 and facts.mains is not True:
            return f"its battery has {facts.battery} %"
        case 70 if facts.cpu is not None and facts.cpu > 65:
            return f"its cpu is {facts.cpu}"
        case _:
            return ""
