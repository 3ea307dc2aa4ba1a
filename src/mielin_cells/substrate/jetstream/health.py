"""What a NATS server and a deployment's streams say of themselves, and what the index of owners has lost."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import time
from typing import Any, Final, NamedTuple

import msgspec

from mielin_cells.errors import CellError, RetryError, StreamMissing
from mielin_cells.log.ids import LOGS, agent_of
from mielin_cells.substrate.format import check_format
from mielin_cells.substrate.health import Facts, StreamFacts
from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.api import Unanswered
from mielin_cells.substrate.jetstream.ask import ask, stream
from mielin_cells.substrate.jetstream.asking import Asking
from mielin_cells.substrate.jetstream.connection import Connection
from mielin_cells.substrate.jetstream.index import find_index, index_name, make_index, read_generation
from mielin_cells.substrate.jetstream.places import MARKER, NOBODY, OWN, TOPIC, head_of
from mielin_cells.substrate.jetstream.topics import has_topics

LASTS: Final = 500
"""Names in one request for their last entries."""
LATE_S: Final = 3.0
"""What the index does not name for so long counts as lost."""
PATIENT_S: Final = 60.0
"""The same, if nobody is there to judge: after a restart, a server with many entries takes its index up again seconds later."""
LOOK_S: Final = 0.3
SYSTEM_S: Final = 0.3
"""Only a system account is answered; any other hears nothing at all."""


async def facts(connection: Connection, deployment: str, sync: str, named_by: str) -> Facts:
    """`sync`: what the starter of the server has left about it ("power", "process", "" if nothing), and `named_by` where."""
    account, _ = await _ask(connection, "INFO")
    clock_s = 0.0
    streams: list[StreamFacts] = []
    missing: list[str] = []
    kinds: tuple[str, ...] = ("log", "part")
    names = [api.stream_name(deployment, kind, 0) for kind in kinds]
    for name in names:  # the first one says how many there are
        answer, seconds = await _ask(connection, f"STREAM.INFO.{name}")
        if answer.get("error"):
            error = msgspec.convert(answer["error"], api.ApiError)
            if error.err_code != api.STREAM_MISSING:
                raise api.error_of(error, name)
            missing.append(name)
            continue
        clock_s = seconds
        streams.append(StreamFacts(name, answer.get("config", {}), answer.get("state", {}), answer.get("cluster")))
        metadata = streams[-1].config.get("metadata", {})
        if str(metadata.get("mielin.format", "")).isdecimal():
            check_format(f"The stream {name}", int(metadata["mielin.format"]), "another deployment (--deployment)")
        shards = str(metadata.get("mielin.shards", "1"))
        if len(streams) == 1 and shards.isdecimal():
            if await has_topics(connection, deployment, metadata):
                kinds = (*kinds, TOPIC)
                names.append(api.stream_name(deployment, TOPIC, 0))
            names += [api.stream_name(deployment, kind, n) for n in range(1, int(shards)) for kind in kinds]
            names.append(index_name(deployment, (await read_generation(connection, deployment))[0] or 1))
    lost: list[str] = []
    if streams and not missing:
        with contextlib.suppress(RetryError):  # what keeps the streams from answering is seen by itself
            lost = await find_lost(connection, deployment)
    sync_s, sync_from = await _sync(connection)
    if sync_s is None and sync:
        sync_s, sync_from = (0.0 if sync == "power" else 120.0), named_by
    return Facts(
        kind="nats", where=connection.url, deployment=deployment, servers=connection.servers, version=connection.version,
        sync_s=sync_s, sync_from=sync_from,
        in_cluster=any(api.is_clustered(one.cluster) for one in streams),
        payload_max=connection.payload_max, streams=streams, missing=missing, lost=lost,
        account=account, clock_s=clock_s,
    )  # fmt: skip


async def _ask(connection: Connection, what: str) -> tuple[dict[str, Any], float]:
    """The answer, and by how much the server's clock is ahead: less than half of the round trip counts as nothing."""
    before, began = time.time(), time.monotonic()
    answer: dict[str, Any] = await ask(connection, what, b"", dict[str, Any])
    took = time.monotonic() - began
    try:
        stamp = datetime.datetime.fromisoformat(str(answer["ts"]).rstrip("Z")[:26])
    except (KeyError, ValueError):
        return answer, 0.0
    ahead = stamp.replace(tzinfo=datetime.UTC).timestamp() - (before + took / 2)
    return answer, ahead if abs(ahead) > took / 2 else 0.0


