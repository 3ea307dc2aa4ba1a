"""Asks the leader to spread the agents evenly, and follows that; and stops plans."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mielin_cells.client.requester import Requester
from mielin_cells.errors import Fenced, NoResponder, RetryError, UsageError
from mielin_cells.membership.members import NOBODY, AnyRecord, PlansStopped, Table
from mielin_cells.membership.table import Members
from mielin_cells.rpc import plans
from mielin_cells.rpc.plans import ReadRebalance, Rebalance, Rebalanced

POLL_S = 0.3
ASK_S = 3.0
DRY_S = 15.0
NOBODY_S = 10.0


async def rebalance(
    client: Requester, *, is_dry: bool = False, seen: Callable[[Rebalanced], None] = lambda _: None
) -> Rebalanced:
    """Returns how it ended, or what it would do.  `seen` is called with each answer.

    Raises `UsageError` if nobody leads, as in one process, and `NoResponder` if no leader answers for ten seconds.
    """
    name, begin, clock = f"r-{client.rng.randbytes(8).hex()}", True, asyncio.get_running_loop().time
    heard = clock()
    while True:
        leader = (await client.members.read_to_end()).leader
        if leader == NOBODY and clock() - heard > NOBODY_S:
            raise UsageError("No node leads, so nothing is planned: agents are rebalanced among node processes.")
        request = Rebalance(name, is_dry) if begin else ReadRebalance(name)
        try:
            if leader == NOBODY:
                raise NoResponder("No node leads now.")
            progress = await client.request(leader[0], request, DRY_S if is_dry else ASK_S)
        except (RetryError, Fenced):
            if clock() - heard > NOBODY_S + (DRY_S if is_dry else ASK_S):
                raise
            begin = True  # the next leader does not know it
        else:
            heard, begin = clock(), progress.state == plans.UNKNOWN
            seen(progress)
            if is_dry or progress.state not in (plans.RUNNING, plans.UNKNOWN):
                return progress
        await asyncio.sleep(POLL_S)


async def stop_plans(client: Requester, run: str = "") -> list[str]:
    """Stops the open plans of a run, or all; returns the runs.  Moves that have handed over go forward."""
    members, runs = Members(client.log), list[str]()

    def decide(table: Table) -> AnyRecord | None:
        open_ = {plan.run for plan in table.plans.open.values() if not plan.is_stopped and run in ("", plan.run)}
        runs[:] = sorted(open_)
        return PlansStopped("", 0, run) if open_ or run else None

    await members.read_to_end()
    if run in members.table.plans.stopped:
        return []
    await members.append(decide)
    return runs
