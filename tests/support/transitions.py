"""All transitions of the two migration machines, and the tables of them in docs/migration.md.

PYTHONPATH=tests python -m support.transitions     writes the tables anew
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mielin_cells.migration import source as s
from mielin_cells.migration import target as t
from mielin_cells.migration.progress import MigrationPhase as Phase
from mielin_cells.migration.refusal import as_refusal
from mielin_cells.migration.target import TargetPhase
from support.paths import ROOT

DOC = ROOT / "docs" / "migration.md"
BEGIN, END = "<!-- transitions: begin -->", "<!-- transitions: end -->"
LIMITS = s.Limits(rounds_max=4, lag_records_max=64, lag_bytes_max=1024)
NEAR = s.Copied(0, 0)
NEARER = s.Copied(1, 100)
FAR = s.Copied(1000, 0)

SOURCE_EVENTS: list[tuple[str, s.Event]] = [
    ("Begin", s.Begin()),
    ("Prepared", s.Prepared()),
    ("Refused", s.Refused((as_refusal("no memory"), as_refusal("no class")))),
    ("Copied, near", NEAR),
    ("Copied, nearer", NEARER),
    ("Copied, far", FAR),
    ("Quiet", s.Quiet()),
    ("HandedOver", s.HandedOver()),
    ("Doubtful", s.Doubtful()),
    ("ClaimedBack", s.ClaimedBack()),
    ("Overtaken, by the handover", s.Overtaken(True)),
    ("Overtaken", s.Overtaken(False)),
    ("SeenAccepted", s.SeenAccepted()),
    ("SeenReturned", s.SeenReturned("healthy() answered False")),
    ("SeenClaimed", s.SeenClaimed("n3")),
    ("Deadline", s.Deadline()),
    ("Cancel", s.Cancel()),
    ("Broken", s.Broken("TargetUnreachable", "n2 does not answer")),
]
TARGET_EVENTS: list[tuple[str, t.Event]] = [
    ("CopyAsked", t.CopyAsked()),
    ("Adopted", t.Adopted("m-2")),
    ("HandoverSeen", t.HandoverSeen()),
    ("Verified", t.Verified()),
    ("NotVerified", t.NotVerified("digest")),
    ("Acknowledged", t.Acknowledged()),
    ("Overtaken", t.Overtaken()),
    ("Released", t.Released()),
    ("Expired", t.Expired()),
]


class Step(NamedTuple):
    """One transition: what `machine` makes of an event."""

    phase: str
    label: str
    machine: Any
    event: Any
    after: Any
    effects: tuple[Any, ...]


def source_in(phase: Phase, rounds: int = 1) -> s.Source:
    return s.Source("m-1", LIMITS, phase, rounds)


def target_in(phase: TargetPhase) -> t.Target:
    return t.Target("m-1", phase)


def source_steps() -> Iterator[Step]:
    """Every phase with every event; a copy that is behind also in a late round, and if it is far behind in the last."""
    for phase in Phase:
        for label, event in SOURCE_EVENTS:
            rounds = {1: ""}
            if phase is Phase.COPYING and event in (NEARER, FAR):
                rounds = {1: " (early round)", 2: " (late round)"}
            if phase is Phase.COPYING and event is FAR:
                rounds[LIMITS.rounds_max] = " (last round)"
            for number, which in rounds.items():
                machine = source_in(phase, number)
                yield Step(phase.value, label + which, machine, event, *machine.on(event))


def target_steps() -> Iterator[Step]:
    for phase in TargetPhase:
        for label, event in TARGET_EVENTS:
            machine = target_in(phase)
            yield Step(phase.value, label, machine, event, *machine.on(event))


def is_ignored(step: Step) -> bool:
    return step.machine == step.after and not step.effects


def shown(effect: Any) -> str:
    name = type(effect).__name__
    match effect:
        case s.End(outcome=outcome, code=code):
            return f"{name}({outcome}{', ' + code if code else ''})"
        case s.AskCopy(slow=True):
            return f"{name}(slow)"
        case _:
            return name


def table(steps: Iterator[Step]) -> list[str]:
    """Rows that do something, and for each phase one row that names the events it ignores."""
    by_phase: dict[str, list[Step]] = {}
    for step in steps:
        by_phase.setdefault(step.phase, []).append(step)
    lines = ["| phase | event | next phase | effects |", "|-|-|-|-|"]
    for phase, found in by_phase.items():
        ignored = [step.label for step in found if is_ignored(step)]
        for step in found:
            if not is_ignored(step):
                effects = ", ".join(shown(effect) for effect in step.effects) or "*noted*"
                lines.append(f"| {phase} | {step.label} | {step.after.phase.value} | {effects} |")
        if len(ignored) == len(found):
            lines.append(f"| {phase} | *every event* | {phase} | *ignored* |")
        elif ignored:
            lines.append(f"| {phase} | {'; '.join(ignored)} | {phase} | *ignored* |")
    return lines


def section() -> str:
    parts = ["### The source", "", *table(source_steps()), "", "### The target", "", *table(target_steps())]
    return "\n".join(parts)


def in_doc(text: str) -> str:
    """What is between the markers of the page."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def rewrite() -> None:
    text = DOC.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    DOC.write_text(f"{before}{BEGIN}\n\n{section()}\n\n{END}{after}")


if __name__ == "__main__":
    rewrite()
