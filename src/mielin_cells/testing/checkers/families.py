"""Checkers of supervision: a child is made once, a notice is taken once, and there are no more restarts than allowed."""

from __future__ import annotations

from collections import Counter

from mielin_cells.errors import PASSING
from mielin_cells.log.commit import StepCall
from mielin_cells.log.family.made import MEANT, learn
from mielin_cells.log.family.tree import Decided, Family, Parent
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import Asked, Created, Failed, Resumed, Stepped
from mielin_cells.testing.checkers.checker import Checker, Step
from mielin_cells.testing.checkers.messages import commit_of
from mielin_cells.testing.checkers.scene import STORE_WALL_S, Scene

OF_STORE = frozenset(error.__name__ for error in PASSING)
"""Codes of errors that say nothing about a child."""

MOST, WITHIN_S = 2, 5.0
"""What supervisors of the simulated world allow."""

LATE_S = 60.0
"""How long a decision may be on its way to the log, and how wrong a node may be about the store's time."""


class MadeOnce(Checker):
    """I33: a child is made after its parent's log has said so, by one call, and both know each other."""

    invariant = "I33"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._meant: dict[bytes, tuple[str, str]] = {}
        self._made: dict[str, Parent] = {}

    def record(self, step: Step) -> None:
        record = step.record
        if isinstance(record, (Asked, Stepped)):
            calls = [call for call in record.calls if isinstance(call, StepCall) and call.name.startswith(MEANT)]
            family = learn(Family(), calls)
            for child in family.children.values() if family is not None else ():
                self._meant[child.key] = step.agent, child.agent
        elif isinstance(record, Created) and record.parent is not None:
            parent = record.parent
            if self._meant.get(parent.key) != (parent.agent, step.agent):
                self.fails(f"{step.what} makes a child of {parent.agent}, whose log does not say that it is to be made")
            self._made[step.agent] = parent

    def at_rest(self) -> None:
        for agent, parent in self._made.items():
            fold = self.scene.folds[parent.agent]
            family = fold.ledger.family
            is_known = family is not None and (agent in family.children or parent.key in family.gone)
            if fold.phase is Phase.RUN and not is_known:
                self.fails(f"{agent} is a child of {parent.agent}, which does not know it")
        for agent, fold in self.scene.folds.items():
            family = fold.ledger.family
            for child in family.children.values() if family is not None else ():
                made = self._made.get(child.agent)
                if fold.phase is Phase.RUN and (made is None or made.key != child.key):
                    self.fails(f"{agent} has a child {child.agent} that it has not made")
        for hire in self.scene.hires:
            made = self._made.get(hire.kid)
            if hire.is_made and (made is None or made.agent != hire.boss):
                self.fails(f"{hire.boss} said that it had made {hire.kid}, and {made} did")
            if hire.is_made is False and hire.kid not in self.scene.folds:
                self.fails(f"{hire.boss} said that the name {hire.kid} is taken, and nobody has it")
            if hire.cause.partition(":")[0] in OF_STORE:
                self.fails(f"{hire.boss} was told that it could not make {hire.kid}: {hire.cause}; the store said that")


class ToldOnce(Checker):
    """I34: each failure of an agent is told once to its parent, and to those that watch it in order."""

    invariant = "I34"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._failed = Counter[str]()
        self._family: set[str] = set()

    def record(self, step: Step) -> None:
        if isinstance(step.record, Created) and step.record.parent is not None:
            self._family.add(step.agent)
        elif isinstance(step.record, Failed):
            self._failed[step.agent] += 1

    def at_rest(self) -> None:
        for agent in sorted(self._family):
            fold = self.scene.folds[agent]
            family = fold.ledger.family
            if family is None or family.parent is None or fold.phase is not Phase.RUN:
                continue
            if family.told_failed != self._failed[agent]:
                self.fails(f"{agent} failed {self._failed[agent]} times, and has told of {family.told_failed}")
            known = self.scene.folds[family.parent.agent].ledger.family
            child = known.children.get(agent) if known is not None else None
            if child is not None and child.seen != family.told:
                self.fails(f"{agent} has sent {family.told} notices, and {family.parent.agent} took {child.seen}")
        for boss, downs in self.scene.downs.items():
            for agent in {agent for agent, _ in downs}:
                numbers = [n for other, n in downs if other == agent]
                if numbers != sorted(set(numbers)):
                    self.fails(f"{boss} watches {agent} and was told {numbers}")


class WithinIntensity(Checker):
    """I35: there are never more restarts within the window than the class allows, and each failure is restarted at most once."""

    invariant = "I35"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._times: dict[str, list[float]] = {}
        """By parent, when it decided to restart children, by the store's time."""
        self._gave_up: set[str] = set()
        self._ordered: set[tuple[str, int]] = set()
        self._restarted: set[tuple[str, int]] = set()
        self._failed = Counter[str]()

    def record(self, step: Step) -> None:
        record = step.record
        self._failed[step.agent] += isinstance(record, Failed)
        if isinstance(record, Resumed):
            self._resumed(step, record)
        commit = commit_of(step)
        for change in commit.changes if commit is not None else ():
            if isinstance(change, Decided):
                self._decided(step, change)

    def _resumed(self, step: Step, record: Resumed) -> None:
        if step.agent in self._gave_up:  # children that it gave up on are restarted with it
            self._gave_up.discard(step.agent)
            self._times[step.agent] = []
            family = self.scene.folds[step.agent].ledger.family
            self._ordered |= {
                (child.agent, child.failure) for child in (family.children.values() if family is not None else ())
            }
        if not record.failure:
            return
        what = step.agent, record.failure
        if what not in self._ordered:
            self.fails(f"{step.what} restarts it for failure {record.failure}, which its parent did not order")
        if record.failure != self._failed[step.agent]:
            self.fails(
                f"{step.what} restarts it for failure {record.failure}, and it has failed {self._failed[step.agent]} times"
            )
        if what in self._restarted:
            self.fails(f"{step.what} restarts it for failure {record.failure} a second time")
        self._restarted.add(what)

    def _decided(self, step: Step, change: Decided) -> None:
        if change.status == "escalated":
            self._gave_up.add(step.agent)
        if not any(order in ("restart", "reload") for _, order in change.orders):
            return
        self._ordered |= {(child, change.failure) for child, order in change.orders if order == "restart"}
        now, times = change.restarts[-1], self._times.setdefault(step.agent, [])
        if abs(now - STORE_WALL_S - step.at) > LATE_S:
            self.fails(f"{step.what} counts by the time {now - STORE_WALL_S:.1f}, and it is {step.at:.1f}")
        within = [at for at in times if at > now - WITHIN_S]
        if len(within) >= MOST:
            self.fails(f"{step.what} restarts a child, after {len(within)} restarts within {WITHIN_S:g} s")
        times.append(now)
