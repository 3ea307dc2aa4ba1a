"""The index of who owns what: a stream that the server fills by itself from the ownership records of all agents' logs.

Its entries are named `<deployment>.own.<node>.<agent>`, the newest record of each pair.  No client can publish to it.  It is a copy
that comes after: late by milliseconds, or by seconds while servers restart, and entries of former owners stay in it.  Its name has a
generation, which an entry of the first log stream says.  A deleted index is made anew under the next one, so that a purge that was
meant for the old one finds nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection
from typing import Any, Final

from mielin_cells.errors import InternalError, StoreUnreachable, StreamMissing
from mielin_cells.log.ids import LOGS, is_agents_log
from mielin_cells.substrate.format import FORMAT
from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.api import Unanswered
from mielin_cells.substrate.jetstream.ask import ask, find_stream, raw_stream
from mielin_cells.substrate.jetstream.asking import APPEND_S, READ_S, Asking
from mielin_cells.substrate.jetstream.connection import Connection, Listener
from mielin_cells.substrate.jetstream.heard import Heard
from mielin_cells.substrate.jetstream.places import MARKER, NOBODY, NOTE, OWN, head_of, is_own, node_word, subject_of
from mielin_cells.substrate.ports import Appended, Source

WORDS: Final = 6
"""Dots in `<deployment>.live.<shard>.log.<agent>.own.<node>`."""
TRIES: Final = 5


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
        # Without a start, the server fills a new index from the first source that answers, and of the others takes only what comes
        # later: it does so as soon as one entry replaces another.
        return {"name": api.stream_name(deployment, "log", shard), "opt_start_seq": 1, "subject_transforms": [moved]}

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


def _note(deployment: str) -> str:
    return head_of(deployment, "log", 0) + NOTE


class _Notes(Asking):
    async def newest(self, deployment: str) -> tuple[int, int]:
        first = api.stream_name(deployment, "log", 0)
        one = await self._one(first, {"last_by_subj": _note(deployment)}, first)
        return (int(one.data), one.seq) if one is not None else (0, 0)


async def read_generation(connection: Connection, deployment: str) -> tuple[int, int]:
    """The generation of the deployment's index (0: it has not been made), and the sequence of the entry that says so.

    Any replica may answer, so it may be stale; the append of the next generation is conditional.
    """
    return await _Notes(connection).newest(deployment)


async def make_index(connection: Connection, deployment: str, replicas: int | None = None) -> str | None:
    """Makes the index if it is not there, or does not have so many `replicas`, under the next generation.

    Returns its name if this call made it.  Of several that make it at once, one notes its generation, by a conditional append.  The
    streams' own metadata would not do: a server takes it from whoever writes last, with all that others have changed meanwhile.
    `replicas` None: those of the logs.
    """
    first = api.stream_name(deployment, "log", 0)
    for _ in range(TRIES):
        generation, seq = await read_generation(connection, deployment)
        there = await find_stream(connection, index_name(deployment, generation)) if generation else None
        if there is not None and replicas in (None, there.config.num_replicas):
            return None
        config = (await raw_stream(connection, first))["config"]
        number = await _create(
            connection, deployment, generation + 1, config, replicas or int(config.get("num_replicas", 1))
        )
        try:
            heard = await connection.call(_note(deployment), str(number).encode(), APPEND_S, {api.EXPECT: str(seq)})
        except Unanswered:
            continue  # the next look at it shows what became of it
        outcome = api.outcome_of(heard.data, first)
        if isinstance(outcome, Appended):
            before = json.dumps({"filter": _note(deployment), "seq": outcome.seq}).encode()
            await ask(connection, f"STREAM.PURGE.{first}", before)
            return index_name(deployment, number)
        if (await read_generation(connection, deployment))[0] != number:  # nobody can note it any more
            await ask(connection, f"STREAM.DELETE.{index_name(deployment, number)}")
    raise StoreUnreachable(f"The index of owners of {deployment} is being made by others; try again.")


async def _create(connection: Connection, deployment: str, number: int, log: dict[str, Any], replicas: int) -> int:
    """Creates an index under this generation, or the next one that is free; somebody else may have made the same just now."""
    while True:
        wanted = _config(deployment, number, log, replicas)
        answer = await ask(connection, f"STREAM.CREATE.{wanted['name']}", json.dumps(wanted).encode())
        if answer.error is None:
            return number
        if answer.error.err_code != api.NAME_IN_USE:
            raise api.error_of(answer.error, wanted["name"])
        there = await find_stream(connection, wanted["name"])
        if there is not None and there.config.num_replicas == replicas:
            return number
        number += 1


async def find_index(connection: Connection, deployment: str) -> str:
    """The name of the deployment's index."""
    return index_name(deployment, (await read_generation(connection, deployment))[0])


class Hearer:
    """A subscription to the records that name one owner."""

    def __init__(self, index: Index, listener: Listener, receive: Callable[[str | None], None]) -> None:
        self._index = index
        self._listener = listener
        self.receive = receive

    def close(self) -> None:
        self._listener.close()
        self._index.leave(self)


