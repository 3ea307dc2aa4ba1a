"""The fault matrix of a run: which faults met a migration in which of its phases, on which side.

A cell is a phase and what went wrong; it is counted at the instant of the fault, for each migration that is open by then and has to do
with whom the fault befell.
"""

from __future__ import annotations

from mielin_cells.node.moves.recovery import Recovery
from mielin_cells.node.node import Node
from mielin_cells.testing.checkers.checkers import Scene
from mielin_cells.testing.simulator.swarm import ASKER
from mielin_cells.testing.simulator.view import View

PHASES = ("PLANNED", "PREPARING", "COPYING", "PAUSED", "HANDING_OVER", "IN_DOUBT", "VERIFYING", "BETWEEN", "ENDING")
"""As users see them; BETWEEN: after a failed attempt, before the next; ENDING: decided, and not yet in the journal."""

DIES, PAUSED = "dies", "paused"
BY_ROLE = {"crash": DIES, "pause": PAUSED}
BY_KIND = {
    "cut": "link cut", "cut out": "link cut one way", "cut in": "link cut one way", "partition": "link cut",
    "partition one way": "link cut one way", "store cut": "store away", "store cut in": "store away",
    "store cut out": "store away", "read_torn": "bad data", "wire_late": "late or repeated",
    "wire_repeat": "late or repeated", "append_late": "late or repeated", "trim_late": "late or repeated",
    "append_lost": "outcome unknown", "append_never": "outcome unknown", "slow node": "slow", "clock step": "clock step",
}  # fmt: skip

FAULTS = (
    "source dies", "target dies", "asker dies", "source paused", "target paused", *dict.fromkeys(BY_KIND.values()),
)  # fmt: skip

CELLS = tuple(f"{phase}: {fault}" for phase in PHASES for fault in FAULTS)


def phase_of(recovery: Recovery) -> str:
    """Where an open migration is, as its coordinator sees it."""
    move = recovery.move
    if move is not None and not move.done.done():
        phase = move.machine.phase
        return "ENDING" if phase.is_end else phase.value
    if recovery._last.attempts and recovery._last.ok:
        return "ENDING"
    return "BETWEEN" if recovery._failures else "PLANNED"


class Matrix:
    """Counts cells of a scene, as `World.on_harm` tells of faults."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def harmed(self, kind: str, view: View | None) -> None:
        if view is None or (kind not in BY_ROLE and kind not in BY_KIND):
            return
        for name, node in self._scene.nodes.items():
            if node.migrations.open:
                self._on(name, node, kind, view)

    def _on(self, source: str, node: Node, kind: str, view: View) -> None:
        for recovery in node.migrations.open.values():
            target = recovery.move.target if recovery.move is not None else recovery._target
            if kind in BY_ROLE:
                role = {source: "source", target: "target", ASKER: "asker"}.get(view.name)
                fault = f"{role} {BY_ROLE[kind]}" if role else ""
            else:
                fault = BY_KIND[kind] if view.name in (source, target) else ""
            if fault in FAULTS:
                self._scene.counts[f"cell {phase_of(recovery)}: {fault}"] += 1
