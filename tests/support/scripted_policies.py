"""A deployment of pure machines: nodes whose facts come from a script, agents with policies, and the leader's planner.

It is the loop of `node.plans` without a store, so that a script of facts gives one transcript.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mielin_cells.log.triggers.values import MigrationPolicy
from mielin_cells.policy.evaluation.evaluation import Came, Evaluation, Gone, Leaving, Measured, Passed, Stays
from mielin_cells.policy.facts import UNKNOWN, Facts
from mielin_cells.policy.placement.values import Candidate
from mielin_cells.policy.planning.choice import Node
from mielin_cells.policy.planning.plan import Limits, Plan, PlannedMove, Plans
from mielin_cells.policy.planning.planner import Begin, Close, Ended, Looked, Planner, Record, Wished
from mielin_cells.policy.triggers.machine import Ceases, Holds


def node(
    name: str, facts: Facts = UNKNOWN, agents: int = 0, *, classes: dict[str, int] | None = None, architecture: str = "",
    is_open: bool = True,
) -> Node:  # fmt: skip
    return Node(
        Candidate(name=name, facts=facts, classes=classes or {}, architecture=architecture, is_cordoned=not is_open),
        agents,
    )


STEP_S = 0.5
MOVE_S = 0.3


@dataclass
class Scripted:
    """`play` it.  `lines` is the transcript."""

    nodes: dict[str, Facts]
    agents: dict[str, tuple[str, MigrationPolicy]]
    """By agent: where it begins, and its policy."""
    limits: Limits = field(default_factory=Limits)
    labels: dict[str, str] = field(default_factory=dict)
    wall: float = 0.0
    now: float = 0.0
    lines: list[str] = field(default_factory=list)
    moves: list[tuple[float, PlannedMove]] = field(default_factory=list)
    most_open: int = 0

    def __post_init__(self) -> None:
        self.evaluations = {name: Evaluation() for name in self.nodes}
        self.where = {agent: node for agent, (node, _) in self.agents.items()}
        self.planner, self.plans, self.seq = Planner(self.limits), Plans(), 0
        self.running: list[tuple[float, PlannedMove]] = []
        self.dead = set[str]()
        for agent, (node, policy) in self.agents.items():
            self.evaluations[node].on(Came(-1e6, agent, policy))
        for node, facts in self.nodes.items():
            self.measure(node, facts)

    def measure(self, node: str, facts: Facts) -> None:
        self.nodes[node] = facts
        self._say(node, self.evaluations[node].on(Measured(self.now, facts))[1])

    def _say(self, node: str, effects: Iterable[Holds | Ceases]) -> None:
        for effect in effects:
            verb = "should be left" if isinstance(effect, Holds) else "is well again"
            self.lines.append(f"{self.now:6.1f}  {node} {verb}: {effect.why}")

    def new_leader(self) -> None:
        """Knows what the log says, and nothing else; what the old one began goes on."""
        self.planner = Planner(self.limits)

    def play(self, until: float, script: Mapping[float, Mapping[str, Any]] | None = None) -> list[str]:
        """`script`: by time, the facts of some nodes that change then."""
        todo = sorted((script or {}).items())
        while self.now < until:
            while todo and todo[0][0] <= self.now:
                for node, changes in todo.pop(0)[1].items():
                    facts = changes if isinstance(changes, Facts) else Facts(**changes)
                    self.measure(node, facts)
            self.step()
        return self.lines

    def step(self) -> None:
        for move in [move for at, move in self.running if at <= self.now]:
            self._arrive(move)
        self.running = [one for one in self.running if one[0] > self.now]
        for node, evaluation in self.evaluations.items():
            if node not in self.dead:
                self._say(node, evaluation.on(Passed(self.now))[1])
                self.planner.on(Wished(self.now, node, tuple(evaluation.wishes(self.wall + self.now))))
        for _ in range(3):
            if not self._look():
                break
        self.now = round(self.now + STEP_S, 3)

    def _arrive(self, move: PlannedMove) -> None:
        _, policy = self.agents[move.agent]
        if move.target in self.dead or self.where[move.agent] != move.source:
            self.planner.on(Ended(self.now, move, "rolled_back", "the target does not answer"))
            self.evaluations[move.source].on(Stays(self.now, move.agent))
            return
        self.where[move.agent] = move.target
        self.evaluations[move.source].on(Gone(self.now, move.agent))
        self._say(move.target, self.evaluations[move.target].on(Came(self.now, move.agent, policy))[1])
        self.planner.on(Ended(self.now, move, "completed"))

    def table(self) -> dict[str, Node]:
        return {
            name: node(name, facts, sum(at == name for at in self.where.values()))
            for name, facts in self.nodes.items() if name not in self.dead
        }  # fmt: skip

    def _look(self) -> bool:
        _, effects = self.planner.on(Looked(self.now, 1, self.seq, self.table(), self.plans))
        for effect in effects:
            match effect:
                case Record():
                    self.seq += 1
                    self.plans.begin(Plan(self.seq, 1, effect.run, effect.at, effect.until, effect.moves))
                    self.most_open = max(self.most_open, len(list(self.plans)))
                    for move in effect.moves:
                        self.lines.append(
                            f"{self.now:6.1f}  {move.agent} {move.source} -> {move.target} [{move.priority}]: {move.why}"
                        )
                        self.moves.append((self.now, move))
                    for name, evaluation in self.evaluations.items():
                        evaluation.on(Leaving(self.now, tuple(m.agent for m in effect.moves if m.source == name)))
                case Begin(move=move):
                    if all(one.migration != move.migration for _, one in self.running):
                        self.running.append((self.now + MOVE_S, move))
                case Close(plan=plan):
                    self.seq += 1
                    self.plans.end(plan.seq)
                case _:
                    pass
        return bool(effects)
