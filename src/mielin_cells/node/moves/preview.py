"""Predicts what a move would cost: nothing is reserved, and nothing begins."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from mielin_cells.errors import NoResponder, WireTimeout
from mielin_cells.log.ids import log_subject
from mielin_cells.node.moves.admission import ask_offer
from mielin_cells.node.moves.targets import choose_first
from mielin_cells.rpc.answers import Prediction

if TYPE_CHECKING:
    from mielin_cells.node.moves.manager import Migrations

REPORTS = 32
"""Recent moves from whose pauses the next is predicted."""

READS = 4
"""A pause is two appends, one after the other, each about as long as two reads by the leader."""


async def predict(migrations: Migrations, agent: str, to: str) -> Prediction:
    """Raises `NoSuchAgent` if the agent does not run here, `UnknownNode` if there is nowhere to go."""
    activations = migrations.activations
    activation = await activations.awake(agent)
    fold = activation.fold
    target = to or await choose_first(activations, activation, migrations.unfit())
    try:
        reasons = await ask_offer(activations, target, fold, activations.settings.prepare_s)
    except (NoResponder, WireTimeout) as error:
        reasons = [f"{target} does not answer ({error.code})"]
    pause_ms, basis = await _pause(migrations, log_subject(agent))
    return Prediction(
        agent=agent,
        source=activations.name,
        target=target,
        bytes=fold.size_bytes,
        rounds=1,
        pause_ms=pause_ms,
        basis=basis,
        reasons=reasons,
    )


async def _pause(migrations: Migrations, subject: str) -> tuple[float, str]:
    activations = migrations.activations
    late = [report.pause_ms for report in migrations.reports.values() if report.ok][-REPORTS:]
    if late:
        return statistics.median(late), f"the last {len(late)} moves from {activations.name}"
    begun = activations.clock()
    await activations.home.log.last(subject)
    return (activations.clock() - begun) * READS * 1000, "a read of the agent's log just now"
