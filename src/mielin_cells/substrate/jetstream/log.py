"""`Log` on JetStream: conditional appends, batched direct gets, leader reads, and tails over republished messages."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec

from mielin_cells.errors import MessageTooLarge, StoreUnreachable
from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.api import Unanswered
from mielin_cells.substrate.jetstream.asking import APPEND_S, READ_S, Asking, Together, TooMany
from mielin_cells.substrate.jetstream.connection import Connection, Listener
from mielin_cells.substrate.jetstream.health import PATIENT_S, mend_index
from mielin_cells.substrate.jetstream.heard import Heard
from mielin_cells.substrate.jetstream.index import Index
from mielin_cells.substrate.jetstream.outside.outside import OutsideStreams
from mielin_cells.substrate.jetstream.places import TOPIC, Place, head_of, is_own, kind_of, place_of, subject_of
from mielin_cells.substrate.jetstream.tail import JetTail, Rechecks
from mielin_cells.substrate.jetstream.topics import Topics, Watching
from mielin_cells.substrate.ports import (
    ENTRY_BYTES_MAX,
    Appended,
    Conflict,
    Entry,
    Found,
    Outcome,
    Source,
    Subscription,
    Unknown,
)
from mielin_cells.substrate.tail import Cut

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


class JetLog(Asking):
    """Subjects are spread over `shards` streams by their hash; parts over as many others."""

    def __init__(self, connection: Connection, deployment: str, shards: int, is_clustered: bool) -> None:
        super().__init__(connection)
        self._deployment = deployment
        self._shards = shards
        self._is_clustered = is_clustered
        self._index = Index(connection, deployment, shards)
        self._topics = Topics(connection, deployment, shards)
        self.outside = OutsideStreams(connection)
        self._tails: dict[JetTail, Listener] = {}
        self._reconnects = 0
        self._together = Together(self._lasts_of, LASTS)
        self._rechecks = Rechecks(self.lasts, lambda: CLUSTER_CHECK_S if connection.in_cluster else 0.0, LASTS)

    # ---- places ----------------------------------------------------------------------------------------------

    def place(self, subject: str) -> Place:
        return place_of(self._deployment, self._shards, subject)

    @property
    def _has_replicas(self) -> bool:
        """Or may have some later: several servers have the streams, or could."""
        return self._is_clustered or self._connection.in_cluster

    # ---- the port --------------------------------------------------------------------------------------------

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        if len(data) > ENTRY_BYTES_MAX:
            raise MessageTooLarge(
                f"An entry of {len(data)} bytes for {subject!r} is above the limit of {ENTRY_BYTES_MAX}; nothing was "
                "stored. Cut it into parts.",
                limit=ENTRY_BYTES_MAX, size=len(data),
            )  # fmt: skip
        place = self.place(subject)
        stream, headers = place.stream, None if expect is None else place.headers(expect)
        try:
            heard = await self._connection.call(place.name(owner), data, APPEND_S, headers)
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
        place = self.place(subject)
        stream, full = place.stream, place.filter
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
                entries_back = await self._back(place, after, most, last, until)
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
            entries += [Entry(one.seq, one.data) for one in page]
            if not page or not more:
                break
            if clock() > until:
                return Cut(entries)
            after = page[-1].seq
        return entries

    async def _back(self, place: Place, after: int, most: int, last: Heard, until: float) -> list[Entry] | None:
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
            earlier = await self._one(place.stream, {"seq": before}, place.subject)
            if earlier is None or not place.has(earlier.subject):  # trimmed, or on its way to the replica that answers
                return None
            one = earlier

    async def last(self, subject: str) -> Entry | None:
        """Answered by the stream's leader, or by one that has been cut off and does not know it yet."""
        place = self.place(subject)
        found = await self._led(place, place.filter)
        return Entry(found.seq, base64.b64decode(found.data)) if found is not None else None

    async def _led(self, place: Place, name: str) -> api.StoredMessage | None:
        """The last entry that the name matches, by the leader's word."""
        request = msgspec.json.encode({"last_by_subj": name})
        heard = await self._asked("STREAM.MSG.GET", place.stream, request, place.subject)
        answer: api.GetAnswer = api.decode(heard.data, api.GetAnswer, place.subject)
        if answer.error is not None and answer.error.err_code != api.NO_MESSAGE:
            raise api.error_of(answer.error, place.subject, place.stream)
        return answer.message

    async def settled(self, subject: str) -> Entry | None:
        """In a cluster a mark is appended to the stream, which a majority stores behind all that was acknowledged before.

        A replica that has the mark has all of that, too: of the one that answers, both are asked for at once.
        """
        if not self._has_replicas:
            return await self.last(subject)
        place = self.place(subject)
        mark = place.head + MARK
        since = await self._marked(place.stream, mark, subject)
        until, pause_s = asyncio.get_running_loop().time() + READ_S, 0.01
        names = [place.filter]
        while True:
            try:
                lists = [
                    await self._lasts(place.stream, [mark, *names[start : start + LASTS]])
                    for start in range(0, len(names), LASTS)
                ]
            except TooMany:  # ownership records of so many nodes: by name, from a list that has come to the mark
                names = await self._names(place.stream, place.filter, since)
                continue
            if all(any(one.subject == mark and one.seq >= since for one in heard) for heard in lists):
                there = {
                    one.subject: Entry(one.seq, one.data) for heard in lists for one in heard if one.subject != mark
                }
                if names == [place.filter] or there.keys() >= {*names}:
                    return max(there.values(), default=None)
                names = await self._names(place.stream, place.filter, since)  # a trim came between
            if asyncio.get_running_loop().time() > until:
                raise StoreUnreachable(
                    f"Only replicas that are behind answered about {subject}; try again.", subject=subject
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.5)

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        """By batched direct gets, which any replica may answer."""
        if len(subjects) == 1:
            entry = await self._together.last(self.place(subjects[0]))
            return {subjects[0]: entry} if entry is not None else {}
        by_stream: dict[str, list[Place]] = {}
        for subject in subjects:
            place = self.place(subject)
            by_stream.setdefault(place.stream, []).append(place)
        last: dict[str, Entry] = {}
        for places in by_stream.values():
            for start in range(0, len(places), LASTS):
                last |= await self._lasts_of(places[start : start + LASTS])
        return last

    async def _lasts_of(self, places: list[Place]) -> dict[str, Entry]:
        """The last entries of places in one stream.  An agent's log has several names, so there may be more results than the server
        gives: then half of the places are asked for at a time."""
        stream, last = places[0].stream, dict[str, Entry]()
        if len(places) == 1:
            one = await self._one(stream, {"last_by_subj": places[0].filter}, places[0].subject)
            return {places[0].subject: Entry(one.seq, one.data)} if one is not None else {}
        try:
            heard = await self._lasts(stream, [place.filter for place in places])
        except TooMany:
            half = len(places) // 2
            return await self._lasts_of(places[:half]) | await self._lasts_of(places[half:])
        wanted, head = {place.subject for place in places}, places[0].head
        for one in heard:
            subject = subject_of(one.subject.removeprefix(head))
            if subject in wanted and (subject not in last or one.seq > last[subject].seq):
                last[subject] = Entry(one.seq, one.data)
        return last

    def tail(self, subject: str, after: int = 0) -> JetTail:
        connection = self._connection
        connection.check()
        place = self.place(subject)
        check_at = asyncio.get_running_loop().time() + CLUSTER_CHECK_S if self._has_replicas else None
        tail = JetTail(subject, after, self.read, self._forget, check_at)

        def receive(heard: Heard) -> None:
            self._saw(place.stream, heard.seq)
            previous = heard.expected if place.is_log else heard.previous
            # The bodies of topics' entries are not sent once more.  Of an agent's log, which has several names, the server says only
            # what was before of this name.
            if place.is_topic or previous is None:
                tail.look_again()
            else:
                tail.push(Entry(heard.seq, heard.data), previous)

        self._tails[tail] = connection.listen(f"{self._deployment}.{place.live}", receive)
        return tail

    def _forget(self, tail: JetTail) -> None:
        if (listener := self._tails.pop(tail, None)) is not None:
            listener.close()

    def reconnected(self) -> None:
        self._reconnects += 1
        self._index.reconnected()
        watched = list[JetTail]()
        for tail in tuple(self._tails):
            if tail.is_watched:
                watched.append(tail)
            else:
                tail.look_again()
        self._rechecks.begin(watched)
        self._topics.wake_all()
        self.outside.wake_all()

    def close(self) -> None:
        self._rechecks.close()
        for tail in tuple(self._tails):
            tail.close()
        self._topics.close()
        self.outside.close()
        self._index.close()

    async def trim(self, subject: str, before: int) -> None:
        """Of an agent's log each kind is trimmed by itself.  A leader that was cut off may answer what was last before; then less is
        removed.  A trim of both kinds by one filter would remove the last ownership record; one of all other records could take
        away the last entry, and so move the place that appends expect back to where it was before."""
        place = self.place(subject)
        if place.is_topic:
            end = await self._led(place, place.filter)
            before = min(before, end.seq) if end is not None else 0
        if not place.is_log:
            await self._purge(place.stream, place.filter, before, subject)
            return
        last, own = await self._led(place, place.filter), await self._led(place, place.owners)
        if last is None:
            return
        await self._purge(place.stream, place.name(None), min(before, last.seq), subject)
        if own is not None:
            await self._purge(place.stream, place.owners, min(before, own.seq), subject)

    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        """Names from the stream's state, last sequences by batched direct gets."""
        if prefix:
            api.checked_subject(prefix.removesuffix("."))
        kinds = (kind_of(prefix),) if prefix.partition(".")[1] else ("log", "part", TOPIC)
        ends: dict[str, int] = {}
        for kind in kinds:
            for shard in range(self._shards):
                stream, head = api.stream_name(self._deployment, kind, shard), head_of(self._deployment, kind, shard)
                words = prefix.rpartition(".")[0]
                names = await self._names(stream, f"{head}{words + '.' if words else ''}>")
                names = [name for name in names if name.startswith(head + prefix) and not is_own(head, name)]
                for start in range(0, len(names), LASTS):
                    for one in await self._lasts(stream, names[start : start + LASTS]):
                        subject = subject_of(one.subject.removeprefix(head))
                        ends[subject] = max(one.seq, ends.get(subject, 0))
        return sorted(ends.items())

    async def owned(self, owner: str, source: Source = "index") -> list[str]:
        return await self._index.owned(owner, source)

    async def owned_by_others(self, nodes: Collection[str]) -> list[str]:
        return await self._index.owned_by_others(nodes)

    def hear_owned(self, owner: str, receive: Callable[[str | None], None]) -> Subscription:
        self._connection.check()
        return self._index.hear(owner, receive)

    async def forget_owned(self, owner: str, subject: str, seq: int) -> None:
        await self._index.forget(owner, subject, seq)

    async def mend_owned(self) -> int:
        return (await mend_index(self._connection, self._deployment, PATIENT_S)).lost

    async def topic_ends(self) -> tuple[int, ...]:
        return await self._topics.ends()

    async def scan(self, pattern: str, shard: int, after: int = 0, limit: int = 1000) -> list[Found]:
        return await self._topics.scan(pattern, shard, after, limit)

    def watch(self, pattern: str, wake: Callable[[], None]) -> Watching:
        return self._topics.watch(pattern, wake)

    async def position(self) -> tuple[int, ...]:
        """Of each stream its last sequence, as its leader answers."""
        streams = [api.stream_name(self._deployment, "log", shard) for shard in range(self._shards)]
        reconnects = self._reconnects
        return reconnects, *[
            (await self._stream("STREAM.INFO", stream, {}, stream)).state.last_seq for stream in streams
        ]

    async def now(self) -> float:
        """The time of the leader of the first stream."""
        stream = api.stream_name(self._deployment, "log", 0)
        said = (await self._stream("STREAM.INFO", stream, {}, stream)).ts
        if said is None:
            raise StoreUnreachable(
                f"The server did not tell its time with the stream {stream}; try again.", subject=stream
            )
        return said.timestamp()
