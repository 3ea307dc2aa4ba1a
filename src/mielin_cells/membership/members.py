"""Who is there: the records of the one log `members`, and the table that they fold to.

Every append to this log expects its last record, so each record was written by somebody who had read all those before it.  The table
grants nothing: it says whose agents may be claimed, and each agent's own log decides.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.log.codec import Codec, framed, pack

DEPUTIES = 2
"""Nodes that listen to all heartbeats besides the leader."""

IMAGE_RECORDS = 256
"""Records behind the last image of the table before the leader writes the next one, which lets the log be trimmed."""

ALIVE, STARTING, SILENT, STOPPED = "alive", "starting", "silent", "stopped"
"""States of a node as they are shown."""


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """What a process says about itself when it joins; shown to operators and used to choose targets of moves."""

    classes: dict[str, int] = {}
    """Agent classes that it knows, with their versions."""
    cores: int = 0
    memory_bytes: int = 0
    architecture: str = ""
    labels: dict[str, str] = {}
    host: str = ""
    process: int = 0
    python: str = ""
    package: str = ""
    at: float = 0.0
    """When it joined, in wall seconds."""


class Status(enum.Enum):
    JOINED = "joined"
    """It takes over the agents that their logs give it, and does not lead or listen for others yet."""
    SERVING = "serving"
    SUSPECTED = "suspected"
    """Two watchers have not heard it."""
    DOUBTED = "doubted"
    """The only watcher that is awake has not heard it.  That counts once it has stood for as long as a node may be silent."""
    LEFT = "left"


# ---- records -------------------------------------------------------------------------------------------------


class Record(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """Base of the records.  Further fields of newer versions are skipped."""

    name: str
    """The node that the record is about."""
    incarnation: int


class Joined(Record, frozen=True):
    """A process takes the name, with the next incarnation.  It replaces all that was said of earlier ones, except a cordon."""

    nonce: bytes
    """Tells two processes apart that append the same otherwise."""
    about: Announcement = Announcement()


class Serving(Record, frozen=True):
    """The node itself says that it lives: it has taken its agents, or refutes a suspicion."""

    agents: int = 0
    is_starting: bool = False
    """It still takes its agents."""
    is_leaving: bool = False
    """It is about to stop, and takes no more agents."""


class Suspected(Record, frozen=True):
    """By the leader: the node is silent, and a second watcher does not hear it either."""

    term: int


class Doubted(Record, frozen=True):
    """By the leader: the node is silent, and no other watcher can be asked."""

    term: int


class Left(Record, frozen=True):
    """This incarnation has ended, or must end.  `term` 0: the node itself says so; else the leader of that term."""

    term: int = 0


class Leads(Record, frozen=True):
    """The node leads failover from here on.  The position of this record is its term."""


class Cordoned(Record, frozen=True):
    """By an operator: the node takes no agents, in this incarnation and all that follow, or takes them again."""

    is_cordoned: bool = True


class Forgotten(Record, frozen=True):
    """By the leader: a node that has left and owns nothing is removed.  Its incarnations are not given again."""

    term: int


class Loads(Record, frozen=True):
    """By the leader, which is `name`: the agents of each node whose number has changed noticeably."""

    term: int
    agents: dict[str, int]


class Image(Record, frozen=True):
    """By the leader, which is `name`: the whole table, compressed, so that the records before it can be trimmed."""

    term: int
    table: bytes


AnyRecord: TypeAlias = Joined | Serving | Suspected | Doubted | Left | Leads | Cordoned | Forgotten | Loads | Image

_records = Codec[AnyRecord](AnyRecord, "record of the members' log", Record)


def encode_record(record: AnyRecord) -> bytes:
    return framed(pack(record))


def decode_record(data: bytes, where: str) -> AnyRecord:
    """Raises `RecordInvalid`; `UnknownRecord` for a kind that only a newer version knows."""
    return _records.decode_framed(data, where)


# ---- the table -----------------------------------------------------------------------------------------------


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One node of the table."""

    name: str
    incarnation: int
    nonce: bytes = b""
    status: Status = Status.JOINED
    is_cordoned: bool = False
    is_leaving: bool = False
    agents: int = 0
    """About how many agents it has."""
    seq: int = 0
    """The position of the record that gave it its status."""
    about: Announcement = Announcement()

    @property
    def is_present(self) -> bool:
        """It is not known to be gone."""
        return self.status in (Status.JOINED, Status.SERVING, Status.DOUBTED)

    def info(self, wall: float = 0.0) -> NodeInfo:
        """As operators see it; `wall` is the time now."""
        about, shown = self.about, {Status.JOINED: STARTING, Status.SERVING: ALIVE, Status.LEFT: STOPPED}
        return NodeInfo(
            name=self.name, incarnation=self.incarnation, agents=self.agents,
            is_cordoned=self.is_cordoned or self.is_leaving,
            state=shown.get(self.status, SILENT), since_s=max(0.0, wall - about.at) if wall and about.at else 0.0,
            **{field: getattr(about, field) for field in about.__struct_fields__},
        )  # fmt: skip


