"""One move of a plan, from the leader: begun at its source under the plan's id, and watched until its end is known."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NamedTuple

from mielin_cells.errors import (
    OF_STORE,
    CellError,
    Fenced,
    NoResponder,
    NoSuchAgent,
    NoSuchMigration,
    WireTimeout,
)
from mielin_cells.policy.planning.plan import Plan, PlannedMove
from mielin_cells.rpc import requests
from mielin_cells.rpc.call import call
from mielin_cells.store import journal
from mielin_cells.store.ends import read_end
from mielin_cells.substrate.ports import Log
from mielin_cells.tasks.supervision import Backoff

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations

POLL_S = 1.0
"""How long a source holds back its answer."""

UNKNOWN = "unknown"
NOT_BEGUN = "not begun"


class Result(NamedTuple):
    outcome: str
    """Of the migration; or `NOT_BEGUN`, if its source refuses to begin it; or `UNKNOWN`, once nobody waits for it any more."""
    why: str = ""


async def perform(activations: Activations, plan: Plan, move: PlannedMove) -> Result:
    """Begins the move, or finds it begun, and returns its end.  It gives up when the log says that the plan is not open any more."""
    home, members = activations.home, activations.members
    left_s = plan.until - home.clock.now()
    request = requests.Migrate(move.agent, move.migration, move.epoch, move.target, POLL_S, _recovery(left_s))
    coordinator, backoff = move.source, Backoff()
    while plan.seq in members.table.plans.open and not activations.is_stopping:
        refusal = ""
        try:
            progress = await call(home.wire, coordinator, request, POLL_S * 2)
            if progress.report is not None:
                return Result(progress.report.outcome, progress.report.reason)
            continue
        except (NoSuchAgent, Fenced, NoResponder, WireTimeout):
            pass  # the logs say what became of it
        except CellError as error:
            if coordinator == move.source and not isinstance(error, OF_STORE):
                refusal = error.message
        owner = ""
        try:
            owner, end = await read_end(home.log, move.agent, move.migration, move.epoch, move.target)
            if end is not None:
                return Result(end.outcome, end.reason)
            if refusal and await _has_begun(home.log, move):
                refusal = ""  # only its end counts
        except NoSuchAgent:
            refusal = "there is no such agent any more"
        except OF_STORE:
            refusal = ""  # the store does not answer now, or not this node
        if refusal:
            return Result(NOT_BEGUN, refusal)
        coordinator = owner if owner and coordinator == move.source else move.source  # by turns: either may be slow
        await backoff.wait()
    return Result(UNKNOWN, "its plan has ended")


async def _has_begun(log: Log, move: PlannedMove) -> bool:
    """True if the migration has a journal.  Raises what the store raises."""
    try:
        await journal.read(log, move.agent, move.migration)
    except NoSuchMigration:
        return False
    return True


def _recovery(left_s: float) -> dict[str, float]:
    """Quick retries, and a rollback rather than giving up, so that the agent keeps running."""
    return {
        "max_retries": 1.0, "initial_retry_delay_secs": 0.25, "max_retry_delay_secs": 2.0,
        "recovery_timeout_secs": max(1.0, left_s), "auto_rollback": 1.0,
    }  # fmt: skip


async def cancel(activations: Activations, move: PlannedMove) -> None:
    """Best effort: a move that has handed over goes forward."""
    with contextlib.suppress(CellError, asyncio.TimeoutError):
        await call(activations.home.wire, move.source, requests.Abort(move.agent, move.migration), POLL_S)
