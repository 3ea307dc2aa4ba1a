"""Questions to JetStream's API."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from mielin_cells.errors import JetStreamDisabled, StoreUnreachable
from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.api import Unanswered
from mielin_cells.substrate.jetstream.connection import Connection

API_S: Final = 5.0


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
            f"The server {connection.url} has no JetStream; start it with `nats-server -js`.", url=connection.url
        )
    return api.decode(heard.data, kind, what)


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
