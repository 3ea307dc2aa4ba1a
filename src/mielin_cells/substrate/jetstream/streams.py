"""A deployment's streams: they are made once, and a lost one is never made again."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Final, NamedTuple

from mielin_cells.errors import ConfigError, NotConnected, ServerTooOld
from mielin_cells.substrate.format import FORMAT, check_format
from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.ask import ask, find_first, raw_stream, stream
from mielin_cells.substrate.jetstream.connection import Connection
from mielin_cells.substrate.jetstream.index import find_index, make_index
from mielin_cells.substrate.jetstream.places import TOPIC
from mielin_cells.substrate.jetstream.topics import MADE, has_topics, make_topics
from mielin_cells.substrate.ports import ENTRY_BYTES_MAX

LED_S: Final = 10.0
"""A stream whose copies change may be without a leader for a moment."""
LOOK_S: Final = 0.1
HEADERS_BYTES: Final = 4096
"""Bytes that a server must allow for headers on top of the largest entry."""
SHARDS_MAX: Final = 64
REPLICAS_MAX: Final = 5
"""The server's own limit."""
REPLICAS_WANTED: Final = 3
"""Replicas of a new deployment where there are enough servers, of which one may then be lost."""
_TAG: Final = re.compile(r"[^\s,!]{1,255}")
_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,32}")


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


class StreamOptions(NamedTuple):
    """What the caller of `JetStream.open` asks of a deployment's streams.

    None takes what an existing deployment has, and the default for one that is made.
    """

    shards: int | None = None
    replicas: int | None = None
    makes: bool = True
    """A deployment that is not there is made."""
    default_shards: int = 1
    """Of a deployment that is made."""
    tags: tuple[str, ...] = ()
    """Servers that have all of these keep the streams; (): any."""


class Layout(NamedTuple):
    """What the deployment has."""

    shards: int
    replicas: int
    is_clustered: bool
    """Several servers may have its streams, whatever the server of this connection says: a leaf server calls itself a cluster."""


def check_options(deployment: str, options: StreamOptions) -> None:
    """Raises `ConfigError`."""
    if type(deployment) is not str or _NAME.fullmatch(deployment) is None:
        raise ConfigError(
            f"deployment is {deployment!r}; wanted: up to 32 letters, digits and _.", field="deployment", range="a name"
        )
    for field, value, most in (("shards", options.shards, SHARDS_MAX), ("replicas", options.replicas, REPLICAS_MAX)):
        if value is not None and not (type(value) is int and 1 <= value <= most):
            raise ConfigError(f"{field} is {value!r}; it is 1 to {most}.", field=field, range=f"1 to {most}")
    for tag in options.tags:
        if type(tag) is not str or _TAG.fullmatch(tag) is None:
            raise ConfigError(
                f"placement_tags: {tag!r} is no tag of a server; wanted: a text without spaces, as in its server_tags.",
                field="placement_tags", range="tags of servers",
            )  # fmt: skip


async def streams(connection: Connection, deployment: str, options: StreamOptions) -> Layout:
    """What the deployment has; a missing one is created.  Raises `ConfigError` if it differs from `options`."""
    first = api.stream_name(deployment, "log", 0)
    answer = await find_first(connection, first)
    if answer is None:
        if not options.makes:
            raise NotConnected(
                f"There is no deployment {deployment!r} on the server {connection.url}; its first node makes it (`mielin up`, "
                "`mielin node`), or give another --deployment.", url=connection.url, deployment=deployment,
            )  # fmt: skip
        return await _make(connection, deployment, options)
    have, replicas = shards_of(answer, first, options.shards), _replicas_of(answer, first, options.replicas)
    _check_tags(answer, first, options.tags)
    if options.makes:
        await _make_topics(connection, deployment, have, replicas, _tags_of(answer))
    for name in (await _kept(connection, answer, deployment, have))[:-1]:
        replicas = min(replicas, _replicas_of(await stream(connection, name), name, options.replicas))
    if options.makes:
        await make_index(connection, deployment)
    return Layout(have, replicas, answer.is_clustered)


