"""What a campaign of seeds has reached: a fault that never happened, or never met a migration in some phase, proves nothing.

A cell of the fault matrix is a phase of a migration and what went wrong in it.  It is counted at the instant of the fault, for each
migration that is open then and involves the process that the fault befell.
"""

from __future__ import annotations

from collections import Counter

from mielin_cells.node.moves.recovery import Recovery
from mielin_cells.node.node import Node
from mielin_cells.testing.checkers.history import Author
from mielin_cells.testing.checkers.scene import Scene
from mielin_cells.testing.simulator.environment import CHANCES
from mielin_cells.testing.simulator.swarm import ASKER, DEATHS, REFUSED

PHASES = ("PLANNED", "PREPARING", "COPYING", "PAUSED", "HANDING_OVER", "IN_DOUBT", "VERIFYING", "BETWEEN", "ENDING")
"""As users see them.  BETWEEN: after a failed attempt, before the next.  ENDING: decided, and not yet in the journal."""

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
    if recovery.is_ending:
        return "ENDING"
    return "BETWEEN" if recovery.case.failures else "PLANNED"


class Matrix:
    """Counts the cells that the faults of a world reach (`World.on_harm`)."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def harmed(self, kind: str, view: Author | None) -> None:
        if view is None or (kind not in BY_ROLE and kind not in BY_KIND):
            return
        for name, node in self._scene.nodes.items():
            if node.migrations.open:
                self._on(name, node, kind, view)

    def _on(self, source: str, node: Node, kind: str, view: Author) -> None:
        for recovery in node.migrations.open.values():
            target = recovery.target
            if kind in BY_ROLE:
                role = {source: "source", target: "target", ASKER: "asker"}.get(view.name)
                fault = f"{role} {BY_ROLE[kind]}" if role else ""
            else:
                fault = BY_KIND[kind] if view.name in (source, target) else ""
            if fault in FAULTS:
                self._scene.counts[f"cell {phase_of(recovery)}: {fault}"] += 1


DEEDS = (
    "crash", "crash before", "crash after", "crash answered", "pause", "cut", "cut in", "cut out", "store cut", "store cut in",
    "store cut out", "partition", "partition one way", "slow node", "clock step", "outage", "power cut", "stop",
    *(f"dead for good: {how}" for how in (*DEATHS, REFUSED)), "store refuses", "store refuses all", "starved",
    "zombie_append_late", "zombie_append_lost",
)  # fmt: skip

WORLD_FAULTS = (*CHANCES, *DEEDS)
"""Kinds of faults, as `World.counts` names them."""

SOMETIMES = (
    "abort", "agents taken from the dead", "call acknowledged", "call: AskTimeout", "claim", "messages taken again",
    "migrations completed", "migrations gave_up", "migrations rolled_back", "migrations without a fault",
    "migration's asker died", "recover", "resume", "steps called", "steps called again", "struck", "suspend",
    "suspected wrongly", "taken over by failover", "undo",
)  # fmt: skip
"""Events other than faults that must have happened, as `Scene.counts` names them."""

EVERY_CELL_SEEDS = 5000
"""The rarest cells, a fault in the milliseconds of a handover, are met once in a thousand seeds."""

CELLS_SHARE = 0.8
"""The share of the cells that fewer seeds must have reached."""


def list_unreached(faults: Counter[str], counts: Counter[str]) -> list[str]:
    """Faults, cells of the matrix and other things that have never happened, by name."""
    missing = [name for name in WORLD_FAULTS if not faults[name]]
    missing += [name for name in SOMETIMES if not counts[name]]
    return missing + [f"cell {cell}" for cell in CELLS if not counts[f"cell {cell}"]]


def reached_too_little(missing: list[str], seeds: int) -> bool:
    """True if a campaign of so many seeds must have reached more: a fault that was never made, or too many cells."""
    cells = [name for name in missing if name.startswith("cell ")]
    allowed = 0 if seeds >= EVERY_CELL_SEEDS else len(CELLS) * (1 - CELLS_SHARE)
    return len(cells) < len(missing) or len(cells) > allowed


def list_faults(faults: Counter[str]) -> str:
    """How often each fault happened, most frequent first."""
    return ", ".join(f"{name} {count:,}" for name, count in faults.most_common())


def render_matrix(counts: Counter[str]) -> str:
    """The matrix as text: phases in columns, and how often each fault met them."""
    wide = max(len(fault) for fault in FAULTS)
    lines = [" " * wide + "".join(f"{phase:>14}" for phase in PHASES)]
    for fault in FAULTS:
        row = [counts[f"cell {phase}: {fault}"] for phase in PHASES]
        lines.append(f"{fault:<{wide}}" + "".join(f"{count:>14,}" for count in row))
    return "\n".join(lines)
