"""A tape of everything that lands: nodes trim their logs behind snapshots, and what is trimmed is to be judged, too.

It reads all streams of the logs in order, a little behind.  An entry that was trimmed before it came by would be missed by the
checkers, which see that a record's predecessor is not there.

Sequences of two streams say nothing of each other.  What lands in several is ordered by the times at which their leaders took
it: all servers are on one machine and have one clock, so what was appended after an acknowledgement has a later time than what
was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable
from typing import NamedTuple

from mielin_cells.errors import CellError
from mielin_cells.log.ids import encoded
from mielin_cells.substrate.jetstream import DEPLOYMENT, JetStream
from mielin_cells.substrate.jetstream.api import Unanswered, stream_name
from mielin_cells.substrate.jetstream.heard import Heard
from mielin_cells.substrate.jetstream.places import TOPIC, head_of, place_of, subject_of
from mielin_cells.substrate.ports import Entry
from torture.check import is_of

BATCH = 500
ASKED_S = 3.0
POLL_S = 0.1


class Taped(NamedTuple):
    time: str
    """When the stream's leader took it: a later one is greater as text.  Never before what is before it in its stream."""
    subject: str
    entry: Entry


def time_of(heard: Heard) -> str:
    """All of one length: the server leaves out zeros at the end."""
    seconds, _, digits = heard._headers["Nats-Time-Stamp"].removesuffix("Z").partition(".")
    return f"{seconds}.{digits:0<9}"


class Reel:
    """One stream of the tape."""

    def __init__(self, substrate: JetStream, shard: int, kind: str = "log") -> None:
        self._connection = substrate._connection
        self._head = head_of(DEPLOYMENT, kind, shard)
        self._stream = stream_name(DEPLOYMENT, kind, shard)
        self.entries: list[Taped] = []
        self.seq = 0
        self._time = ""

    async def run(self) -> None:
        while True:
            with contextlib.suppress(CellError, Unanswered):
                if await self._read():
                    continue
            await asyncio.sleep(POLL_S)

    async def _read(self) -> bool:
        """True if there may be more.  A replica that is behind gives less, and the next answer goes on from there."""
        wanted = {"seq": self.seq + 1, "next_by_subj": f"{self._head}>", "batch": BATCH}
        where = f"$JS.API.DIRECT.GET.{self._stream}"
        heard = await self._connection.collect(where, json.dumps(wanted).encode(), ASKED_S)
        before = self.seq
        for one in heard:
            if one.status:
                return one.pending > 0 and self.seq > before
            if one.seq <= self.seq or (self.seq > before and one.previous != self.seq):
                return True  # one was lost on its way: it is read again
            self._time = max(self._time, time_of(one))
            subject = subject_of(one.subject.removeprefix(self._head))
            self.entries.append(Taped(self._time, subject, Entry(one.seq, one.data)))
            self.seq = one.seq
        return self.seq > before


class Tape:
    """`run` until it is cancelled."""

    def __init__(self, substrate: JetStream) -> None:
        self._reels = [Reel(substrate, shard) for shard in range(substrate.shards)]
        self._topics = [Reel(substrate, shard, TOPIC) for shard in range(substrate.shards)]

    async def run(self) -> None:
        await asyncio.gather(*(reel.run() for reel in (*self._reels, *self._topics)))

    async def reaches(self, ends: Iterable[tuple[str, int]], topics: Iterable[int] = ()) -> None:
        """Returns when everything up to there is on the tape: of each subject, up to this sequence in its stream.

        `topics`: the ends of the streams of topics, by shard.
        """
        for reel, seq in zip(self._topics, topics, strict=False):
            while reel.seq < seq:
                await asyncio.sleep(POLL_S)
        for subject, seq in ends:
            reel = self._reels[int(place_of(DEPLOYMENT, len(self._reels), subject).stream.rpartition("-")[2])]
            while reel.seq < seq:
                await asyncio.sleep(POLL_S)

    def taken(self, agents: list[str]) -> list[tuple[str, Entry]]:
        """What there is of these agents, in the order in which it landed; it is then not kept any more."""
        names = {encoded(agent) for agent in agents}
        found: list[Taped] = []
        for reel in (*self._reels, *self._topics):
            found += [one for one in reel.entries if is_of(one.subject, names)]
            reel.entries = [one for one in reel.entries if not is_of(one.subject, names)]
        return [(one.subject, one.entry) for one in sorted(found, key=lambda one: one.time)]
