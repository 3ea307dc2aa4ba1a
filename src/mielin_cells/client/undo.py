"""`Cluster.rollback` as a client does it: the owner undoes, the chosen node takes the messages again, and the client counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from mielin_cells.agents.reports import RollbackReport
from mielin_cells.errors import CellError, MigrationRefused, NoSuchAgent, RetryError, never
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.log.records import Replayed
from mielin_cells.rpc import answers, requests
from mielin_cells.store import journal
from mielin_cells.store.reader import load

if TYPE_CHECKING:
    from mielin_cells.client.client import Client

UNDO_S = 60.0
"""One request to the owner: it reads the agent's log, and waits for a turn to end."""

LOOK_S = 0.05

STOPPED_S = 2.0
"""An agent that takes no messages is not waited for: only as long as an operator takes who resumes it at the same time."""


async def rollback(
    client: Client, migration: str, to: str | None, *, dry_run: bool = False, correct: bool = False,
    seen: Callable[[answers.ReplayProgress], None] | None = None,
) -> RollbackReport:  # fmt: skip
    """What `Cluster.rollback` says; `seen` is told how many messages are left."""
    found = await journal.find(client.log, migration)
    if found.planned is None:
        raise never("found.planned is not None does not hold")
    agent = found.planned.agent
    client.check_turn(agent, "undo a migration of")
    owner, epoch = await client.owner(agent)
    request = requests.Undo(agent, migration, epoch, to or "", found.planned.source, correct, dry_run)
    last = (await load(client.log, agent)).seq
    try:
        plan = await client.request(owner, request, client.settings.turn_deadline_s + UNDO_S)
    except RetryError:
        # It may have been done.  The log says so; if it does not, the request may still come: asked again, it is refused by then.
        fold = await load(client.log, agent)
        if not any(by > last for _, by in fold.undone):
            raise
        return await _watched(client, _told(migration, owner, fold), seen)
    if plan.reasons:
        raise MigrationRefused(
            f"{plan.goes_to} cannot take agent {agent!r} as it was before {migration}; it runs on at {plan.node}: "
            f"{'; '.join(plan.reasons)}.", agent=agent, migration=migration, reasons=plan.reasons,
        )  # fmt: skip
    if dry_run:
        return _report(plan, Replayed(), plan.messages, 0)
    if plan.state == AgentState.ERROR.value and plan.state_then == AgentState.RUNNING.value and not plan.trouble:
        await client.resume(agent)  # what broke it is undone
    return await _watched(client, plan, seen)


async def _watched(
    client: Client, plan: answers.UndoPlan, seen: Callable[[answers.ReplayProgress], None] | None
) -> RollbackReport:
    """Waits until the messages have been taken again, as long as there is progress, and the agent takes any."""
    loop = asyncio.get_running_loop()
    rest, since, dead = answers.ReplayProgress(plan.messages, Replayed(), 0), loop.time(), -1

    async def owner() -> str:
        return (await client.owner(plan.agent))[0]

    while not plan.trouble and loop.time() < since + client.settings.turn_deadline_s:
        try:
            now = await client.ordered(owner, requests.ReadReplay(plan.agent), 1.0)
        except (RetryError, NoSuchAgent):
            continue
        except CellError as error:
            plan = msgspec.structs.replace(plan, trouble=error.message)
            break
        dead = now.dead if dead < 0 else dead
        if now != rest:
            rest, since = now, loop.time()
            if seen is not None:
                seen(now)
        if not now.left:
            break
        if now.stopped and loop.time() > since + STOPPED_S:
            trouble = f"the agent is {now.stopped}: what is left waits for `mielin resume {plan.agent}`"
            plan = msgspec.structs.replace(plan, trouble=trouble)
            break
        await asyncio.sleep(LOOK_S)
    return _report(plan, rest.replayed, rest.left, rest.dead - max(dead, 0))


def _told(migration: str, owner: str, fold: Fold) -> answers.UndoPlan:
    """An undo whose answer was lost, as far as the log tells of it: what it was about to send and answer is not known."""
    return answers.UndoPlan(
        agent=fold.agent, migration=migration, node=owner, goes_to=fold.goes_to or fold.owner, record=fold.undone[-1][0],
        version=fold.version, version_then=fold.version, messages=len(fold.ledger.again), sent=0, steps=0, answered=0,
        state="", state_then="",
    )  # fmt: skip


def _report(plan: answers.UndoPlan, replayed: Replayed, left: int, dead: int) -> RollbackReport:
    return RollbackReport(
        migration=plan.migration, agent=plan.agent, source=plan.node, target=plan.goes_to, record=plan.record,
        version=plan.version, version_then=plan.version_then, messages=plan.messages, sent=plan.sent, steps=plan.steps,
        answered=plan.answered, replayed=replayed.inputs, left=left, same=replayed.same, differing=replayed.differing,
        corrected=replayed.corrected, missing=replayed.missing, dead=dead, trouble=plan.trouble,
    )  # fmt: skip
