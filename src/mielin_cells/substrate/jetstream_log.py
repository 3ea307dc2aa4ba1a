"""`Log` on JetStream: conditional appends, batched direct gets, leader reads, and tails over republished messages."""

from __future__ import annotations

import asyncio
import base64
import json
import zlib
from typing import TYPE_CHECKING, Final

import msgspec

from mielin_cells.errors import CellError, MessageTooLarge, RetryError, StoreUnreachable
from mielin_cells.substrate import jetstream_api as api
from mielin_cells.substrate.jetstream_api import Unanswered
from mielin_cells.substrate.jetstream_tail import JetTail
from mielin_cells.substrate.ports import ENTRY_BYTES_MAX, Conflict, Entry, Outcome, Unknown

if TYPE_CHECKING:
    from mielin_cells.substrate.jetstream import Connection, Heard, Listener

APPEND_S: Final = 5.0
"""An append without an answer for this long is `Unknown`."""
READ_S: Final = 5.0
BATCH: Final = 256
"""Entries asked for at a time: as many as a server may send without waiting for us."""
BATCH_BYTES: Final = 4 * 1024 * 1024
LASTS: Final = 500
"""Subjects in one request for their last entries; the server takes at most 1,024."""
NAMES: Final = 20_000
CLUSTER_CHECK_S: Final = 1.0
"""In a cluster a new listener is known everywhere within milliseconds; a tail reads once more after this."""

PARTS: Final = "part."
"""Subjects of parts: in a stream of their own, which is not republished."""


