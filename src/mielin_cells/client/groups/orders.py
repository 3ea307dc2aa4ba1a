"""One order for all members of a group: either it is carried out for all, or what was done of it is undone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeAlias, get_args

from mielin_cells.agents.cluster import Cluster
from mielin_cells.agents.groups.report import GroupReport, Order
from mielin_cells.agents.reports import AgentInfo, MigrationReport
from mielin_cells.errors import AlreadyThere, CellError, MigrationFailed, RetryError, UsageError, described
from mielin_cells.log.lifecycle import AgentState

AT_ONCE = 8
"""Members that are ordered at the same time."""

Step: TypeAlias = Callable[[], Awaitable[object]]
Work: TypeAlias = Callable[[AgentInfo], tuple[Step, Step] | None]
"""What is to be done to an agent, and what takes it back, which does nothing if it was not done; None if there is nothing to do."""


async def order_members(
    client: Cluster, agents: list[str], order: str, *, to: str | None = None, node: str | None = None, reason: str = ""
) -> GroupReport:
    """suspend, resume, migrate (to a node), drain (off a node), or stop: suspend all, and then terminate each.

    If it fails for one member, no further one is ordered, and those that were are put back as they were.  What has been
    terminated cannot be: that begins only once all members are suspended, and goes on if it fails for one.
    Raises `UsageError` for an order that does not exist, or lacks its node.
    """
    if order not in get_args(Order):
        raise UsageError(f"There is no order {order!r} for groups; there are {', '.join(get_args(Order))}.")
    if (order == "migrate") != (to is not None) or (order == "drain") != (node is not None):
        raise UsageError("migrate needs a node to go to, and drain one to leave; the other orders have none.")

    def suspend(info: AgentInfo) -> tuple[Step, Step] | None:
        if info.state == AgentState.SUSPENDED.value:
            return None
        why = reason or f"order for a group: {order}"
        return lambda: client.suspend(info.id, why), lambda: client.resume(info.id)

    def resume(info: AgentInfo) -> tuple[Step, Step] | None:
        if info.state == AgentState.RUNNING.value:
            return None
        why = "an order for its group was taken back"
        return lambda: client.resume(info.id), lambda: client.suspend(info.id, why)

    def move(info: AgentInfo) -> tuple[Step, Step] | None:
        if info.node == to or node not in (None, info.node):
            return None
        return lambda: _moved(client, info, to), lambda: _moved_back(client, info)

    works: dict[str, Work] = {"suspend": suspend, "resume": resume, "migrate": move, "drain": move, "stop": suspend}
    report = await _all_or_none(client, agents, order, works[order])
    return await _terminated(client, report) if order == "stop" and report.ok else report


def is_elsewhere(report: MigrationReport, to: str | None) -> bool:
    """True if the node that was named failed, and a recovery took the agent to another one: that is not what was ordered."""
    return to is not None and report.target != to


async def _moved(client: Cluster, info: AgentInfo, to: str | None) -> None:
    report = (await client.migrate(info.id, to)).check()
    if is_elsewhere(report, to):
        await _moved_back(client, info)
        raise MigrationFailed(
            f"Agent {info.id!r} could not be moved to {to}; it went to {report.target}, and is back on {info.node}.",
            agent=info.id, migration=report.migration, reason=f"{to} failed",
        )  # fmt: skip


async def _moved_back(client: Cluster, info: AgentInfo) -> None:
    with contextlib.suppress(AlreadyThere):
        report = (await client.migrate(info.id, info.node)).check()
        if is_elsewhere(report, info.node):
            raise MigrationFailed(
                f"Agent {info.id!r} could not be moved back to {info.node}; it runs on {report.target}.",
                agent=info.id, migration=report.migration, reason=f"{info.node} failed",
            )  # fmt: skip


async def _all_or_none(client: Cluster, agents: list[str], order: str, work: Work) -> GroupReport:
    undos, unchanged, failed = dict[str, Step](), list[str](), dict[str, str]()

    async def one(agent: str) -> None:
        if failed:
            return
        try:
            steps = work(await client.show(agent))
            if steps is None:
                unchanged.append(agent)
                return
            do, undo = steps
            try:
                await do()
            except RetryError:  # nobody knows whether it was done, or still will be
                undos[agent] = undo
                raise
            undos[agent] = undo
        except CellError as error:
            failed[agent] = described(error)

    await _some_at_once(agents, one)
    undone, stuck = list[str](), dict[str, str]()

    async def back(agent: str) -> None:
        try:
            await undos[agent]()
            undone.append(agent)
        except CellError as error:
            stuck[agent] = described(error)

    if failed:
        await _some_at_once([*undos], back)
    return GroupReport(
        order=order, done=[] if failed else sorted(undos), unchanged=sorted(unchanged), failed=failed, undone=sorted(undone),
        stuck=stuck,
    )  # fmt: skip


async def _terminated(client: Cluster, report: GroupReport) -> GroupReport:
    done, failed = list[str](), dict[str, str]()

    async def one(agent: str) -> None:
        try:
            await client.terminate(agent)
            done.append(agent)
        except CellError as error:
            failed[agent] = described(error)

    await _some_at_once([*report.done, *report.unchanged], one)
    return GroupReport(order=report.order, done=sorted(done), failed=failed)


async def _some_at_once(agents: list[str], work: Callable[[str], Awaitable[None]]) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(agent: str) -> None:
        async with room:
            await work(agent)

    async with asyncio.TaskGroup() as tasks:
        for agent in agents:
            _ = tasks.create_task(one(agent))
