"""`Log` on JetStream: conditional appends, batched direct gets, leader reads, and tails over republished messages."""

from __future__ import annotations

import asyncio
import base64
import json
import zlib
from collections.abc import Sequence
from typing import Final

import msgspec

from mielin_cells.errors import CellError, MessageTooLarge, RetryError, StoreUnreachable
from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.api import Unanswered
from mielin_cells.substrate.jetstream.connection import Connection, Listener
from mielin_cells.substrate.jetstream.heard import Heard
from mielin_cells.substrate.jetstream.tail import JetTail
from mielin_cells.substrate.ports import ENTRY_BYTES_MAX, Appended, Conflict, Entry, Outcome, Unknown
from mielin_cells.substrate.tail import Cut

APPEND_S: Final = 5.0
"""An append without an answer for this long is `Unknown`."""
READ_S: Final = 5.0
BATCH: Final = 32
"""Entries asked for at a time.  A server holds its stream for as long as it reads: with 256 the appends of others waited 3 to 5 ms."""
NEAR: Final = 500
"""A server finds a subject's next entry by looking at every entry between, some 50 ns each.  So far it is read forward; what is
further is read from its end back, each entry by the sequence that its successor was appended behind: about 10 µs each."""
FEW: Final = 4
"""Entries that were appended without a condition and are far are read one by one, so many: of a batch the server counts first what
follows, which looks at every entry once more."""
LOOKS: Final = 5_000
"""Entries between that a server looks at in the time of one request.  Reading back ends when it has cost what reading forward would:
a log may have more entries than are asked for, and then all that was read from its end is of no use."""
BACK_MIN: Final = 16
BATCH_BYTES: Final = 4 * 1024 * 1024
LASTS: Final = 500
"""Subjects in one request for their last entries; the server takes at most 1,024."""
NAMES: Final = 20_000
CLUSTER_CHECK_S: Final = 1.0
"""In a cluster a new listener is known everywhere within milliseconds; a tail reads once more after this."""

MARK: Final = "mark"
"""Of each stream, the subject behind which a settled read looks (`JetLog.settled`)."""
MARKS_MAX: Final = 100

PARTS: Final = "part."
"""Subjects of parts: in a stream of their own, which is not republished."""


