"""What a NATS server and a deployment's streams say of themselves; nothing is made or changed."""

from __future__ import annotations

import datetime
import json
import time
from typing import Any, Final

import msgspec

from mielin_cells.errors import CellError
from mielin_cells.substrate.format import check_format
from mielin_cells.substrate.health import Facts, StreamFacts
from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.api import Unanswered
from mielin_cells.substrate.jetstream.ask import ask
from mielin_cells.substrate.jetstream.connection import Connection
from mielin_cells.substrate.jetstream.index import index_name, read_generation
from mielin_cells.substrate.jetstream.places import TOPIC
from mielin_cells.substrate.jetstream.topics import MADE

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
            if metadata.get(MADE):
                kinds = (*kinds, TOPIC)
                names.append(api.stream_name(deployment, TOPIC, 0))
            names += [api.stream_name(deployment, kind, n) for n in range(1, int(shards)) for kind in kinds]
            names.append(index_name(deployment, (await read_generation(connection, deployment))[0] or 1))
    sync_s, sync_from = await _sync(connection)
    if sync_s is None and sync:
        sync_s, sync_from = (0.0 if sync == "power" else 120.0), named_by
    return Facts(
        kind="nats", where=connection.url, deployment=deployment, servers=connection.servers, version=connection.version,
        sync_s=sync_s, sync_from=sync_from,
        in_cluster=any(api.is_clustered(one.cluster) for one in streams),
        payload_max=connection.payload_max, streams=streams, missing=missing,
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
