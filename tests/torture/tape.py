"""A tape of everything that lands: nodes trim their logs behind snapshots, and what is trimmed is to be judged, too.

It reads the whole stream in order, a little behind.  An entry that was trimmed before it came by would be missed by the checkers,
which see that a record's predecessor is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

from mielin_cells.errors import CellError
from mielin_cells.log.ids import encoded
from mielin_cells.substrate.jetstream import JetStream
from mielin_cells.substrate.jetstream.api import Unanswered
from mielin_cells.substrate.jetstream.places import subject_of
from mielin_cells.substrate.ports import Entry
from torture.check import is_of
from torture.stores import STREAM

SUBJECTS = "mielin.log.0."
BATCH = 500
ASKED_S = 3.0
POLL_S = 0.1


class Tape:
    """`run` until it is cancelled."""

    def __init__(self, substrate: JetStream) -> None:
        self._connection = substrate._connection
        self._entries: list[tuple[str, Entry]] = []
        self._seq = 0

    async def run(self) -> None:
        while True:
            with contextlib.suppress(CellError, Unanswered):
                if await self._read():
                    continue
            await asyncio.sleep(POLL_S)

    async def _read(self) -> bool:
        """True if there may be more.  A replica that is behind gives less, and the next answer goes on from there."""
        wanted = {"seq": self._seq + 1, "next_by_subj": f"{SUBJECTS}>", "batch": BATCH}
        heard = await self._connection.collect(f"$JS.API.DIRECT.GET.{STREAM}", json.dumps(wanted).encode(), ASKED_S)
        before = self._seq
        for one in heard:
            if one.status:
                return one.pending > 0 and self._seq > before
            if one.seq <= self._seq or (self._seq > before and one.previous != self._seq):
                return True  # one was lost on its way: it is read again
            self._entries.append((subject_of(one.subject.removeprefix(SUBJECTS)), Entry(one.seq, one.data)))
            self._seq = one.seq
        return self._seq > before

    async def reaches(self, seq: int) -> None:
        """Returns when everything up to there is on the tape."""
        while self._seq < seq:
            await asyncio.sleep(POLL_S)

    def taken(self, agents: list[str]) -> list[tuple[str, Entry]]:
        """What there is of these agents, which is then not kept any more."""
        names = {encoded(agent) for agent in agents}
        found = [item for item in self._entries if is_of(item[0], names)]
        self._entries = [item for item in self._entries if not is_of(item[0], names)]
        return found