async def _sync(connection: Connection) -> tuple[float | None, str]:
    """The server's own word, if this user may ask for it."""
    try:
        heard = await connection.call("$SYS.REQ.SERVER.PING.JSZ", json.dumps({"config": True}).encode(), SYSTEM_S)
        config = api.decode(heard.data, dict[str, Any], "JSZ")["data"]["config"]
        return (0.0 if config.get("sync_always") else config.get("sync_interval", 0) / 1e9 or 120.0), "the server"
    except (Unanswered, CellError, LookupError, TypeError):
        return None, ""


class _Owners(Asking):
    """Compares the index of owners with the logs, by the names that their streams have."""

    def __init__(self, connection: Connection, deployment: str) -> None:
        super().__init__(connection)
        self._deployment = deployment

    async def find_lost(self, index: str) -> set[tuple[str, str]]:
        """Node and agent, as names in subjects, of each agent that the index does not name at its owner now."""
        first = await stream(self._connection, api.stream_name(self._deployment, "log", 0))
        owners = set[tuple[str, str]]()
        for shard in range(int(first.config.metadata["mielin.shards"])):
            owners |= await self._owners(shard)
        head = f"{self._deployment}.{OWN}."
        there = {name.removeprefix(head) for name in await self._names(index, f"{head}>")}
        return {(node, agent) for node, agent in owners if f"{node}.{agent}" not in there}

    async def _owners(self, shard: int) -> set[tuple[str, str]]:
        """By the newest ownership record of each log, without those of agents that have ended."""
        name, head = api.stream_name(self._deployment, "log", shard), head_of(self._deployment, "log", shard) + LOGS
        by_agent = dict[str, list[str]]()
        for one in await self._names(name, f"{head}*.{OWN}.*"):
            agent, _, node = one.removeprefix(head).partition(f".{OWN}.")
            if not agent.startswith(MARKER):
                by_agent.setdefault(agent, []).append(node)
        newest = {agent: (0, nodes[0]) for agent, nodes in by_agent.items() if len(nodes) == 1}
        several = [
            f"{head}{agent}.{OWN}.{node}" for agent, nodes in by_agent.items() if len(nodes) > 1 for node in nodes
        ]
        for start in range(0, len(several), LASTS):
            for heard in await self._lasts(name, several[start : start + LASTS]):
                agent, _, node = heard.subject.removeprefix(head).partition(f".{OWN}.")
                newest[agent] = max(newest.get(agent, (0, "")), (heard.seq, node))
        return {(node, agent) for agent, (_, node) in newest.items() if node != NOBODY}


class Mended(NamedTuple):
    """An index that was made anew; "": it had lost nothing."""

    name: str
    copies: int
    lost: int
    """Agents that the one before did not name at their owners."""


async def find_lost(connection: Connection, deployment: str, index: str = "", late_s: float = LATE_S) -> list[str]:
    """Agents that the index does not name at their owners, and has not for `late_s`: it is only late otherwise.

    `index`: its name, if that is known.
    """
    index = index or await find_index(connection, deployment)
    owners, lost = _Owners(connection, deployment), set[tuple[str, str]]()
    until, pause_s = time.monotonic() + late_s, LOOK_S
    while found := await owners.find_lost(index):
        lost = found if not lost else lost & found
        if not lost or time.monotonic() > until:
            break
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, max(LOOK_S, late_s / 6))
    else:
        return []
    return sorted(agent_of(LOGS + agent) for _, agent in lost)


async def mend_index(connection: Connection, deployment: str, late_s: float = LATE_S) -> Mended:
    """Makes the index anew if it has lost agents.  Of several that do so at once, none deletes what another has just made."""
    if made := await make_index(connection, deployment):
        return Mended(made, 0, 0)
    before = await find_index(connection, deployment)
    try:
        if not (lost := await find_lost(connection, deployment, before, late_s)):
            return Mended("", 0, 0)
        copies = (await stream(connection, before)).config.num_replicas
    except StreamMissing:  # another one was first
        return Mended("", 0, 0)
    await ask(connection, f"STREAM.DELETE.{before}")
    await make_index(connection, deployment)
    return Mended(await find_index(connection, deployment), copies, len(lost))
