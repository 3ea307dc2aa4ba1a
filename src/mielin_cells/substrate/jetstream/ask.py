"""Questions to JetStream's API."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import msgspec

from mielin_cells.errors import JetStreamDisabled, StoreUnreachable
from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.api import Unanswered
from mielin_cells.substrate.jetstream.connection import Connection

API_S: Final = 5.0
LEAF_S: Final = 1.0
"""A leaf server that has just started has no JetStream until it has found its hub."""
LOOK_S: Final = 0.05


async def ask(connection: Connection, what: str, data: bytes = b"", kind: Any = api.StreamAnswer) -> Any:
    """The decoded answer.  Raises `StoreUnreachable` if there is none, `JetStreamDisabled` if nobody serves the API."""
    try:
        heard = await connection.call(f"{connection.api}{what}", data, API_S)
    except Unanswered as error:
        connection.check()
        raise StoreUnreachable(
            f"The server {connection.url} does not answer about its streams ({error}); it may have lost its quorum. Try again.",
            url=connection.url,
        ) from None
    if heard.status == api.NO_RESPONDERS:
        raise JetStreamDisabled(
            f"The server {connection.url} has no JetStream; start it with `nats-server -js`. If it is a leaf server, see to its hub, "
            "and give the hub's JetStream domain with --domain.",
            url=connection.url,
        )  # fmt: skip
    return api.decode(heard.data, kind, what)


async def find_first(connection: Connection, name: str) -> api.StreamAnswer | None:
    """As `find_stream`, on a connection that is new."""
    until = asyncio.get_running_loop().time() + LEAF_S
    while asyncio.get_running_loop().time() < until:
        with contextlib.suppress(JetStreamDisabled):
            return await find_stream(connection, name)
        await asyncio.sleep(LOOK_S)
    return await find_stream(connection, name)


async def find_stream(connection: Connection, name: str) -> api.StreamAnswer | None:
    """None if there is no stream of this name.  Raises any other error that the answer carries."""
    answer: api.StreamAnswer = await ask(connection, f"STREAM.INFO.{name}")
    if answer.error is None:
        return answer
    if answer.error.err_code == api.STREAM_MISSING:
        return None
    raise api.error_of(answer.error, name)


async def stream(connection: Connection, name: str) -> api.StreamAnswer:
    """Raises the error that the answer carries."""
    answer: api.StreamAnswer = await ask(connection, f"STREAM.INFO.{name}")
    if answer.error is not None:
        raise api.error_of(answer.error, name)
    return answer


async def raw_stream(connection: Connection, name: str) -> dict[str, Any]:
    """All that the server says of the stream, also what this version does not know.  Raises as `stream`."""
    answer: dict[str, Any] = await ask(connection, f"STREAM.INFO.{name}", b"", dict[str, Any])
    if answer.get("error"):
        raise api.error_of(msgspec.convert(answer["error"], api.ApiError), name)
    return answer