async def _kept(connection: Connection, answer: api.StreamAnswer, deployment: str, shards: int) -> list[str]:
    """The names of the streams that the deployment has."""
    has = await has_topics(connection, deployment, answer.config.metadata)
    return [name for name in names(deployment, shards) if has or f"-{TOPIC}-" not in name]


async def _make(connection: Connection, deployment: str, options: StreamOptions) -> Layout:
    count, replicas = (
        options.shards or options.default_shards,
        options.replicas or REPLICAS_WANTED,
    )
    kept, is_clustered = [], False
    wanted = names(deployment, count)
    for name in wanted:
        answer = await _create(connection, deployment, name, count, replicas, options.tags)
        if answer.error is not None and options.replicas is None and replicas > 1 and _is_too_few(answer.error):
            replicas = 1  # a server alone, a cluster of two, or one of which only some have JetStream
            answer = await _create(connection, deployment, name, count, replicas, options.tags)
        if answer.error is not None:
            if answer.error.err_code != api.NAME_IN_USE:
                raise api.error_of(answer.error, name)
            # Somebody makes the deployment now, or was interrupted: with another number of shards, or of copies.
            answer = await stream(connection, name)
            have = shards_of(answer, name, options.shards)
            replicas = _replicas_of(answer, name, options.replicas)
            _check_tags(answer, name, options.tags)
            if have != count:
                return await _make(connection, deployment, options._replace(shards=have, replicas=replicas))
        is_clustered = is_clustered or answer.is_clustered
        kept.append(answer.config.num_replicas)
        if name != wanted[-1] and answer.state.messages:
            # Nothing is written before the first stream is there: somebody has just made it, or it was deleted.
            await stream(connection, wanted[-1])
    await make_index(connection, deployment)
    return Layout(count, min(kept), is_clustered)


async def _make_topics(
    connection: Connection, deployment: str, shards: int, replicas: int, tags: tuple[str, ...]
) -> None:
    await make_topics(
        connection, deployment, lambda name: _create(connection, deployment, name, shards, replicas, tags)
    )


async def _create(
    connection: Connection, deployment: str, name: str, shards: int, replicas: int, tags: tuple[str, ...]
) -> api.StreamAnswer:
    config = _config(deployment, name, shards, replicas, tags)
    answer: api.StreamAnswer = await ask(connection, f"STREAM.CREATE.{name}", config)
    return answer


def _is_too_few(error: api.ApiError) -> bool:
    return error.err_code in api.REPLICAS_REFUSED and api.OFFLINE not in error.description


def names(deployment: str, shards: int) -> list[str]:
    """In the order in which they are made: the first stream is the last, so once it is there, all are."""
    return [api.stream_name(deployment, kind, n) for n in reversed(range(shards)) for kind in ("part", TOPIC, "log")]


def shards_of(answer: api.StreamAnswer, name: str, wanted: int | None) -> int:
    """The number that the deployment was made with.  Raises `ConfigError` if it is not `wanted`."""
    metadata = answer.config.metadata
    form, shards = metadata.get("mielin.format", ""), metadata.get("mielin.shards", "")
    if not (form.isdecimal() and shards.isdecimal()):
        raise ConfigError(
            f"The stream {name} belongs to another system; name another deployment.",
            field="deployment",
            range="a name of its own",
        )
    check_format(f"The stream {name}", int(form), "another deployment (--deployment)")
    have = int(shards)
    if wanted is not None and have != wanted:
        raise ConfigError(
            f"This deployment was made with {have} shard{'s' if have > 1 else ''}, {wanted} were asked for, and the number is fixed; "
            "leave it out, or use another deployment name.", field="shards", range=str(have),
        )  # fmt: skip
    return have


def _replicas_of(answer: api.StreamAnswer, name: str, wanted: int | None) -> int:
    """The copies that are kept of the stream.  Raises `ConfigError` if it is not `wanted`."""
    have = answer.config.num_replicas
    if wanted is not None and have != wanted:
        raise ConfigError(
            f"This deployment keeps {have} replica{'s' if have > 1 else ''} (stream {name}), {wanted} were asked for; "
            f"`mielin doctor --fix --replicas {wanted}` changes it, or leave it out.",
            field="replicas", range=str(have), have=have,
        )  # fmt: skip
    return have


