"""Says where a subject's entries are on the server: in which stream, under which names, and under which filter.

Entries of an agent's log have two kinds of name, `log.<agent>.own.<node>` for ownership records and `log.<agent>.rec` for all others,
so that the server can index the first kind.  Every append of either kind expects by the one filter `log.<agent>.>`.  The server does
not compare conditions of unlike filters: with two of them in use, two appends could both win one place.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Final, NamedTuple

from mielin_cells.log.ids import LOGS, SCANNED, encoded, is_agents_log
from mielin_cells.substrate.jetstream import api

PARTS: Final = "part."
"""Subjects of parts: in a stream of their own, which is not republished."""
TOPIC: Final = "topic"
"""Streams of topics' entries, and of agents' attributes: both are read by pattern."""
RECORDS: Final = "rec"
OWN: Final = "own"
NOBODY: Final = "="
"""In the place of a node's name.  No encoded name is this."""
MARKER: Final = "=m"
"""In the place of a node's name, and with the number of the shard behind it in that of an agent's id: a log that is nobody's.  Once
the index shows an entry of it, it has all that was stored in that shard before."""


class Place(NamedTuple):
    stream: str
    head: str
    """What stands before all subjects in the stream."""
    filter: str
    """What all names of the subject's entries match, and those of no other subject.  Most subjects have only one name: this."""
    subject: str

    @property
    def live(self) -> str:
        """Where its entries are heard as they are stored, without the deployment's name."""
        return f"live.{self.stream.rpartition('-')[2]}.{self.filter.removeprefix(self.head)}"

    @property
    def is_topic(self) -> bool:
        return self.subject.startswith(SCANNED)

    @property
    def is_log(self) -> bool:
        return self.filter.endswith(".>")

    def name(self, owner: str | None) -> str:
        """The name of an entry that makes `owner` the owner; None: of any other entry."""
        if not self.is_log:
            return self.filter
        return self.filter[:-1] + (RECORDS if owner is None else f"{OWN}.{node_word(owner)}")

    @property
    def owners(self) -> str:
        """What all ownership records of an agent's log match."""
        return f"{self.filter[:-1]}{OWN}.*"

    def headers(self, expect: int) -> dict[str, str]:
        """The condition that the subject's last sequence is `expect`.  No other function makes one."""
        headers = {api.EXPECT: str(expect)}
        if self.is_log:
            headers[api.EXPECT_OF] = self.filter
        return headers

    def has(self, name: str) -> bool:
        return name.startswith(self.filter[:-1]) if self.is_log else name == self.filter


@lru_cache(maxsize=1024)
def place_of(deployment: str, shards: int, subject: str) -> Place:
    kind = kind_of(subject)
    shard = zlib.crc32(api.checked_subject(subject).encode()) % shards
    head = head_of(deployment, kind, shard)
    names = f"{head}{subject}.>" if is_agents_log(subject) else head + subject
    return Place(api.stream_name(deployment, kind, shard), head, names, subject)


def kind_of(subject: str) -> str:
    """The kind of streams that entries of this subject, or of subjects with this prefix, are in."""
    return "part" if subject.startswith(PARTS) else TOPIC if subject.startswith(SCANNED) else "log"


def head_of(deployment: str, kind: str, shard: int) -> str:
    return f"{deployment}.{kind}.{shard}."


def subject_of(name: str) -> str:
    """The subject whose entry has this name in its stream; the stream's head is removed already."""
    if not name.startswith(LOGS):
        return name
    log, _, _ = name[len(LOGS) :].partition(".")
    return LOGS + log


NOTE: Final = "index"
"""Of the first log stream, the name whose last entry says which generation of the index is the deployment's."""


TOPICS_NOTE: Final = "topics"
"""Of the first log stream, the name of the entry which says that the streams of topics have been made."""


def is_own(head: str, name: str) -> bool:
    """True of a name that this adapter uses for itself; `head` is the stream's."""
    return name.startswith(f"{head}{LOGS}{MARKER}") or name in (head + NOTE, head + TOPICS_NOTE)


def node_word(owner: str) -> str:
    return encoded(owner) if owner else NOBODY
