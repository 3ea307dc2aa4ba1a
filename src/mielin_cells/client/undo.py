"""`Cluster.rollback`: the owner undoes the move, the chosen node takes the messages again, and the client counts them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from mielin_cells.agents.reports import RollbackReport
from mielin_cells.client.requester import Requester
from mielin_cells.errors import CellError, MigrationRefused, NoSuchAgent, RetryError, never
from mielin_cells.log.commit import ReplayCounts
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import ReplayProgress, UndoPlan
from mielin_cells.store import journal
from mielin_cells.store.reader import load

UNDO_S = 60.0
"""Timeout of a request to the owner, which reads the agent's log and waits for a turn to end."""

LOOK_S = 0.05

STOPPED_S = 2.0
"""How long to wait for an agent that takes no messages: long enough for an operator who resumes it at the same time."""


async def undo_move(
    client: Requester, migration: str, to: str | None, *, dry_run: bool = False, correct: bool = False,
    seen: Callable[[ReplayProgress], None] | None = None, agent: str = "",
) -> RollbackReport:  # fmt: skip
    """See `Cluster.rollback`; `seen` is called when the number of messages that are left has changed.

    `agent`: whose migration it is, if that is known: otherwise all migrations of the deployment are listed.
    """
    found = await (journal.read(client.log, agent, migration) if agent else journal.find(client.log, migration))
    planned = found.planned
    if planned is None:
        raise never("a journal that was found has a plan")
    agent = planned.agent
    client.check_turn(agent, "undo a migration of")
    owner, epoch = await client.owner(agent)
    request = requests.Undo(agent, migration, epoch, to or "", planned.source, correct, dry_run)
    last = (await load(client.log, agent)).seq
    try:
        plan = await client.request(owner, request, client.settings.turn_deadline_s + UNDO_S)
    except RetryError:
        # It may have been done.  The log says so; if it does not, the request may still come: asked again, it is refused by then.
        fold = await load(client.log, agent)
        if not any(by > last for _, by in fold.undone):
            raise
        return await _watch_replay(client, _plan_of_log(migration, owner, fold), seen)
    if plan.reasons:
        raise MigrationRefused(
            f"{plan.goes_to} cannot take agent {agent!r} as it was before {migration}; it runs on at {plan.node}: "
            f"{'; '.join(plan.reasons)}.", agent=agent, migration=migration, reasons=plan.reasons, kinds=plan.kinds,
        )  # fmt: skip
    if dry_run:
        return _report(plan, ReplayCounts(), plan.messages, 0)
    if plan.state == AgentState.ERROR.value and plan.state_then == AgentState.RUNNING.value and not plan.trouble:
        try:
            await client.send_to_owner(agent, requests.Order(agent, "resume"))  # what broke it is undone
        except CellError as error:  # the undo is done, and that must be said
            trouble = f"the agent is in ERROR and was not resumed, which `mielin resume {agent}` does: {error.message}"
            plan = msgspec.structs.replace(plan, trouble=trouble)
    return await _watch_replay(client, plan, seen)


async def _watch_replay(
    client: Requester, plan: UndoPlan, seen: Callable[[ReplayProgress], None] | None
) -> RollbackReport:
    """Waits until the messages have been taken again, as long as there is progress and the agent takes messages."""
    clock, dead = asyncio.get_running_loop().time, -1
    progress, since = ReplayProgress(plan.messages, ReplayCounts(), 0), clock()
    while not plan.trouble and clock() < since + client.settings.turn_deadline_s:
        try:
            now = await client.send_to_owner(plan.agent, requests.ReadReplay(plan.agent), 1.0)
        except (RetryError, NoSuchAgent):
            continue
        except CellError as error:
            plan = msgspec.structs.replace(plan, trouble=error.message)
            break
        dead = now.dead if dead < 0 else dead
        if now != progress:
            progress, since = now, clock()
            if seen is not None:
                seen(now)
        if not now.left:
            break
        if now.stopped and clock() > since + STOPPED_S:
            trouble = f"the agent is {now.stopped}: what is left waits for `mielin resume {plan.agent}`"
            plan = msgspec.structs.replace(plan, trouble=trouble)
            break
        await asyncio.sleep(LOOK_S)
    return _report(plan, progress.replayed, progress.left, progress.dead - max(dead, 0))


def _plan_of_log(migration: str, owner: str, fold: Fold) -> UndoPlan:
    """The report of an undo whose answer was lost.  The log does not say what the undone messages had sent and answered."""
    return UndoPlan(
        agent=fold.agent, migration=migration, node=owner, goes_to=fold.goes_to or fold.owner, record=fold.undone[-1][0],
        version=fold.version, version_then=fold.version, messages=len(fold.ledger.replays), sent=0, steps=0, answered=0,
        state="", state_then="",
    )  # fmt: skip


def _report(plan: UndoPlan, replayed: ReplayCounts, left: int, dead: int) -> RollbackReport:
    return RollbackReport(
        migration=plan.migration, agent=plan.agent, source=plan.node, target=plan.goes_to, record=plan.record,
        version=plan.version, version_then=plan.version_then, messages=plan.messages, sent=plan.sent, steps=plan.steps,
        answered=plan.answered, replayed=replayed.inputs, left=left, same=replayed.same, differing=replayed.differing,
        corrected=replayed.corrected, missing=replayed.missing, dead=dead, trouble=plan.trouble,
    )  # fmt: skip
