"""Predicts what a move would cost: nothing is reserved, and nothing begins."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from mielin_cells.errors import NoResponder, WireTimeout
from mielin_cells.node.moves.admission import ask_offer
from mielin_cells.node.moves.targets import choose_first
from mielin_cells.rpc.answers import Prediction

if TYPE_CHECKING:
    from mielin_cells.node.moves.manager import Migrations

REPORTS = 32
"""Recent moves from whose pauses the next is predicted."""


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
    pause_ms, basis = await _pause(migrations, agent)
    limit_ms = fold.policy.pause_ms
    if limit_ms is not None and (too_long := await migrations.pauses.too_long(agent, limit_ms)):
        reasons = [*reasons, too_long]
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


async def _pause(migrations: Migrations, agent: str) -> tuple[float, str]:
    late = [report.pause_ms for report in migrations.reports.values() if report.ok][-REPORTS:]
    if late:
        return statistics.median(late), f"the last {len(late)} moves from {migrations.activations.name}"
    return await migrations.pauses.measure(agent)