def _tags_of(answer: api.StreamAnswer) -> tuple[str, ...]:
    return tuple(answer.config.placement.tags) if answer.config.placement is not None else ()


def _check_tags(answer: api.StreamAnswer, name: str, wanted: tuple[str, ...]) -> None:
    """Raises `ConfigError` if the stream is placed by others than these tags."""
    have = _tags_of(answer)
    if wanted and {tag.lower() for tag in have} != {tag.lower() for tag in wanted}:
        is_so = f"by the tags {', '.join(have)}" if have else "without tags"
        raise ConfigError(
            f"This deployment is placed {is_so} (stream {name}), and {', '.join(wanted)} were asked for; leave them out, "
            "or use another deployment name.", field="placement_tags", range=", ".join(have),
        )  # fmt: skip


def _config(deployment: str, name: str, shards: int, replicas: int, tags: tuple[str, ...]) -> bytes:
    _, kind, shard = name.split("-")
    subjects = f"{deployment}.{kind}.{shard}.>"
    config: dict[str, Any] = {
        "name": name, "subjects": [subjects], "storage": "file", "retention": "limits",
        "discard": "new",  # full is an error, never an old record dropped
        "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msg_size": -1, "num_replicas": replicas,
        "allow_direct": True, "deny_delete": True, "duplicate_window": 1_000_000_000,
        "metadata": {"mielin.shards": str(shards), "mielin.format": str(FORMAT)},
    }  # fmt: skip
    if tags:
        config["placement"] = {"tags": [*tags]}
    if kind == "log":
        if shard == "0":
            config["metadata"][MADE] = "1"
        config["republish"] = {"src": subjects, "dest": f"{deployment}.live.{shard}.>"}
    if kind == TOPIC:
        config["republish"] = {"src": subjects, "dest": f"{deployment}.live.{shard}.>", "headers_only": True}
    return json.dumps(config).encode()


async def with_replicas(connection: Connection, deployment: str, replicas: int | None) -> dict[str, tuple[int, int]]:
    """Changes the copies of each stream; before and after, by stream that changed."""
    first = api.stream_name(deployment, "log", 0)
    wanted = replicas or REPLICAS_WANTED
    changed: dict[str, tuple[int, int]] = {}
    answer = await stream(connection, first)
    shards = shards_of(answer, first, None)
    await _make_topics(connection, deployment, shards, answer.config.num_replicas, _tags_of(answer))
    for name in names(deployment, shards):
        config = (await raw_stream(connection, name))["config"]  # all of it, also what this version does not know
        have = int(config.get("num_replicas", 1))
        if have == wanted or (replicas is None and have > wanted):
            continue
        changes = json.dumps({**config, "num_replicas": wanted}).encode()
        done = await ask(connection, f"STREAM.UPDATE.{name}", changes)
        if done.error is not None and replicas is None and _is_too_few(done.error):
            continue  # there are not so many servers, and nobody has asked for so many copies
        if done.error is not None:
            raise api.error_of(done.error, name)
        changed[name] = have, wanted
    for name in changed:
        await _led(connection, name)
    await _match_index(connection, deployment, changed)
    return changed


async def _match_index(connection: Connection, deployment: str, changed: dict[str, tuple[int, int]]) -> None:
    """Makes an index with as many copies as the logs have: the server refuses to change those of one that it writes unsynced."""
    before = await make_index(connection, deployment) or await find_index(connection, deployment)
    had = int((await raw_stream(connection, before))["config"].get("num_replicas", 1))
    have = int((await raw_stream(connection, api.stream_name(deployment, "log", 0)))["config"].get("num_replicas", 1))
    made = await make_index(connection, deployment, have)
    if made is not None:
        await _led(connection, made)
        await ask(connection, f"STREAM.DELETE.{before}")
        changed[made] = had, have


async def _led(connection: Connection, name: str) -> None:
    """Returns when the stream has a leader again, or after a while: then its health tells."""
    for _ in range(int(LED_S / LOOK_S)):
        answer = await raw_stream(connection, name)
        if (answer.get("cluster") or {"leader": "this one"}).get("leader"):
            return
        await asyncio.sleep(LOOK_S)
