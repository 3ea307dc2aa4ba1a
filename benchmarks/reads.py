"""What the server spends on the reads that nodes make to find out whose the agents are, for each agent that is read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from benchmarks.stage import Stage
from mielin_cells.log.ids import log_subject
from mielin_cells.store.reader import list_agents, list_owned

LOOK = 256
"""Logs whose ends are read at once, as nodes do."""


async def spent_on_reads(stage: Stage, node: str, times: int) -> dict[str, dict[str, float]]:
    """By kind of read: agents in one read, and for each agent the server's processor time in µs and the bytes that it sends."""
    log = stage.cluster.log
    some = [log_subject(agent) for agent in await list_owned(log, node)][:LOOK]

    async def ends() -> int:
        return len(await log.lasts(some))

    async def owned(source: str) -> int:
        return len(await list_owned(log, node, source))  # type: ignore[arg-type]

    async def every() -> int:
        return len(await list_agents(log))

    return {
        "ends of logs": await _each(stage, ends, times * 10),
        "the index, of one node's agents": await _each(stage, lambda: owned("index"), times),
        "the logs, of one node's agents": await _each(stage, lambda: owned("logs"), times),
        "the logs, of all agents": await _each(stage, every, times),
    }


async def _each(stage: Stage, read: Callable[[], Awaitable[int]], times: int) -> dict[str, float]:
    server, agents = stage.processes()["server"], 0
    await read()
    before, sent = sum(server.cpu_times()[:2]), stage.sent_bytes()
    for _ in range(times):
        agents += await read()
        await asyncio.sleep(0)
    spent_us, sent = 1e6 * (sum(server.cpu_times()[:2]) - before), stage.sent_bytes() - sent
    return {
        "agents": agents // times, "server_us": round(spent_us / max(1, agents), 2), "bytes": round(sent / max(1, agents), 1)
    }  # fmt: skip