class JetLog:
    """Subjects are spread over `shards` streams by their hash; parts over as many others."""

    def __init__(self, connection: Connection, deployment: str, shards: int) -> None:
        self._connection = connection
        self._deployment = deployment
        self._shards = shards
        self._tails: dict[JetTail, Listener] = {}
        self._marks = 0
        self._newest: dict[str, int] = {}
        """By stream, the highest sequence that was heard of."""
        self._reconnects = 0

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
        if isinstance(outcome := api.outcome_of(heard.data, subject), Appended):
            self._saw(stream, outcome.seq)
        if outcome is not None:
            return outcome
        last = await self.last(subject)
        return Conflict(last.seq if last is not None else 0)

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        stream, full = self.place(subject)
        if limit == 1:
            one = await self._one(stream, {"seq": after + 1, "next_by_subj": full}, subject)
            return [Entry(one.seq, one.data)] if one is not None else []
        entries: list[Entry] = []
        clock = asyncio.get_running_loop().time
        until, far = clock() + READ_S, self._newest.get(stream, after + NEAR) - after
        if far >= NEAR:
            last = await self._one(stream, {"last_by_subj": full}, subject)
            if last is None or last.seq <= after:
                return []
            if last.expected is not None:
                most = min(limit, max(BACK_MIN, far * limit // (2 * BATCH * LOOKS)))
                entries_back = await self._back(stream, full, after, most, last, until)
                if entries_back is not None:
                    return entries_back
            else:  # mail, which is appended without a condition
                while len(entries) < min(FEW, limit):
                    one = await self._one(stream, {"seq": after + 1, "next_by_subj": full}, subject)
                    if one is None:
                        raise StoreUnreachable(
                            f"A replica that is behind answered about {subject}; try again.", subject=subject
                        )
                    entries.append(Entry(one.seq, one.data))
                    after = one.seq
                    if after >= last.seq:
                        return entries
        while len(entries) < limit:
            wanted = {
                "seq": after + 1, "next_by_subj": full, "batch": min(BATCH, limit - len(entries)), "max_bytes": BATCH_BYTES,
            }  # fmt: skip
            page, more = await self._batch(stream, wanted, after, subject)
            entries += page
            if not page or not more:
                break
            if clock() > until:
                return Cut(entries)
            after = page[-1].seq
        return entries

    async def _back(
        self, stream: str, full: str, after: int, most: int, last: Heard, until: float
    ) -> list[Entry] | None:
        """All entries behind `after`, read from the last one back; None if that does not lead there, or not in time."""
        entries: list[Entry] = []
        one, size = last, 0
        while True:
            size += len(one.data)
            entries.append(Entry(one.seq, one.data))
            before = one.expected
            if before is None or before >= one.seq or size > BATCH_BYTES:
                return None
            if before <= after:
                return entries[::-1]
            if len(entries) == most or asyncio.get_running_loop().time() > until:
                return None
            earlier = await self._one(stream, {"seq": before}, full)
            if earlier is None or earlier.subject != full:  # trimmed, or on its way to the replica that answers
                return None
            one = earlier

    async def _one(self, stream: str, wanted: dict[str, object], subject: str) -> Heard | None:
        """One entry by a direct get, which any replica may answer."""
        heard = await self._request(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(wanted), subject)
        if heard.status == api.NOT_FOUND:
            return None
        await self._check(heard.status, stream, subject)
        self._saw(stream, heard.seq)
        return heard

    def _saw(self, stream: str, seq: int) -> None:
        if seq > self._newest.get(stream, 0):
            self._newest[stream] = seq

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
            self._saw(stream, last)
        else:
            more = True
        if more and not entries:
            raise StoreUnreachable(
                f"A part of the server's answer about {subject} was lost; try again.", subject=subject
            )
        return entries, more

    async def last(self, subject: str) -> Entry | None:
        """Answered by the stream's leader, or by one that has been cut off and does not know it yet."""
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

    async def settled(self, subject: str) -> Entry | None:
        """In a cluster a mark is appended to the stream, which a majority stores behind all that was acknowledged before.

        A replica that has the mark has all of that, too: of the one that answers, both are asked for at once.
        """
        if not self._connection.in_cluster:
            return await self.last(subject)
        stream, full = self.place(subject)
        mark = full.removesuffix(subject) + MARK
        since = await self._marked(mark, subject)
        until, pause_s = asyncio.get_running_loop().time() + READ_S, 0.01
        while True:
            heard = await self._lasts(stream, [mark, full])
            if any(one.subject == mark and one.seq >= since for one in heard):
                return next((Entry(one.seq, one.data) for one in heard if one.subject == full), None)
            if asyncio.get_running_loop().time() > until:
                raise StoreUnreachable(
                    f"Only replicas that are behind answered about {subject}; try again.", subject=subject
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.5)

    async def _marked(self, mark: str, subject: str) -> int:
        """The sequence of a new mark; older ones are removed now and then."""
        try:
            heard = await self._connection.call(mark, b"", APPEND_S)
        except Unanswered as error:
            raise StoreUnreachable(f"The server did not answer about {subject}: {error}.", subject=subject) from None
        if heard.status == api.NO_RESPONDERS:
            raise await self._gone(self.place(subject)[0])
        outcome = api.outcome_of(heard.data, subject)
        if not isinstance(outcome, Appended):
            raise StoreUnreachable(f"The server did not answer about {subject}; try again.", subject=subject)
        self._marks += 1
        if self._marks % MARKS_MAX == 0:
            request = json.dumps({"filter": mark, "seq": outcome.seq}).encode()
            await self._asked("STREAM.PURGE", self.place(subject)[0], request, subject)
        return outcome.seq

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        """By batched direct gets, which any replica may answer."""
        places: dict[str, dict[str, str]] = {}
        for subject in subjects:
            stream, full = self.place(subject)
            places.setdefault(stream, {})[full] = subject
        last: dict[str, Entry] = {}
        for stream, names in places.items():
            wanted = list(names)
            if len(wanted) == 1:
                one = await self._one(stream, {"last_by_subj": wanted[0]}, names[wanted[0]])
                if one is not None:
                    last[names[wanted[0]]] = Entry(one.seq, one.data)
                continue
            for start in range(0, len(wanted), LASTS):
                for one in await self._lasts(stream, wanted[start : start + LASTS]):
                    if one.subject in names:
                        last[names[one.subject]] = Entry(one.seq, one.data)
        return last

    def tail(self, subject: str, after: int = 0) -> JetTail:
        connection = self._connection
        connection.check()
        stream, full = self.place(subject)
        check_at = asyncio.get_running_loop().time() + CLUSTER_CHECK_S if connection.in_cluster else None
        tail = JetTail(subject, after, self.read, self._forget, check_at)

        def receive(heard: Heard) -> None:
            self._saw(stream, heard.seq)
            tail.push(Entry(heard.seq, heard.data), heard.previous)

        prefix = f"{self._deployment}.log."
        self._tails[tail] = connection.listen(f"{self._deployment}.live.{full.removeprefix(prefix)}", receive)
        return tail

    def _forget(self, tail: JetTail) -> None:
        if (listener := self._tails.pop(tail, None)) is not None:
            listener.close()

    def reconnected(self) -> None:
        self._reconnects += 1
        for tail in tuple(self._tails):
            tail.look_again()

    def close(self) -> None:
        for tail in tuple(self._tails):
            tail.close()

    async def trim(self, subject: str, before: int) -> None:
        stream, full = self.place(subject)
        if before <= 1:
            return
        await self._stream("STREAM.PURGE", stream, {"filter": full, "seq": before}, subject)

    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        """Names from the stream's state, last sequences by batched direct gets."""
        if prefix:
            api.checked_subject(prefix.removesuffix("."))
        kind = "part" if prefix.startswith(PARTS) else "log"
        kinds = (kind,) if prefix.partition(".")[1] else ("log", "part")
        ends: list[tuple[str, int]] = []
        for kind in kinds:
            for shard in range(self._shards):
                stream, head = api.stream_name(self._deployment, kind, shard), f"{self._deployment}.{kind}.{shard}."
                names = [name for name in await self._names(stream, head, prefix) if name.startswith(head + prefix)]
                for start in range(0, len(names), LASTS):
                    lasts = await self._lasts(stream, names[start : start + LASTS])
                    ends += [(one.subject.removeprefix(head), one.seq) for one in lasts]
        return sorted(ends)

    async def position(self) -> tuple[int, ...]:
        """Of each stream its last sequence, as its leader answers."""
        streams = [api.stream_name(self._deployment, "log", shard) for shard in range(self._shards)]
        reconnects = self._reconnects
        return reconnects, *[
            (await self._stream("STREAM.INFO", stream, {}, stream)).state.last_seq for stream in streams
        ]

    async def _stream(self, what: str, stream: str, wanted: dict[str, object], subject: str) -> api.StreamAnswer:
        heard = await self._asked(what, stream, json.dumps(wanted).encode(), subject)
        answer: api.StreamAnswer = api.decode(heard.data, api.StreamAnswer, subject)
        if answer.error is not None:
            raise api.error_of(answer.error, subject, stream)
        return answer

    async def _names(self, stream: str, head: str, prefix: str) -> list[str]:
        words = prefix.rpartition(".")[0]
        names: list[str] = []
        while True:
            wanted = {"subjects_filter": f"{head}{words + '.' if words else ''}>", "offset": len(names)}
            answer = await self._stream("STREAM.INFO", stream, wanted, stream)
            there = answer.state.subjects or {}
            names += there
            if not there or len(names) >= answer.total:
                return names

    async def _lasts(self, stream: str, names: Sequence[str]) -> list[Heard]:
        heard = await self._collect(stream, {"multi_last": names, "batch": len(names)}, stream)
        return [one for one in heard if not one.status]

    # ---- asking ----------------------------------------------------------------------------------------------

    async def _asked(self, what: str, stream: str, data: bytes, subject: str) -> Heard:
        heard = await self._request(f"$JS.API.{what}.{stream}", data, subject)
        if heard.status == api.NO_RESPONDERS:
            raise await self._gone(stream)
        return heard

    async def _request(self, where: str, data: bytes, subject: str) -> Heard:
        try:
            return await self._connection.call(where, data, READ_S)
        except Unanswered as error:
            raise StoreUnreachable(f"The server did not answer about {subject}: {error}.", subject=subject) from None

    async def _collect(self, stream: str, wanted: dict[str, object], subject: str) -> list[Heard]:
        try:
            heard = await self._connection.collect(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(wanted), READ_S)
        except Unanswered as error:
            raise StoreUnreachable(f"The server did not answer about {subject}: {error}.", subject=subject) from None
        status = heard[-1].status
        if status not in (api.END_OF_BATCH, api.NOT_FOUND):
            await self._check(status, stream, subject)
        return heard

    async def _check(self, status: str, stream: str, subject: str) -> None:
        if status == api.NO_RESPONDERS:
            raise await self._gone(stream)
        if status:
            raise StoreUnreachable(f"The server refused to read {subject}: status {status}.", subject=subject)

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
