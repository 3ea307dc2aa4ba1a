"""A deployment's streams: made once, and never in the place of what was lost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from mielin_cells.errors import ConfigError, JetStreamDisabled, ServerTooOld, StoreUnreachable
from mielin_cells.substrate import jetstream_api as api
from mielin_cells.substrate.jetstream_api import Unanswered
from mielin_cells.substrate.ports import ENTRY_BYTES_MAX

if TYPE_CHECKING:
    from mielin_cells.substrate.jetstream import Connection

API_S: Final = 5.0
HEADERS_BYTES: Final = 4096
"""Room that a server must leave for headers above the largest entry."""
SHARDS_MAX: Final = 64
FORMAT: Final = "1"


def check_server(connection: Connection) -> None:
    """Raises `ServerTooOld`, or `ConfigError` if the largest entry does not fit."""
    if api.version_of(connection.version) < api.SERVER_MIN:
        need = ".".join(map(str, api.SERVER_MIN))
        raise ServerTooOld(
            f"The server {connection.url} has version {connection.version}; {need} or newer is needed. Upgrade it.",
            have=connection.version, need=need,
        )  # fmt: skip
    if connection.payload_max < ENTRY_BYTES_MAX + HEADERS_BYTES:
        raise ConfigError(
            f"The server {connection.url} takes messages up to {connection.payload_max} bytes; set its max_payload to at "
            f"least {ENTRY_BYTES_MAX + HEADERS_BYTES} (1 MB is its default).",
            field="max_payload", range=f"at least {ENTRY_BYTES_MAX + HEADERS_BYTES}",
        )  # fmt: skip


async def streams(connection: Connection, deployment: str, shards: int | None, replicas: int) -> int:
    """The number of shards that the deployment has; made with `shards` (or 1) of them if it is new."""
    first = api.stream_name(deployment, "log", 0)
    answer = await _asked(connection, f"STREAM.INFO.{first}", b"")
    if answer.error is not None:
        if answer.error.err_code != api.STREAM_MISSING:
            raise api.error_of(answer.error, first)
        return await _made(connection, deployment, shards, replicas)
    have = _shards_of(answer, first, shards)
    for name in _names(deployment, have)[:-1]:
        found = await _asked(connection, f"STREAM.INFO.{name}", b"")
        if found.error is not None:
            raise api.error_of(found.error, name)
    return have


async def _made(connection: Connection, deployment: str, shards: int | None, replicas: int) -> int:
    count = shards or 1
    names = _names(deployment, count)
    for name in names:
        made = await _asked(connection, f"STREAM.CREATE.{name}", _config(deployment, name, count, replicas))
        if made.error is not None:
            if made.error.err_code != api.NAME_IN_USE:
                raise api.error_of(made.error, name)
            # Somebody makes the deployment now, or was interrupted: with another number of shards, or of copies.
            made = await _asked(connection, f"STREAM.INFO.{name}", b"")
            if made.error is not None:
                raise api.error_of(made.error, name)
            have = _shards_of(made, name, shards)
            if have != count:
                return await _made(connection, deployment, have, replicas)
        if name != names[-1] and made.state.messages:
            # Nothing is written before the first stream is there: somebody has just made it, or it was deleted.
            found = await _asked(connection, f"STREAM.INFO.{names[-1]}", b"")
            if found.error is not None:
                raise api.error_of(found.error, names[-1])
    return count


def _names(deployment: str, shards: int) -> list[str]:
    """In the order in which they are made: the first stream is the last, so once it is there, all are."""
    return [api.stream_name(deployment, kind, n) for n in reversed(range(shards)) for kind in ("part", "log")]


def _shards_of(answer: api.StreamAnswer, name: str, wanted: int | None) -> int:
    """The number that the deployment was made with.  Raises `ConfigError` if it is not `wanted`."""
    metadata = answer.config.metadata
    if metadata.get("mielin.format") != FORMAT or not metadata.get("mielin.shards", "").isdigit():
        raise ConfigError(
            f"The stream {name} is not one of this system, or of another version (format "
            f"{metadata.get('mielin.format')!r}, this version reads {FORMAT!r}); use another deployment name.",
            field="deployment", range="a name of its own",
        )  # fmt: skip
    have = int(metadata["mielin.shards"])
    if wanted is not None and have != wanted:
        raise ConfigError(
            f"This deployment was made with {have} shards, {wanted} were asked for, and the number is fixed; leave it out.",
            field="shards", range=str(have),
        )  # fmt: skip
    return have


def _config(deployment: str, name: str, shards: int, replicas: int) -> bytes:
    _, kind, shard = name.split("-")
    subjects = f"{deployment}.{kind}.{shard}.>"
    config: dict[str, Any] = {
        "name": name, "subjects": [subjects], "storage": "file", "retention": "limits",
        "discard": "new",  # full is an error, never an old record dropped
        "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msg_size": -1, "num_replicas": replicas,
        "allow_direct": True, "deny_delete": True, "duplicate_window": 1_000_000_000,
        "metadata": {"mielin.shards": str(shards), "mielin.format": FORMAT},
    }  # fmt: skip
    if kind == "log":
        config["republish"] = {"src": subjects, "dest": f"{deployment}.live.{shard}.>"}
    return json.dumps(config).encode()


async def _asked(connection: Connection, what: str, data: bytes) -> api.StreamAnswer:
    try:
        heard = await connection.call(f"$JS.API.{what}", data, API_S)
    except Unanswered as error:
        connection.check()
        raise StoreUnreachable(
            f"The server {connection.url} does not answer about its streams ({error}); try again.", url=connection.url
        ) from None
    if heard.status == api.NO_RESPONDERS:
        raise JetStreamDisabled(
            f"The server {connection.url} has no JetStream; start it with `nats-server -js`.", url=connection.url
        )
    answer: api.StreamAnswer = api.decode(heard.data, api.StreamAnswer, what)
    return answer