class _Image(msgspec.Struct, array_like=True, frozen=True):
    members: list[Member]
    leader: tuple[str, int]
    term: int
    floor: int


_images = Codec[_Image](_Image, "image of the members' table")

NOBODY = ("", 0)


class Table:
    """The fold of the log's records up to `seq`."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        """In the order in which their incarnations joined."""
        self.leader: tuple[str, int] = NOBODY
        """Name and incarnation of the node that leads; `NOBODY` also once that incarnation is gone."""
        self.term = 0
        """The position of the last `Leads`."""
        self.floor = 0
        """No incarnation up to this is given again to any name."""
        self.seq = 0
        self.behind_image = 0
        """Records since the last image."""

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members.values())

    def get(self, name: str) -> Member | None:
        return self.members.get(name)

    def is_current(self, name: str, incarnation: int) -> bool:
        """True if this is the newest incarnation of the name, and has not left."""
        member = self.members.get(name)
        return member is not None and member.incarnation == incarnation and member.status is not Status.LEFT

    def next_incarnation(self, name: str) -> int:
        member = self.members.get(name)
        return max(self.floor, member.incarnation if member is not None else 0) + 1

    @property
    def deputies(self) -> list[str]:
        """The first serving members besides the leader."""
        serving = (one.name for one in self if one.status is Status.SERVING and one.name != self.leader[0])
        return [name for name, _ in zip(serving, range(DEPUTIES), strict=False)]

    @property
    def watchers(self) -> list[str]:
        """Who listens to all heartbeats: the leader and the deputies."""
        return [name for name in (self.leader[0], *self.deputies) if name]

    def infos(self) -> list[NodeInfo]:
        """Those that may be given agents, by name: joined or serving, also cordoned ones."""
        there = (one.info() for one in self if one.status in (Status.JOINED, Status.SERVING))
        return sorted(there, key=lambda info: info.name)

    # ---- the fold --------------------------------------------------------------------------------------------

    def apply(self, seq: int, record: AnyRecord | None) -> None:
        """The next record of the log; None for one that cannot be read."""
        self.seq = seq
        self.behind_image += 1
        if record is None:
            self.floor = max(
                self.floor, seq
            )  # it may have given an incarnation, and none is above its record's position
            return
        match record:
            case Joined():
                self._join(seq, record)
            case Image():
                self._restore(record)
            case Loads(agents=agents):
                for name, number in agents.items():
                    if name in self.members:
                        self._change(name, agents=number)
            case Leads():
                self.leader, self.term = (record.name, record.incarnation), seq
            case Forgotten():
                self._forget(record)
            case Cordoned():
                if record.name in self.members:
                    self._change(record.name, is_cordoned=record.is_cordoned)
            case _:
                self._note(seq, record)

    def _change(self, name: str, **fields: object) -> None:
        self.members[name] = msgspec.structs.replace(self.members[name], **fields)

    def _join(self, seq: int, record: Joined) -> None:
        before = self.members.get(record.name)
        if before is not None and before.incarnation >= record.incarnation:
            return
        self.members.pop(record.name, None)  # the newest stands last: those that have stayed for long watch
        self.members[record.name] = Member(
            name=record.name, incarnation=record.incarnation, nonce=record.nonce, about=record.about, seq=seq,
            is_cordoned=before is not None and before.is_cordoned,
        )  # fmt: skip
        self._check_leader()

    def _note(self, seq: int, record: Serving | Suspected | Doubted | Left) -> None:
        if not self.is_current(record.name, record.incarnation):
            return
        match record:
            case Serving():
                status = Status.JOINED if record.is_starting else Status.SERVING
                self._change(record.name, status=status, seq=seq, agents=record.agents, is_leaving=record.is_leaving)
            case Suspected():
                self._change(record.name, status=Status.SUSPECTED, seq=seq)
            case Doubted():
                self._change(record.name, status=Status.DOUBTED, seq=seq)
            case Left():
                self._change(record.name, status=Status.LEFT, seq=seq)
                self._check_leader()

    def _forget(self, record: Forgotten) -> None:
        member = self.members.get(record.name)
        if member is not None and member.incarnation == record.incarnation:
            del self.members[record.name]
            self.floor = max(self.floor, record.incarnation)
            self._check_leader()

    def _check_leader(self) -> None:
        if self.leader != NOBODY and not self.is_current(*self.leader):
            self.leader = NOBODY

    # ---- images ----------------------------------------------------------------------------------------------

    @property
    def is_long(self) -> bool:
        """True if it is time for an image."""
        return self.behind_image >= max(IMAGE_RECORDS, 4 * len(self.members))

    def image(self) -> Image:
        """The table as a record of its leader."""
        whole = _Image(list(self), self.leader, self.term, self.floor)
        return Image(*self.leader, self.term, zlib.compress(pack(whole)))

    def _restore(self, record: Image) -> None:
        whole = _images.decode(zlib.decompress(record.table), "An image of the members' table")
        self.members = {member.name: member for member in whole.members}
        self.leader, self.term, self.floor = whole.leader, whole.term, whole.floor
        self.behind_image = 0
