"""The index of who owns what: a stream that the server fills by itself from the ownership records of all agents' logs.

Its entries are named `<deployment>.own.<node>.<agent>`, the newest record of each pair.  No client can publish to it.  It is a copy
that comes after: late by milliseconds, or by seconds while servers restart, and entries of former owners stay in it.  Its name has a
generation, which the first log stream's metadata says.  A deleted index is made anew under the next one, so that a purge that was
meant for the old one finds nothing.
"""

from __future__ import annotations

import json
from typing import Any, Final

from mielin_cells.errors import InternalError, StreamMissing
from mielin_cells.log.ids import LOGS, is_agents_log
from mielin_cells.substrate.format import FORMAT
from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.ask import ask, find_stream, raw_stream
from mielin_cells.substrate.jetstream.asking import Asking
from mielin_cells.substrate.jetstream.connection import Connection
from mielin_cells.substrate.jetstream.places import OWN, head_of, node_word

GENERATION: Final = "mielin.own"
"""Which index is the deployment's, in the metadata of its first log stream; 0: it has not been made yet."""


def index_name(deployment: str, generation: int) -> str:
    return api.stream_name(deployment, OWN, generation)


def _config(deployment: str, generation: int, log: dict[str, Any], replicas: int) -> dict[str, Any]:
    """For a deployment whose first log stream is configured like this."""
    shards = int(log["metadata"]["mielin.shards"])

    def source(shard: int) -> dict[str, Any]:
        moved = {
            "src": f"{head_of(deployment, 'log', shard)}{LOGS}*.{OWN}.*",
            "dest": f"{deployment}.{OWN}.{{{{wildcard(2)}}}}.{{{{wildcard(1)}}}}",
        }
        return {"name": api.stream_name(deployment, "log", shard), "subject_transforms": [moved]}

    # It can be made anew from the logs, and a server that stops takes in again what it had not written: so of one copy it writes
    # without waiting for the disk.  With a sync for each, a synced server spent as much on an index entry as on the record itself.
    persist = {"persist_mode": "async"} if replicas == 1 else {}
    return {
        "name": index_name(deployment, generation), **persist, "sources": [source(shard) for shard in range(shards)],
        "storage": "file", "retention": "limits", "discard": "old", "max_msgs_per_subject": 1,
        "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msg_size": -1,
        "num_replicas": replicas, "placement": log.get("placement"),
        "allow_direct": True, "deny_delete": True, "duplicate_window": 1_000_000_000,
        "metadata": {"mielin.shards": str(shards), "mielin.format": str(FORMAT)},
    }  # fmt: skip


def generation_of(config: dict[str, Any]) -> int:
    text = str(config.get("metadata", {}).get(GENERATION, ""))
    return int(text) if text.isdecimal() else 0


async def make_index(connection: Connection, deployment: str, replicas: int | None = None) -> str | None:
    """Makes the index if it is not there, or does not have so many `replicas`, under the next generation.

    Returns its name if this call made it.  Of several that make it at once all make the same one.  `replicas` None: those of the logs.
    """
    first = api.stream_name(deployment, "log", 0)
    config = (await raw_stream(connection, first))["config"]
    generation = generation_of(config)
    there = await find_stream(connection, index_name(deployment, generation)) if generation else None
    if there is not None and replicas in (None, there.config.num_replicas):
        return None
    wanted = _config(deployment, generation + 1, config, replicas or int(config.get("num_replicas", 1)))
    answer = await ask(connection, f"STREAM.CREATE.{wanted['name']}", json.dumps(wanted).encode())
    if answer.error is not None and answer.error.err_code != api.NAME_IN_USE:
        raise api.error_of(answer.error, wanted["name"])
    changed = {**config, "metadata": {**config["metadata"], GENERATION: str(generation + 1)}}
    answer = await ask(connection, f"STREAM.UPDATE.{first}", json.dumps(changed).encode())
    if answer.error is not None:
        raise api.error_of(answer.error, first)
    return str(wanted["name"])


async def find_index(connection: Connection, deployment: str) -> str:
    """The name of the deployment's index, as the first log stream says."""
    first = api.stream_name(deployment, "log", 0)
    return index_name(deployment, generation_of((await raw_stream(connection, first))["config"]))


class Index(Asking):
    """Reads a deployment's index."""

    def __init__(self, connection: Connection, deployment: str) -> None:
        super().__init__(connection)
        self._deployment = deployment
        self._name = ""

    async def owned(self, owner: str) -> list[str]:
        """Made anew first if it was deleted: then the answer is partial for a while, as it may be at any time."""
        try:
            return await self._list(owner)
        except StreamMissing:
            self._name = ""
            await make_index(self._connection, self._deployment)
            return await self._list(owner)

    async def _list(self, owner: str) -> list[str]:
        """From the stream's own list of names: 3 µs each, however many others there are.

        Batched direct gets would give the records, too, and cost more for each entry the more there are: 64 µs of 2,000 entries.
        """
        head = f"{self._deployment}.{OWN}.{node_word(owner)}."
        names = await self._names(await self._found(), f"{head}*")
        return sorted(LOGS + name.removeprefix(head) for name in names)

    async def forget(self, owner: str, subject: str, seq: int) -> None:
        """By the entry's own sequence in this very index: an entry that comes meanwhile is behind that, and stays."""
        if not is_agents_log(subject):
            raise InternalError(f"{subject!r} is no agent's log; nobody owns it.")
        entry = f"{self._deployment}.{OWN}.{node_word(owner)}.{subject.removeprefix(LOGS)}"
        name = await self._found()
        try:
            found = await self._one(name, {"last_by_subj": entry}, subject)
        except StreamMissing:
            self._name = ""
            return
        if found is not None and found.source < seq:
            await self._purge(name, entry, found.seq + 1, subject)

    async def _found(self) -> str:
        if not self._name:
            self._name = await find_index(self._connection, self._deployment)
        return self._name
