"""The fault matrix: quiet worlds in which one thing goes wrong, always at the same moment and to the same side."""

from __future__ import annotations

from random import Random
from typing import Any

from mielin_cells.errors import StoreFull
from mielin_cells.log.ids import JOURNALS, LOGS, agent_of
from mielin_cells.log.records import Accepted, HandedOff, decode_record
from mielin_cells.migration.journal import Attempted, Decided, Ended, Planned, decode
from mielin_cells.node.node import Node
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.checkers.history import Author
from mielin_cells.testing.simulator.engine import AFTERMATH_S
from mielin_cells.testing.simulator.environment import Faults
from mielin_cells.testing.simulator.scenario import Scenario
from mielin_cells.testing.simulator.swarm import Op, drawn
from mielin_cells.testing.simulator.view import View

MOMENTS: dict[str, type[Any]] = {
    "planned": Planned, "attempt begins": Attempted, "handed over": HandedOff, "accepted": Accepted, "decided": Decided,
    "ended": Ended,
}  # fmt: skip
DEEDS = ("crash", "crash and claim", "pause", "cut from the wire", "cut from the store")
DELAYS_S = (0.0, 0.003, 0.02, 0.3)
"""How long after the landing: before the author hears of it, about then, and in the phase behind it."""


STRIKES = 6

MOVES = 12


FULL_SHARE = 0.6
"""Where decisions are to be struck, so many of the targets that are asked have no room: in a quiet world few moves fail."""


class Cell(Scenario):
    """A quiet world in which one thing goes wrong, always at the same moment and to the same side."""

    def __init__(self, seed: int, moment: str, side: str, deed: str, moves: int = MOVES) -> None:
        rng = Random(f"matrix {seed}")
        swarm = drawn(seed)
        swarm.nodes, swarm.faults = ("node-1", "node-2", "node-3"), Faults()
        # Half of them name their target, which is then known when the migration is planned.
        whom = [rng.choice(("", rng.choice(swarm.nodes))) for _ in range(moves)]
        swarm.ops = [Op(round(rng.random() * 6, 3), "move", who, rng.choice(swarm.agents), 0) for who in whom]
        swarm.ops.sort()
        swarm.triggers, swarm.strikes, swarm.dead, swarm.old = {}, 0, {}, ()
        super().__init__(swarm)
        self.world.on_append(self._at_landing)
        self.moment, self.side, self.deed = MOMENTS.get(moment), side, deed
        self.hits = 0
        """Faults that were ordered: their victim may be dead, or the world healed, when they are to be made."""
        self.made = 0
        self._rng = rng
        self._sides: dict[str, dict[str, str]] = {}
        """By agent, the two sides of its last attempt."""
        self._open = set[str]()
        """Agents whose migration has begun an attempt and has no end yet."""

    async def _started(self, node: Node, view: View) -> None:
        rng = Random(f"full {self.swarm.seed} {view.label}")

        async def step(name: str) -> None:
            if name == "prepare" and rng.random() < FULL_SHARE:
                raise StoreFull("it has no room just now")

        if self.moment is Decided:
            node.home.step = step
        await super()._started(node, view)

    def _at_landing(self, subject: str, entry: Entry, author: Author) -> None:
        record: Any
        if subject.startswith(JOURNALS):
            record = decode(entry.data, subject)
            agent = record.agent
        elif subject.startswith(LOGS):
            agent = agent_of(subject)
            record = decode_record(entry.data, subject)
        else:
            return
        sides = self._sides.setdefault(agent, {})
        if isinstance(record, (Planned, Attempted)):
            sides.update(source=record.node, target=record.target)
        if isinstance(record, Attempted):
            self._open.add(agent)
        elif isinstance(record, Ended):
            self._open.discard(agent)
        if type(record) is self.moment:
            self._strike(agent)

    def _strike(self, agent: str) -> None:
        if self.is_healed or self.hits >= STRIKES:
            return
        victim = self._sides.get(agent, {}).get(self.side, "")
        if victim in self.swarm.nodes:
            self.hits += 1
            self.world.later(self._rng.choice(DELAYS_S), self._harm, victim, agent)

    def _harm(self, victim: str, agent: str) -> None:
        world, rng = self.world, self._rng
        if self.is_healed or world.views[victim].process.is_dead:
            return
        self.made += 1
        world.troubled_for(AFTERMATH_S)
        match self.deed:
            case "crash" | "crash and claim":
                world.crash(victim)
                world.later(rng.choice((0.2, 4.0)), self.restart, victim)
                if self.deed == "crash and claim":
                    other = rng.choice([name for name in self.swarm.nodes if name != victim])
                    self.nemesis.act(Op(0.0, "claim", other, agent, 0))
            case "pause":
                world.pause(victim, rng.choice((0.1, 3.0, 12.0)))
            case "cut from the wire":
                world.cut(victim, rng.choice((0.3, 6.0)), store=False)
            case _:
                world.cut(victim, rng.choice((0.3, 6.0)), store=True)
