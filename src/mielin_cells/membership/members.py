"""Who is there: the records of the one log `members`, and the table that they fold to.

Every append to this log expects its last record, so each record was written by somebody who had read all those before it.  The table
grants nothing: it says whose agents may be claimed, and each agent's own log decides.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import msgspec

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.log.codec import Codec, framed, pack
from mielin_cells.membership.announcement import Announcement
from mielin_cells.policy.facts import UNKNOWN, Facts
from mielin_cells.policy.planning.plan import Plan, PlannedMove, Plans
from mielin_cells.policy.selectors import Selector

DEPUTIES = 2
"""Nodes that listen to all heartbeats besides the leader."""

IMAGE_RECORDS = 256
"""Records behind the last image of the table before the leader writes the next one, which lets the log be trimmed."""

ALIVE, STARTING, SILENT, STOPPED = "alive", "starting", "silent", "stopped"
"""States of a node as they are shown."""


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
    """By an operator: the node takes no agents, in this incarnation and all that follow, or takes them again.

    It is reserved no more.
    """

    is_cordoned: bool = True


class Forgotten(Record, frozen=True):
    """By the leader: a node that has left and owns nothing is removed.  Its incarnations are not given again."""

    term: int


class Loads(Record, frozen=True):
    """By the leader, which is `name`: the agents and the facts of nodes for which they have changed noticeably.

    Where no node hears heartbeats, each node says this of itself alone, with `term` 0.
    """

    term: int
    agents: dict[str, int]
    facts: dict[str, Facts] = {}
    """Each replaces all facts of its node.  Of the current incarnation, as the leader reads the table; an earlier version of this
    package skips them."""


class Image(Record, frozen=True):
    """By the leader, which is `name`: the whole table, compressed, so that the records before it can be trimmed."""

    term: int
    table: bytes


class Planned(Record, frozen=True):
    """By the leader, which is `name`: these agents are about to be moved.  The position of this record is the plan's name."""

    term: int
    run: str
    at: float
    until: float
    moves: tuple[PlannedMove, ...]


class PlanEnded(Record, frozen=True):
    """By the leader, which is `name`: no move of this plan is waited for any more."""

    term: int
    plan: int
    moved: int = 0
    failed: tuple[str, ...] = ()
    """Some of those that failed, with the reasons."""
    dropped: int = 0
    """Moves whose end is not known; those that run go on as ordinary migrations."""


class PlansStopped(Record, frozen=True):
    """By an operator, about no node: the plans of this run are stopped, or with "" all that are open."""

    run: str = ""


AnyRecord: TypeAlias = (
    Joined | Serving | Suspected | Doubted | Left | Leads | Cordoned | Forgotten | Loads | Image | Planned | PlanEnded | PlansStopped
)  # fmt: skip

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
    is_reserved: bool = False
    """Of a cordoned node: it takes agents that are moved to it by name."""
    is_leaving: bool = False
    agents: int = 0
    """About how many agents it has."""
    seq: int = 0
    """The position of the record that gave it its status."""
    about: Announcement = Announcement()
    facts: Facts = UNKNOWN
    """What it has measured, as far as it was told; UNKNOWN once it has left."""

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
            facts=self.facts, **{**about.shown(), "is_reserved": self.is_reserved and not self.is_leaving},
        )  # fmt: skip


def selectors_of(members: Iterable[Member]) -> tuple[Selector, ...]:
    """Policies by label selectors that count for all: what the node says that joined last among those that have any."""
    said: tuple[Selector, ...] = ()
    for member in members:  # in the order in which they joined
        if member.about.selectors and member.status is not Status.LEFT:
            said = member.about.selectors
    return said


class _Image(msgspec.Struct, array_like=True, frozen=True):
    members: list[Member]
    leader: tuple[str, int]
    term: int
    floor: int
    plans: Plans = msgspec.field(default_factory=Plans)


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
        self.selectors_seq = 0
        """The position of the last record that changed which policies by labels of agents count; 0: none ever has."""
        self.plans = Plans()

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
            case Joined() | Left() | Forgotten() | Image():
                said = selectors_of(self)
                self._admit(seq, record)
                if selectors_of(self) != said:
                    self.selectors_seq = seq
            case Loads():
                self._take_loads(record)
            case Leads():
                self.leader, self.term = (record.name, record.incarnation), seq
            case Cordoned():
                if record.name in self.members:
                    self._change(record.name, is_cordoned=record.is_cordoned, is_reserved=False)
            case Planned(term=term, run=run, at=at, until=until, moves=moves):
                self.plans.begin(Plan(seq, term, run, at, until, moves))
            case PlanEnded(plan=plan):
                self.plans.end(plan)
            case PlansStopped(run=run):
                self.plans.stop(run)
            case _:
                self._note(seq, record)

    def _admit(self, seq: int, record: Joined | Left | Forgotten | Image) -> None:
        """A record that may change who is there, and so whose policies by labels count."""
        match record:
            case Joined():
                self._join(seq, record)
            case Forgotten():
                self._forget(record)
            case Image():
                self._restore(record)
            case Left():
                self._note(seq, record)

    def _change(self, name: str, **fields: object) -> None:
        self.members[name] = msgspec.structs.replace(self.members[name], **fields)

    def _take_loads(self, record: Loads) -> None:
        for name, facts in record.facts.items():
            member = self.members.get(name)
            if member is not None and member.status is not Status.LEFT:
                self._change(name, facts=facts, agents=member.agents if facts.agents is None else facts.agents)
        for name, number in record.agents.items():
            if name in self.members:
                self._change(name, agents=number)

    def _join(self, seq: int, record: Joined) -> None:
        before = self.members.get(record.name)
        if before is not None and before.incarnation >= record.incarnation:
            return
        self.members.pop(record.name, None)  # the newest stands last: those that have stayed for long watch
        self.members[record.name] = Member(
            name=record.name, incarnation=record.incarnation, nonce=record.nonce, about=record.about, seq=seq,
            is_cordoned=record.about.is_reserved if before is None else before.is_cordoned,
            is_reserved=record.about.is_reserved if before is None else before.is_reserved,
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
                self._change(record.name, status=Status.LEFT, seq=seq, facts=UNKNOWN)
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
        whole = _Image(list(self), self.leader, self.term, self.floor, self.plans)
        return Image(*self.leader, self.term, zlib.compress(pack(whole)))

    def _restore(self, record: Image) -> None:
        whole = _images.decode(zlib.decompress(record.table), "An image of the members' table")
        self.members = {member.name: member for member in whole.members}
        self.leader, self.term, self.floor, self.plans = whole.leader, whole.term, whole.floor, whole.plans
        self.behind_image = 0
