"""What nodes and clients ask of each other on the wire, and the answers.

Requests are tagged structs; a request may be lost, repeated or late, so each is idempotent or carries an id, and nothing here
decides who owns an agent.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from mielin_cells.agents.cluster import MigrationReport
from mielin_cells.errors import CellError, RecordInvalid, from_wire
from mielin_cells.log.message import UNREADABLE
from mielin_cells.log.records import LetterKey, Replayed
from mielin_cells.log.state import StateDelta
from mielin_cells.migration import refusal
from mielin_cells.store.reader import Seen

HOSTED_MAX = 1000
"""Agents in one answer: a message on the wire has its limit."""


Refusal: TypeAlias = tuple[str, str, dict[str, str | int | float | bool | list[str] | None]]
"""An error as it travels: `errors.from_wire` makes it one again."""


class Request(msgspec.Struct, array_like=True, frozen=True):
    pass


class Ping(Request, tag="Ping", frozen=True):
    """Who are you?  Answer: `NodeInfo`."""


class Spawn(Request, tag="Spawn", frozen=True):
    agent: str
    cls: str
    version: int
    state: StateDelta
    born: bytes = b""


class Migrate(Request, tag="Migrate", frozen=True):
    """Start (or ask after) migration `migration` of the agent, planned in `epoch`.  Answer: `Progress`."""

    agent: str
    migration: str
    epoch: int
    to: str
    """The first target; "": the source chooses."""
    wait: float
    recovery: dict[str, float] | None = None
    """Of `RecoveryConfig`, what is to be other than the node's."""
    parent: str = ""
    """The migration that this one takes up again."""


class Abort(Request, tag="Abort", frozen=True):
    agent: str


class Prepare(Request, tag="Prepare", frozen=True):
    """From the source: could you take it?  Answer: `Prepared`."""

    agent: str
    migration: str
    source: str
    cls: str
    version: int
    state_bytes: int
    epoch: int
    architectures: list[str] = []
    is_dry: bool = False
    """Only asked: nothing is reserved."""


class Copy(Request, tag="Copy", frozen=True):
    """From the source: fold the log up to `seq`.  Answer: `Copied`."""

    agent: str
    migration: str
    seq: int


class Release(Request, tag="Release", frozen=True):
    agent: str
    migration: str


class Order(Request, tag="Order", frozen=True):
    """suspend, pause, resume or terminate."""

    agent: str
    order: str
    reason: str = ""


class Claim(Request, tag="Claim", frozen=True):
    """Take the agent over, whoever owns it now: the former owner is fenced."""

    agent: str
    cause: str
    force: bool = False
    """Also an agent that was rolled back to go on at another node."""
    of: str = ""
    """Only while this node owns it; "": whoever does."""
    seen: Seen | None = None
    """Where its log ended when the asker read it: it need not be asked for again."""


class Claims(Request, tag="Claims", frozen=True):
    """Take all of these over.  Answer: of each, in order, None or why not."""

    wishes: list[Claim]


class Undo(Request, tag="Undo", frozen=True):
    """To the owner in `epoch`: take the agent back to before this migration.  Answer: `Undoing`."""

    agent: str
    migration: str
    epoch: int
    to: str
    """Where it is to go on; "": chosen, `prefer` before others."""
    prefer: str
    corrects: bool
    is_dry: bool


class Replaying(Request, tag="Replaying", frozen=True):
    """How far is the agent with the messages that it takes again?  Answer: `Rest`."""

    agent: str


class Look(Request, tag="Look", frozen=True):
    """Read the agent's log: it may name you (a wake-up, rule 4)."""

    agent: str


class Drain(Request, tag="Drain", frozen=True):
    """Move all agents off this node; without a name, only say where they would go.  Answer: `Drainage`."""

    name: str = ""
    deadline_s: float = 0.0


class Drained(Request, tag="Drained", frozen=True):
    """How far is the drain of this name?  Answer: `Drainage`."""

    name: str


class Followed(msgspec.Struct, array_like=True, frozen=True):
    """An agent as its owner describes it to who is to follow it."""

    agent: str
    cls: str
    version: int
    bytes: int
    epoch: int
    architectures: list[str]


class Follow(Request, tag="Follow", frozen=True):
    """From an owner: keep copies of these agents, and go on keeping them.  Answer: those refused, with the reasons."""

    owner: str
    agents: list[Followed]


class Following(Request, tag="Following", frozen=True):
    """Which agents do you keep copies of?  Answer: ids, those behind `after`, some at a time."""

    after: str = ""


class Copies(Request, tag="Copies", frozen=True):
    """To the owner: so many nodes are to keep a copy of the agent."""

    agent: str
    copies: int


class Remind(Request, tag="Remind", frozen=True):
    """These asks have no answer.  Those that have taken effect are answered again, to `reply_to`.  Answer: a `Standing`."""

    agent: str
    sender: str
    start: int
    reply_to: str
    numbers: list[int]


class Standing(msgspec.Struct, array_like=True, frozen=True):
    """How asks without an answer stand at their receiver."""

    missing: list[int] | None
    """The numbers of which the owner has nothing, though it waits for work; None if no owner can be asked now."""
    why: str
    """What is known of why there is no answer, for people."""


class Waiting(Request, tag="Waiting", frozen=True):
    """How many messages wait?  Answer: a number."""

    agent: str


