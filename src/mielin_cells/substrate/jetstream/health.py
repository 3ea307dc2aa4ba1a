"""What a NATS server and a deployment's streams say of themselves; nothing is made or changed."""

from __future__ import annotations

import datetime
import json
import time
from typing import Any, Final

from mielin_cells.errors import CellError, JetStreamDisabled, StoreUnreachable
from mielin_cells.substrate.format import check_format
from mielin_cells.substrate.health import Facts, StreamFacts
from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.api import Unanswered
from mielin_cells.substrate.jetstream.connection import Connection

ASK_S: Final = 5.0
SYSTEM_S: Final = 0.3
"""Only a system account is answered; any other hears nothing at all."""
_ALWAYS, _LAZY = "power", "process"


async def facts(connection: Connection, deployment: str, sync: str, named_by: str) -> Facts:
    """`sync`: what whoever started the server has left about it ("power", "process", "" if nobody), and `named_by` where."""
    account, _ = await _told(connection, "INFO")
    clock_s = 0.0
    found: list[StreamFacts] = []
    missing: list[str] = []
    names = [api.stream_name(deployment, kind, 0) for kind in ("log", "part")]
    for name in names:  # the first one says how many there are
        told, seconds = await _told(connection, f"STREAM.INFO.{name}")
        if told.get("error"):
            if told["error"].get("err_code") != api.STREAM_MISSING:
                raise api.error_of(
                    api.ApiError(**{k: told["error"][k] for k in ("code", "err_code", "description")}), name
                )
            missing.append(name)
            continue
        clock_s = seconds
        found.append(StreamFacts(name, told.get("config", {}), told.get("state", {}), told.get("cluster")))
        metadata = found[-1].config.get("metadata", {})
        if str(metadata.get("mielin.format", "")).isdecimal():
            check_format(f"The stream {name}", int(metadata["mielin.format"]), "another deployment (--deployment)")
        shards = str(metadata.get("mielin.shards", "1"))
        if len(found) == 1 and shards.isdecimal():
            names += [api.stream_name(deployment, kind, n) for n in range(1, int(shards)) for kind in ("log", "part")]
    sync_s, sync_from = await _sync(connection)
    if sync_s is None and sync:
        sync_s, sync_from = (0.0 if sync == _ALWAYS else 120.0), named_by
    return Facts(
        kind="nats", where=connection.url, deployment=deployment, servers=connection.servers, version=connection.version,
        sync_s=sync_s, sync_from=sync_from,
        in_cluster=connection.in_cluster, payload_max=connection.payload_max, streams=found, missing=missing,
        account=account, clock_s=clock_s,
    )  # fmt: skip


async def _told(connection: Connection, what: str) -> tuple[dict[str, Any], float]:
    """The answer, and by how much the server's clock is ahead: less than half of the way there and back counts as nothing."""
    before, began = time.time(), time.monotonic()
    try:
        heard = await connection.call(f"$JS.API.{what}", b"", ASK_S)
    except Unanswered as error:
        raise StoreUnreachable(
            f"The server {connection.url} does not answer about JetStream ({error}); it may have lost its quorum.",
            url=connection.url,
        ) from None
    took = time.monotonic() - began
    if heard.status == api.NO_RESPONDERS:
        raise JetStreamDisabled(
            f"The server {connection.url} has no JetStream; start it with `nats-server -js`.", url=connection.url
        )
    answer: dict[str, Any] = api.decode(heard.data, dict[str, Any], what)
    try:
        stamp = (
            datetime.datetime.fromisoformat(str(answer["ts"]).rstrip("Z")[:26]).replace(tzinfo=datetime.UTC).timestamp()
        )
    except (KeyError, ValueError):
        return answer, 0.0
    ahead = stamp - (before + took / 2)
    return answer, ahead if abs(ahead) > took / 2 else 0.0


async def _sync(connection: Connection) -> tuple[float | None, str]:
    """The server's own word, if this user may ask for it."""
    try:
        heard = await connection.call("$SYS.REQ.SERVER.PING.JSZ", json.dumps({"config": True}).encode(), SYSTEM_S)
        config = api.decode(heard.data, dict[str, Any], "JSZ")["data"]["config"]
        return (0.0 if config.get("sync_always") else config.get("sync_interval", 0) / 1e9 or 120.0), "the server"
    except (Unanswered, CellError, LookupError, TypeError):
        return None, ""