class Index(Asking):
    """Reads a deployment's index."""

    def __init__(self, connection: Connection, deployment: str, shards: int) -> None:
        super().__init__(connection)
        self._deployment = deployment
        self._shards = shards
        self._name = ""
        self._hearers: dict[Hearer, None] = {}

    async def owned(self, owner: str, source: Source) -> list[str]:
        """An index that was deleted is made anew first: then the answer is partial for a while, as it may be at any time.

        While a server starts it may say for a moment that a stream is gone which it has not loaded yet.
        """
        if source == "logs":
            return await self._list_logs(owner)
        marks = [await self._mark(shard) for shard in range(self._shards)] if source == "settled index" else []
        pause_s = 0.02
        for _ in range(TRIES):
            try:
                return await self._list(owner, await self._reached(marks))
            except StreamMissing:
                self._name = ""
                await make_index(self._connection, self._deployment)
            await asyncio.sleep(pause_s)
            pause_s *= 2
        raise StoreUnreachable(f"The index of owners of {self._deployment} is gone again and again; try again.")

    async def _list_logs(self, owner: str) -> list[str]:
        """By the names in the logs' streams, whose servers look at all of them: 100 µs for 1,000 agents."""
        owned = set[str]()
        for shard in range(self._shards):
            head, tail = head_of(self._deployment, "log", shard), f".{OWN}.{node_word(owner)}"
            stream = api.stream_name(self._deployment, "log", shard)
            owned |= {
                name.removeprefix(head).removesuffix(tail) for name in await self._names(stream, f"{head}{LOGS}*{tail}")
            }
        return sorted(owned)

    async def owned_by_others(self, nodes: Collection[str]) -> list[str]:
        """By the names in the logs' streams, page by page: 1 to 2 µs and 70 bytes each.

        They come in order of name, so those of one log stand together, its ownership records first.
        """
        words, owned, has_owner = {NOBODY, *map(node_word, nodes)}, set[str](), ""
        for shard in range(self._shards):
            head = head_of(self._deployment, "log", shard)
            async for page in self._name_pages(api.stream_name(self._deployment, "log", shard), f"{head}{LOGS}>"):
                for name in page:
                    subject, _, word = name.removeprefix(head).rpartition(f".{OWN}.")
                    if subject:
                        has_owner = subject
                        if word not in words and not is_own(head, name):
                            owned.add(subject)
                    elif (subject := subject_of(name.removeprefix(head))) != has_owner:
                        owned.add(subject)
        return sorted(owned)

    async def _mark(self, shard: int) -> int:
        """Marks where the shard's logs are now; the mark's sequence there.  All connections use the same name."""
        head = head_of(self._deployment, "log", shard)
        mark = f"{head}{LOGS}{MARKER}{shard}.{OWN}.{MARKER}"
        return await self._marked(api.stream_name(self._deployment, "log", shard), mark, mark)

    async def _reached(self, marks: list[int]) -> int:
        """Returns when the index has these marks of the shards, or later ones; its own sequence by then.

        Any replica may answer that, so the list that follows has to be at that sequence as well.
        """
        if not marks:
            return 0
        head, pause_s = f"{self._deployment}.{OWN}.{MARKER}.{MARKER}", 0.005
        until = asyncio.get_running_loop().time() + READ_S
        while True:
            names = [f"{head}{shard}" for shard in range(self._shards)]
            heard = {one.subject: one for one in await self._lasts(await self._found(), names)}
            if all(name in heard and heard[name].source >= mark for name, mark in zip(names, marks, strict=True)):
                return max(one.seq for one in heard.values())
            if asyncio.get_running_loop().time() > until:
                raise StoreUnreachable(f"The index of owners of {self._deployment} is behind; try again.")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.5)

    async def _list(self, owner: str, at_least: int) -> list[str]:
        """From the stream's own list of names: 3 µs each, however many others there are.

        Batched direct gets would give the records, too, and cost more for each entry the more there are: 64 µs of 2,000 entries.
        """
        head = f"{self._deployment}.{OWN}.{node_word(owner)}."
        names = await self._names(await self._found(), f"{head}*", at_least)
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

    def hear(self, owner: str, receive: Callable[[str | None], None]) -> Hearer:
        """By what the logs' streams republish, which does not need the index."""

        def heard(one: Heard) -> None:
            if one.subject.count(".") == WORDS:
                receive(LOGS + one.subject.split(".")[4])

        subject = f"{self._deployment}.live.*.{LOGS}*.{OWN}.{node_word(owner)}"
        hearer = Hearer(self, self._connection.listen(subject, heard), receive)
        self._hearers[hearer] = None
        return hearer

    def leave(self, hearer: Hearer) -> None:
        self._hearers.pop(hearer, None)

    def reconnected(self) -> None:
        for hearer in tuple(self._hearers):
            hearer.receive(None)

    def close(self) -> None:
        for hearer in tuple(self._hearers):
            hearer.close()

    async def _found(self) -> str:
        if not self._name:
            self._name = await find_index(self._connection, self._deployment)
        return self._name
