"""The records of an agent's log.  Kinds and rules: docs/semantics.md and the protocol that they quote by number.

A record is a tagged struct in a frame (`message.framed`).  `agent`, `prev` and `nonce` bind it to one place of one log:
a record that is moved, repeated or taken from another agent is refused by the fold.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from blake3 import blake3

from mielin_cells.errors import ConfigError, InternalError, RecordInvalid, UnknownRecord, described
from mielin_cells.log.lifecycle import AgentError, Lifecycle
from mielin_cells.log.message import UNREADABLE, framed, unframed
from mielin_cells.log.policy import Policy
from mielin_cells.log.state import StateDelta


class Out(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A message that the agent sent: number `n` to `to`; the `k`-th output of the input (`sender`, `input`)."""

    to: str
    cls: str
    n: int
    handler: str
    args: bytes
    ask: bool
    sender: str
    input: int
    k: int
    """How many messages of its kind (tell or ask) this input has sent to this receiver before it."""
    corrects: int = 0
    """After an undo: the number of the message that this one stands in for."""
    chain: tuple[str, ...] = ()
    """Of an ask: the agents that wait for its answer, each for the next, and its sender last."""


class Taken(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An input that took effect (or was closed with an error), and the answer stored for it (asks only)."""

    sender: str
    n: int
    low: int
    start: int
    """Of a client's session: where this log ended when it began."""
    answer: bytes | None


class DeadLetter(msgspec.Struct, array_like=True, frozen=True):
    """A message that could not be handled, with its cause.  `message` is empty if the inbox entry was not readable."""

    seq: int
    sender: str
    n: int
    handler: str
    cause: str
    tries: int
    asks: list[str]
    args: bytes
    at: float = 0.0
    """When it became one, in wall seconds; for people."""

    @property
    def key(self) -> LetterKey:
        return self.seq, self.sender, self.n


LetterKey: TypeAlias = tuple[int, str, int]
"""What tells one dead letter of an agent from its others: inbox sequence, sender, number."""


class AskMade(msgspec.Struct, array_like=True, frozen=True, tag="ask"):
    """An ask of the open turn.  `n` is 0 for one that was refused before it was sent."""

    to: str
    n: int
    handler: str
    body: bytes
    """BLAKE3 of receiver, handler and arguments: a re-run must ask the same."""
    label: str
    answer: bytes | None = None
    """Its outcome (msgpack of `message.Answer`), None while it is out."""


class StepMade(msgspec.Struct, array_like=True, frozen=True, tag="step"):
    """A step of the open turn that is done, with its outcome (msgpack of `message.Answer`)."""

    name: str
    answer: bytes

    @property
    def label(self) -> str:
        return f"step {self.name!r}"


Made: TypeAlias = AskMade | StepMade


class Ended(msgspec.Struct, array_like=True, frozen=True):
    """A turn that made asks or steps has ended: its last outcomes, which no record before has (rule 13)."""

    sender: str
    input: int
    at: int
    made: list[Made]


class Replayed(msgspec.Struct, array_like=True):
    """What turns that were run again after an undo have done with the messages that their first runs had sent."""

    inputs: int = 0
    same: int = 0
    """Would have been sent again just so, and were not."""
    differing: int = 0
    """Would have been sent otherwise, and were not."""
    corrected: int = 0
    """Were sent otherwise, each naming the message that it stands in for."""
    missing: int = 0
    """Were not made again; they stay sent."""

    def add(self, other: Replayed) -> None:
        self.inputs += other.inputs
        self.same += other.same
        self.differing += other.differing
        self.corrected += other.corrected
        self.missing += other.missing


class Timer(msgspec.Struct, array_like=True, frozen=True):
    """A message to the agent itself, later.  It was set as the `k`-th timer of the input (`sender`, `input`); of a hook: "", 0."""

    id: str
    handler: str
    args: bytes
    due: float
    """Wall seconds, by the clock of the node that wrote this."""
    wait: float
    """Seconds from when it was set, or from one time of a repeating one to the next: a node it comes to waits for no longer."""
    every: float
    """Seconds; 0: once."""
    catch_up: str
    sender: str
    input: int
    k: int


class Fired(msgspec.Struct, array_like=True, frozen=True):
    """The message of a timer that was set once is among the outputs, and the timer is gone."""

    id: str
    sender: str
    input: int
    k: int


class Wish(msgspec.Struct, array_like=True, frozen=True):
    """What a turn has ordered for its own agent: no other turn runs behind the commit that holds it until it has taken effect."""

    order: str
    """suspend, pause or terminate."""
    reason: str = ""


class Commit(msgspec.Struct, array_like=True, frozen=True):
    """What one or many turns changed: all of it takes effect with the record that holds it, or none."""

    cursor: int
    """Inbox entries up to this sequence are done."""
    held: list[int] | None
    """Inbox entries behind the cursor that wait for an earlier number; None: as before."""
    taken: list[Taken]
    outs: list[Out]
    released: dict[str, int]
    """Per receiver: every output up to this number is stored in its inbox (rule 11)."""
    dead: list[DeadLetter]
    forgot: list[str]
    """Client sessions forgotten; the horizon is raised to the latest `start` among them (rule 15)."""
    state: StateDelta | None
    version: int
    """Class version of the state after it."""
    digest: bytes
    """Of the state after it."""
    ended: list[Ended] = []
    replayed: Replayed | None = None
    timers: list[Timer] = []
    """Set, or gone on to their next time."""
    gone: list[str] = []
    """Timers that were cancelled, or have fired."""
    fired: list[Fired] = []
    wish: Wish | None = None


class Sent(msgspec.Struct, array_like=True, frozen=True):
    """The latest message that an input has sent as its `k`-th to this receiver (rule 17)."""

    to: str
    k: int
    n: int
    handler: str
    body: bytes
    ask: bool
    answer: bytes | None = None
    """Of an ask: its outcome, if it had one."""


Place: TypeAlias = tuple[str, bool, int]
"""Of a message among those of its input: receiver, whether it asks, and how many such went before it."""


def place_of(message: Out | Sent) -> Place:
    return message.to, message.ask, message.k


def body_of(out: Out) -> bytes:
    """What tells one message to an agent from another (rules 13 and 17)."""
    return blake3(f"{out.to}\0{out.handler}\0".encode() + out.args).digest()


class Again(msgspec.Struct, array_like=True, frozen=True):
    """An input that is to be run again after an undo, and what it has done before."""

    sender: str
    n: int
    taken: bool
    """It had taken effect; if it was an ask, its stored answer stays (rule 17)."""
    sent: list[Sent]
    timers: dict[int, Timer | None]
    """Those that it set: as they are, so that they are due when they were; None: its message is in the inbox."""
    steps: list[StepMade]
    """Latest outcomes, by name and then in order: no finished step is called again."""


class OpenTurn(msgspec.Struct, array_like=True, frozen=True):
    """A turn that has made asks or steps and is not yet committed (rule 12): input `n` of `sender`."""

    sender: str
    n: int
    made: list[Made]


class PeerImage(msgspec.Struct, array_like=True, frozen=True):
    mark: int
    low: int
    start: int
    answers: dict[int, bytes]
    """Of an agent: answers to its asks.  Of a client: every number taken at or above `low`, with its answer or b""."""


class LedgerImage(msgspec.Struct, array_like=True, frozen=True):
    """All of a ledger, for snapshots and for the digest that a handover seals."""

    cursor: int
    held: list[int]
    peers: dict[str, PeerImage]
    numbers: dict[str, int]
    released: dict[str, int]
    pending: list[Out]
    dead: list[DeadLetter]
    horizon: int
    again: list[Again] = []
    """The replay ledger of an undo: inputs that are still ahead of the cursor once more (rule 18)."""
    replayed: Replayed = msgspec.field(default_factory=Replayed)
    corrects: bool = False
    timers: list[Timer] = []


class PartRef(msgspec.Struct, array_like=True, frozen=True):
    """Where one part of a large record or snapshot is: its sequence on the part subject, size in bytes, BLAKE3."""

    seq: int
    size: int
    digest: bytes


class Kept(msgspec.Struct, array_like=True, frozen=True):
    """A snapshot that is kept: its record's sequence, what its load needs, and when it was made (wall seconds)."""

    seq: int
    since: int
    inbox: int
    part: str
    at: float


class Record(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Head of every record (rule 1).  `snap` is the log's newest snapshot before it (0: none): where a load begins."""

    agent: str
    epoch: int
    node: str
    incarnation: int
    nonce: bytes
    prev: int
    snap: int
    written: float = 0.0
    """When its writer made it, in wall seconds.  For people: nothing is decided by it."""


class Created(Record, tag="Created", frozen=True, kw_only=True):
    cls: str
    version: int
    state: StateDelta
    at: float
    policy: Policy | None = None
    """None: the default."""
    born: bytes = b""
    """Digest of `state` as its spawner gave it (`core.born`)."""


class Committed(Record, tag="Committed", frozen=True, kw_only=True):
    commit: Commit


class Asked(Record, tag="Asked", frozen=True, kw_only=True):
    """What a nested ask will send, before it is sent."""

    sender: str
    input: int
    out: Out
    at: int
    """The log has the outcomes of the turn's first `at` asks and steps already: no outcome is written twice."""
    made: list[Made]
    """Those from `at` on, the newest last."""


class Stepped(Record, tag="Stepped", frozen=True, kw_only=True):
    """What a durable step returned; `at` and `made` as in `Asked`."""

    sender: str
    input: int
    at: int
    made: list[Made]


class Snapshot(Record, tag="Snapshot", frozen=True, kw_only=True):
    """State in parts (or `small`), written from `since` on; commits after `since` are replayed over them."""

    cls: str
    version: int
    lifecycle: Lifecycle
    ledger: LedgerImage
    part: str
    parts: list[PartRef]
    small: bytes | None
    since: int
    digest: bytes
    kept: list[Kept]
    outcomes: dict[str, str]
    turn: OpenTurn | None
    claims: int
    at: float
    handed: dict[str, int] = {}
    undone: list[tuple[int, int]] = []
    policy: Policy | None = None
    standby: int | None = None
    wish: Wish | None = None
    born: bytes = b""


class Suspended(Record, tag="Suspended", frozen=True, kw_only=True):
    reason: str = ""


class Paused(Record, tag="Paused", frozen=True, kw_only=True):
    reason: str = ""


class Resumed(Record, tag="Resumed", frozen=True, kw_only=True):
    pass


class Failed(Record, tag="Failed", frozen=True, kw_only=True):
    error: AgentError


class Terminated(Record, tag="Terminated", frozen=True, kw_only=True):
    pass


class Cleared(Record, tag="Cleared", frozen=True, kw_only=True):
    """An operator has removed dead letters: replayed or purged.  Appended between turns, with everything committed."""

    letters: list[LetterKey]


class StandbySet(Record, tag="StandbySet", frozen=True, kw_only=True):
    """An operator's wish: so many nodes keep a copy of the agent.  Appended between turns, with everything committed."""

    copies: int


class HandedOff(Record, tag="HandedOff", frozen=True, kw_only=True):
    """The linearization point of a migration.  It may hold the final commit (the seal) of the source."""

    to: str
    migration: str
    seal: Commit | None
    digest: bytes
    """Of the state and the ledger after the seal: what the target must have before it accepts."""


class Undone(Record, tag="Undone", frozen=True, kw_only=True):
    """The agent is back at record `to`, and takes the messages that came since once more (rules 16 and 17).

    State, cursor, receive marks, held and dead letters are those of then; numbers, released marks, stored answers and
    lifecycle stay.  Nothing runs until `goes_to` has claimed the agent.
    """

    to: int
    goes_to: str
    """The node that is to run it from here."""
    migration: str
    """The migration that is undone."""
    version: int
    state: StateDelta
    digest: bytes
    """Of the state after it."""
    cursor: int
    held: list[int]
    marks: dict[str, int]
    """Receive marks of agents that have sent since."""
    unburied: list[LetterKey]
    """Dead letters written since."""
    timers: list[Timer]
    """All of them, but for those whose messages are in the inbox."""
    again: list[Again]
    corrects: bool
    """A message that now differs is sent, as one that corrects the first; else the first stands."""


class Accepted(Record, tag="Accepted", frozen=True, kw_only=True):
    migration: str


class Returned(Record, tag="Returned", frozen=True, kw_only=True):
    to: str
    migration: str
    cause: str
    code: str = ""
    """Of the error that kept the agent from running at the target."""


class Claimed(Record, tag="Claimed", frozen=True, kw_only=True):
    cause: str
    waits: bool = True
    """A message was waiting that the former owner may have died of.  Without one the claim says nothing against any."""


class Spilled(Record, tag="Spilled", frozen=True, kw_only=True):
    """Stands for a record that is too large for one entry: its bytes are in parts.  Only the adapter's side sees it."""

    part: str
    parts: list[PartRef]


AnyRecord: TypeAlias = (
    Created | Committed | Asked | Stepped | Snapshot | Suspended | Paused | Resumed | Failed | Terminated
    | HandedOff | Accepted | Returned | Claimed | Cleared | StandbySet | Undone | Spilled
)  # fmt: skip


def named_owner(record: Record) -> str:
    """The node that an agent's last record makes its owner ("" after Terminated)."""
    if isinstance(record, (HandedOff, Returned)):
        return record.to
    return "" if isinstance(record, Terminated) else record.node


UNWRITABLE = (TypeError, ValueError, OverflowError, RecursionError)
"""What encoding raises: for a value of a type that has no encoding, for text that is not UTF-8, for what is too large."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyRecord)
_raw = msgspec.msgpack.Decoder(list[msgspec.Raw])
_tag = msgspec.msgpack.Decoder(str)
_TAGS = frozenset(cls.__name__ for cls in Record.__subclasses__())


def encode_record(record: AnyRecord) -> bytes:
    """Raises `InternalError` for a record that holds what cannot be stored: turns and requests are checked for that before."""
    try:
        return framed(_encoder.encode(record))
    except UNWRITABLE as error:
        raise InternalError(
            f"A {type(record).__name__} of agent {record.agent!r} cannot be stored: {described(error)}. It was not written; what "
            "held the value should have been refused before, so please report this.",
            agent=record.agent,
        ) from error


def decode_record(data: bytes, where: str) -> AnyRecord:
    """The record in an entry's bytes.  Raises the `RecordInvalid` that names what is wrong; nothing is ever skipped."""
    payload = unframed(data, where)
    try:
        record: AnyRecord = _decoder.decode(payload)
        return record
    except (*UNREADABLE, ConfigError) as error:
        tag = _tag_of(payload)
        if tag is not None and tag not in _TAGS:
            raise UnknownRecord(
                f"{where} holds a record of kind {tag!r}, which this version does not know; upgrade it.",
                subject=where, tag=tag,
            ) from error  # fmt: skip
        raise RecordInvalid(f"{where} holds a record that does not decode: {error}.", subject=where) from error


def _tag_of(payload: bytes) -> str | None:
    try:
        return _tag.decode(_raw.decode(payload)[0])
    except (*UNREADABLE, IndexError):
        return None


def policy_bytes(policy: Policy) -> bytes:
    return _encoder.encode(policy)


def peer_bytes(name: str, mark: int, low: int, start: int, answers: dict[int, bytes]) -> bytes:
    return _encoder.encode((name, mark, low, start, sorted(answers.items())))


def canonical(image: LedgerImage) -> bytes:
    """Bytes that depend on what the ledger holds, not on the order in which it came there."""
    peers = [(s, p.mark, p.low, p.start, sorted(p.answers.items())) for s, p in sorted(image.peers.items())]
    numbers, released = sorted(image.numbers.items()), sorted(image.released.items())
    again = sorted(image.again, key=lambda one: (one.sender, one.n))
    rest = (image.pending, image.dead, image.horizon, again, image.replayed, image.corrects)
    timers = sorted(image.timers, key=lambda timer: timer.id)
    return _encoder.encode((image.cursor, image.held, peers, numbers, released, *rest, timers))
