"""What a campaign of seeds must have reached: a fault that never happened, and a cell that was never hit, prove nothing."""

from __future__ import annotations

from collections import Counter

from mielin_cells.testing.simulator.matrix import CELLS, FAULTS, PHASES
from mielin_cells.testing.simulator.swarm import DEATHS, REFUSED
from mielin_cells.testing.simulator.world import CHANCES

DEEDS = (
    "crash", "crash before", "crash after", "crash answered", "pause", "cut", "cut in", "cut out", "store cut", "store cut in",
    "store cut out", "partition", "partition one way", "slow node", "clock step", "outage", "power cut", "stop",
    *(f"dead for good: {how}" for how in (*DEATHS, REFUSED)), "store refuses", "store refuses all", "starved",
    "zombie_append_late", "zombie_append_lost",
)  # fmt: skip

WORLD_FAULTS = (*CHANCES, *DEEDS)
"""Kinds of faults, as `World.counts` has them."""

SOMETIMES = (
    "abort", "agents taken from the dead", "call acknowledged", "call: AskTimeout", "claim", "messages taken again",
    "migrations completed", "migrations gave_up", "migrations rolled_back", "migrations without a fault",
    "migration's asker died", "recover", "resume", "steps called", "steps called again", "struck", "suspend",
    "suspected wrongly", "taken over by failover", "undo",
)  # fmt: skip
"""What must have happened besides faults, as `Scene.counts` has it."""


EVERY_CELL_SEEDS = 5000
"""The rarest cells, a fault in the milliseconds of a handover, are met once in a thousand seeds."""

CELLS_SHARE = 0.8
"""Of the cells: what fewer seeds must have reached."""


def unreached(faults: Counter[str], counts: Counter[str]) -> list[str]:
    """Faults, cells of the matrix and other things that have never happened, by name."""
    missing = [name for name in WORLD_FAULTS if not faults[name]]
    missing += [name for name in SOMETIMES if not counts[name]]
    return missing + [f"cell {cell}" for cell in CELLS if not counts[f"cell {cell}"]]


def too_little(missing: list[str], seeds: int) -> bool:
    """True if a campaign of so many seeds must have reached more: a fault that was never made, or too many cells."""
    cells = [name for name in missing if name.startswith("cell ")]
    allowed = 0 if seeds >= EVERY_CELL_SEEDS else len(CELLS) * (1 - CELLS_SHARE)
    return len(cells) < len(missing) or len(cells) > allowed


def faults_told(faults: Counter[str]) -> str:
    """How often each fault happened, most frequent first."""
    return ", ".join(f"{name} {count:,}" for name, count in faults.most_common())


def table(counts: Counter[str]) -> str:
    """The matrix as text: phases in columns, and how often each fault met them."""
    wide = max(len(fault) for fault in FAULTS)
    lines = [" " * wide + "".join(f"{phase:>14}" for phase in PHASES)]
    for fault in FAULTS:
        row = [counts[f"cell {phase}: {fault}"] for phase in PHASES]
        lines.append(f"{fault:<{wide}}" + "".join(f"{count:>14,}" for count in row))
    return "\n".join(lines)
