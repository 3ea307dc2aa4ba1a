"""The checker of how often plans move one agent (I46)."""

from __future__ import annotations

from typing import NamedTuple

from mielin_cells.log.records import Accepted, Claimed, Created, HandedOff, Returned
from mielin_cells.membership.members import Planned
from mielin_cells.policy.planning.plan import PlannedMove
from mielin_cells.testing.checkers.checker import Checker, Line, MemberStep, Step, migration_name
from mielin_cells.testing.checkers.plans.kinds import TRIGGERS, kind_of
from mielin_cells.testing.checkers.scene import Scene

REST_S = 300.0
"""A rebalancing leaves an agent alone for so long that any plan has moved."""

CLOSE_S = 1e-6


class _Moved(NamedTuple):
    at: float
    is_critical: bool


class _Stay(NamedTuple):
    """Of an agent in one process.  One that is handed over and comes back before it ran elsewhere was never away."""

    process: tuple[str, int]
    came: float
    epoch: int
    """The newest of the stay: moves that were planned in an earlier one begin nowhere."""


class NoPingPong(Checker):
    """I46: an agent that has come to a node, or that a plan has moved, rests for as long as its policy says.

    A policy plans it not again within `cooldown_s`, and not more than `per_hour` times; an emergency waits for others alone.
    Who wished or planned may not know yet that the agent has come elsewhere; such a plan names an earlier epoch, and moves nothing.
    """

    invariant = "I46"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._moves: dict[str, list[_Moved]] = {}
        """By agent, by the store's time, when plans moved it."""
        self._stays: dict[str, _Stay] = {}
        self._late: dict[str, str] = {}
        """By migration that was planned too early, but in an epoch that is over: who has begun its journal, if anybody."""

    def record(self, step: Step) -> None:
        agent, record, stay = step.agent, step.record, self._stays.get(step.agent)
        match record:
            case Created() | Accepted() | Claimed():
                process = record.node, record.incarnation
                came = stay.came if stay is not None and stay.process == process else step.at
                self._stays[agent] = _Stay(process, came, record.epoch)
            case Returned() if stay is not None:
                self._stays[agent] = stay._replace(epoch=record.epoch + 1)
            case HandedOff(migration=attempt) if self._late.get(migration_name(attempt)) == step.author.label:
                # an owner that goes on with the journal of another has not begun it
                self.fails(f"{step.what} moves it by a plan of an epoch that was over, and it has just come")
            case _:
                pass

    def journal(self, line: Line) -> None:
        if self._late.get(line.migration) == "":
            self._late[line.migration] = line.author.label

    def member(self, step: MemberStep) -> None:
        if isinstance(step.record, Planned):
            for move in step.record.moves:
                self._check(f"the plan of {step.author.label} at {step.seq}", step.record, move)

    def _check(self, what: str, plan: Planned, move: PlannedMove) -> None:
        critical, before = move.priority >= 100, self._moves.setdefault(move.agent, [])
        rests = REST_S if plan.run != "policy" else TRIGGERS.cooldown_s
        last = max((one.at for one in before if one.is_critical or not critical), default=None)
        if last is not None and plan.at - last < rests - CLOSE_S:
            self.fails(f"{what} moves {move.agent} {plan.at - last:g} s after the last time; it rests for {rests:g} s")
        if plan.run == "policy" and not critical and kind_of(move.agent) is not None:
            count = sum(plan.at - one.at < 3600 for one in before if not one.is_critical)
            if count >= TRIGGERS.per_hour:
                self.fails(f"{what} moves {move.agent} for the {count + 1}th time within an hour")
            self._check_stay(what, move)
        before.append(_Moved(plan.at, critical))

    def _check_stay(self, what: str, move: PlannedMove) -> None:
        stay, cooldown_s = self._stays.get(move.agent), TRIGGERS.cooldown_s
        here_s = self.scene.history.now() - (stay.came if stay is not None else 0.0)
        if here_s >= cooldown_s - CLOSE_S:
            return
        if stay is not None and move.epoch < stay.epoch:
            self._late[move.migration] = ""
        else:
            self.fails(f"{what} moves {move.agent}, which has come {here_s:g} s ago; it stays for {cooldown_s:g} s")