class Hosted(Request, tag="Hosted", frozen=True):
    """Which agents do you run?  Answer: a list of `AgentInfo` by id, at most `HOSTED_MAX`; ask on `after` the last one."""

    agent: str = ""
    after: str = ""


class Read(Request, tag="Read", frozen=True):
    """What do these words of a command line mean as arguments of the class's handler?  Answer: bytes."""

    cls: str
    handler: str
    words: list[str]


class ReadState(Request, tag="ReadState", frozen=True):
    """What do these words mean as the state of a new agent?  Answer: the `Spawn` to send."""

    agent: str
    cls: str
    words: list[str]


class Purge(Request, tag="Purge", frozen=True):
    """Remove these dead letters.  Answer: how many were there."""

    agent: str
    letters: list[LetterKey]


class CancelTimer(Request, tag="CancelTimer", frozen=True):
    """Take this timer of the agent away, unless it is gone already.  Answer: whether there was one."""

    agent: str
    timer: str


class Predict(Request, tag="Predict", frozen=True):
    """What would a move take?  To the agent's owner.  Answer: `predict.Prediction`."""

    agent: str
    to: str


class Audited(Request, tag="Audited", frozen=True):
    """What has your audit of this migration?  Answer: a list of `AuditEntry`, as plain data."""

    migration: str


class Timers(Request, tag="Timers", frozen=True):
    """Which timers does the agent have?  To its owner.  Answer: a list of `TimerInfo`."""

    agent: str


class Heard(Request, tag="Heard", frozen=True):
    """Which nodes' heartbeats have you heard?  Answer: a list of `Beat`, each with the seconds since then."""


Question: TypeAlias = (
    Ping | Remind | Replaying | Drained | Following | Audited | Waiting | Hosted | Read | ReadState | Heard | Timers
)
AnyRequest: TypeAlias = (
    Spawn
    | Undo
    | Migrate
    | Predict
    | Abort
    | Prepare
    | Copy
    | Release
    | Order
    | Purge
    | CancelTimer
    | Copies
    | Claim
    | Claims
    | Look
    | Drain
    | Follow
    | Question
)


class Preparation(msgspec.Struct, array_like=True, frozen=True):
    """Every reason against taking the agent; none: room is reserved for it."""

    refusals: list[refusal.Refusal]

    @property
    def reasons(self) -> list[str]:
        """The refusals as sentences."""
        return list(map(str, self.refusals))


class Undoing(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What an undo does, or would do.  `state`, `version`: now and at the record that it goes back to."""

    agent: str
    migration: str
    node: str
    goes_to: str
    record: int
    version: int
    version_then: int
    messages: int
    sent: int
    steps: int
    answered: int
    state: str
    state_then: str
    reasons: list[str] = []
    trouble: str = ""
    """It is done, and the node that is to go on has not claimed the agent: why."""


class Rest(msgspec.Struct, array_like=True, frozen=True):
    left: int
    replayed: Replayed
    dead: int
    stopped: str = ""
    """Why the agent takes no messages now."""


class CopyReport(msgspec.Struct, array_like=True, frozen=True):
    """How far the copy is: the last sequence folded, and what was read so far."""

    seq: int
    records: int
    bytes: int


class Progress(msgspec.Struct, array_like=True, frozen=True):
    """An open migration's phase, or its report (a JSON-like dict) when it has ended."""

    phase: str
    report: dict[str, msgspec.Raw] | None = None
    passed: list[tuple[str, float]] = []
    """Phases that are over, with their seconds."""
    rounds: int = 0
    bytes: int = 0
    """Log and state bytes that the target has read."""
    attempts: int = 1
    target: str = ""
    failures: list[str] = []
    """Of the attempts before: class and reason."""
    next_s: float = 0.0
    """Between attempts: seconds to the next."""


class Response(msgspec.Struct, array_like=True, frozen=True):
    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    error: Refusal | None = None


_encoder = msgspec.msgpack.Encoder()
_request = msgspec.msgpack.Decoder(AnyRequest)
_response = msgspec.msgpack.Decoder(Response)


def encode_request(request: AnyRequest) -> bytes:
    return _encoder.encode(request)


def decode_request(data: bytes) -> AnyRequest:
    """Raises `RecordInvalid`: the wire may carry anything."""
    try:
        request: AnyRequest = _request.decode(data)
        return request
    except UNREADABLE as error:
        raise RecordInvalid(f"A message on the control subject is no request: {error}.") from error


def answered(result: object) -> bytes:
    return _encoder.encode(Response(msgspec.Raw(_encoder.encode(result))))


def ended(report: MigrationReport) -> Progress:
    plain = {name: msgspec.Raw(_encoder.encode(getattr(report, name))) for name in report.__slots__}
    return Progress(report.outcome, plain, list(report.phases))


def refused(error: CellError) -> bytes:
    return _encoder.encode(Response(error=error.to_wire()))


def result_of(data: bytes) -> msgspec.Raw:
    """The result in a response.  Raises the error that it carries."""
    try:
        response = _response.decode(data)
    except UNREADABLE as error:
        raise RecordInvalid(f"An answer on the control subject cannot be read: {error}.") from error
    if response.error is not None:
        raise from_wire(*response.error)
    return response.result