class JetLog:
    """Subjects are spread over `shards` streams by their hash; parts over as many others."""

    def __init__(self, connection: Connection, deployment: str, shards: int) -> None:
        self._connection = connection
        self._deployment = deployment
        self._shards = shards
        self._tails: dict[JetTail, Listener] = {}

    # ---- places ----------------------------------------------------------------------------------------------

    def place(self, subject: str) -> tuple[str, str]:
        """The stream of a subject, and its name there."""
        kind = "part" if subject.startswith(PARTS) else "log"
        shard = zlib.crc32(api.checked_subject(subject).encode()) % self._shards
        return api.stream_name(self._deployment, kind, shard), f"{self._deployment}.{kind}.{shard}.{subject}"

    # ---- the port --------------------------------------------------------------------------------------------

    async def append(self, subject: str, data: bytes, expect: int | None = None) -> Outcome:
        if len(data) > ENTRY_BYTES_MAX:
            raise MessageTooLarge(
                f"An entry of {len(data)} bytes for {subject!r} is above the limit of {ENTRY_BYTES_MAX}; nothing was "
                "stored. Cut it into parts.",
                limit=ENTRY_BYTES_MAX, size=len(data),
            )  # fmt: skip
        stream, full = self.place(subject)
        try:
            heard = await self._connection.call(
                full, data, APPEND_S, None if expect is None else {api.EXPECT: str(expect)}
            )
        except Unanswered as error:
            return Unknown(str(error))
        if heard.status == api.NO_RESPONDERS:
            raise await self._gone(stream)
        outcome = api.outcome_of(heard.data, subject)
        if outcome is not None:
            return outcome
        last = await self.last(subject)
        return Conflict(last.seq if last is not None else 0)

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        stream, full = self.place(subject)
        entries: list[Entry] = []
        while len(entries) < limit:
            wanted = {
                "seq": after + 1, "next_by_subj": full, "batch": min(BATCH, limit - len(entries)), "max_bytes": BATCH_BYTES,
            }  # fmt: skip
            page, more = await self._batch(stream, wanted, after, subject)
            entries += page
            if not page or not more:
                break
            after = page[-1].seq
        return entries

    async def _batch(
        self, stream: str, wanted: dict[str, object], after: int, subject: str
    ) -> tuple[list[Entry], bool]:
        """One batched direct get: entries in order, and whether there are more."""
        heard = await self._collect(stream, wanted, subject)
        entries: list[Entry] = []
        last, more = 0, False
        for one in heard:
            if one.status:
                more = one.status == api.END_OF_BATCH and one.pending > 0
                break
            if one.seq <= after:
                continue
            if one.previous != last:  # one was lost on its way (the first says 0): what is behind it is read again
                more = True
                break
            entries.append(Entry(one.seq, one.data))
            last = one.seq
        else:
            more = True
        if more and not entries:
            raise StoreUnreachable(
                f"A part of the server's answer about {subject} was lost; try again.", subject=subject
            )
        return entries, more

    async def last(self, subject: str) -> Entry | None:
        """Answered by the stream's leader."""
        stream, full = self.place(subject)
        request = json.dumps({"last_by_subj": full}).encode()
        heard = await self._asked("STREAM.MSG.GET", stream, request, subject)
        answer = api.decode(heard.data, api.GetAnswer, subject)
        if answer.error is not None:
            if answer.error.err_code == api.NO_MESSAGE:
                return None
            raise api.error_of(answer.error, subject, stream)
        if answer.message is None:
            return None
        return Entry(answer.message.seq, base64.b64decode(answer.message.data))

    def tail(self, subject: str, after: int = 0) -> JetTail:
        connection = self._connection
        connection.check()
        _, full = self.place(subject)
        check_at = asyncio.get_running_loop().time() + CLUSTER_CHECK_S if connection.in_cluster else None
        tail = JetTail(subject, after, self.read, self._forget, check_at)

        def receive(heard: Heard) -> None:
            tail.push(Entry(heard.seq, heard.data), heard.previous)

        prefix = f"{self._deployment}.log."
        self._tails[tail] = connection.listen(f"{self._deployment}.live.{full.removeprefix(prefix)}", receive)
        return tail

    def _forget(self, tail: JetTail) -> None:
        listener = self._tails.pop(tail, None)
        if listener is not None:
            listener.close()

    def reconnected(self) -> None:
        for tail in tuple(self._tails):
            tail.look_again()

    def close(self) -> None:
        for tail in tuple(self._tails):
            tail.close()

    async def trim(self, subject: str, before: int) -> None:
        stream, full = self.place(subject)
        if before <= 1:
            return
        request = json.dumps({"filter": full, "seq": before}).encode()
        heard = await self._asked("STREAM.PURGE", stream, request, subject)
        answer = api.decode(heard.data, api.StreamAnswer, subject)
        if answer.error is not None:
            raise api.error_of(answer.error, subject, stream)

    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        """Names from the stream's state, last sequences by batched direct gets."""
        if prefix:
            api.checked_subject(prefix.removesuffix("."))
        kind = "part" if prefix.startswith(PARTS) else "log"
        kinds = (kind,) if prefix.partition(".")[1] else ("log", "part")
        found: list[tuple[str, int]] = []
        for kind in kinds:
            for shard in range(self._shards):
                stream, head = api.stream_name(self._deployment, kind, shard), f"{self._deployment}.{kind}.{shard}."
                names = [name for name in await self._names(stream, head, prefix) if name.startswith(head + prefix)]
                for start in range(0, len(names), LASTS):
                    found += await self._lasts(stream, head, names[start : start + LASTS])
        return sorted(found)

    async def _names(self, stream: str, head: str, prefix: str) -> list[str]:
        words = prefix.rpartition(".")[0]
        names: list[str] = []
        while True:
            request = {"subjects_filter": f"{head}{words + '.' if words else ''}>", "offset": len(names)}
            heard = await self._asked("STREAM.INFO", stream, json.dumps(request).encode(), stream)
            answer = api.decode(heard.data, api.StreamAnswer, stream)
            if answer.error is not None:
                raise api.error_of(answer.error, stream)
            there = answer.state.subjects or {}
            names += there
            if not there or len(names) >= answer.total:
                return names

    async def _lasts(self, stream: str, head: str, names: list[str]) -> list[tuple[str, int]]:
        heard = await self._collect(stream, {"multi_last": names, "batch": len(names)}, stream)
        return [(one.subject.removeprefix(head), one.seq) for one in heard if not one.status]

    # ---- asking ----------------------------------------------------------------------------------------------

    async def _asked(self, what: str, stream: str, data: bytes, subject: str) -> Heard:
        try:
            heard = await self._connection.call(f"$JS.API.{what}.{stream}", data, READ_S)
        except Unanswered as error:
            raise StoreUnreachable(f"The server did not answer about {subject}: {error}.", subject=subject) from None
        if heard.status == api.NO_RESPONDERS:
            raise await self._gone(stream)
        return heard

    async def _collect(self, stream: str, wanted: dict[str, object], subject: str) -> list[Heard]:
        try:
            heard = await self._connection.collect(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(wanted), READ_S)
        except Unanswered as error:
            raise StoreUnreachable(f"The server did not answer about {subject}: {error}.", subject=subject) from None
        status = heard[-1].status
        if status == api.NO_RESPONDERS:
            raise await self._gone(stream)
        if status not in ("", api.END_OF_BATCH, api.NOT_FOUND):
            raise StoreUnreachable(f"The server refused to read {subject}: status {status}.", subject=subject)
        return heard

    async def _gone(self, stream: str) -> CellError:
        """Nobody took a request: is the stream gone, or only without a leader for a moment?"""
        try:
            heard = await self._connection.call(f"$JS.API.STREAM.INFO.{stream}", b"", READ_S)
        except (Unanswered, RetryError) as error:
            return StoreUnreachable(
                f"The server did not take a request for the stream {stream} ({error}); nothing was written. Try again.",
                stream=stream,
            )
        if heard.status == api.NO_RESPONDERS:
            return api.disabled("nobody answers on $JS.API")
        answer = api.decode(heard.data, api.StreamAnswer, stream)
        if answer.error is not None:
            return api.error_of(answer.error, stream)
        return StoreUnreachable(
            f"The stream {stream} has no leader now; nothing was written. Try again.", stream=stream
        )
