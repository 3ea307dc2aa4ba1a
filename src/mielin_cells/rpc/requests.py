"""The requests that clients and nodes send to nodes, each with the type of its answer.

A request may be lost, repeated or late, so each is idempotent or carries an id, and no request decides who owns an agent.
"""

from __future__ import annotations

import functools
import typing
from typing import Any, TypeAlias, TypeVar

import msgspec

from mielin_cells.agents.reports import AgentInfo, CallInfo, NodeInfo, TimerInfo
from mielin_cells.errors import CellError, RecordInvalid, from_wire
from mielin_cells.log.codec import UNREADABLE
from mielin_cells.log.commit import LetterKey
from mielin_cells.log.delta import StateDelta
from mielin_cells.log.family.tree import Parent
from mielin_cells.log.inboxes.lines import NORMAL
from mielin_cells.log.policy import Policy
from mielin_cells.migration.audit import AuditEntry
from mielin_cells.rpc import answers
from mielin_cells.rpc.answers import (
    AskStatus,
    Beat,
    CopyReport,
    DrainProgress,
    InboxRoom,
    Progress,
)
from mielin_cells.rpc.metrics import MetricsRequest
from mielin_cells.rpc.pages import PAGE_MAX, Which
from mielin_cells.rpc.plans import PlanRequest
from mielin_cells.rpc.request import Request as Request  # noqa: PLC0414 - for all that import it from here
from mielin_cells.store.reader import Seen

R = TypeVar("R")

WireError: TypeAlias = tuple[str, str, dict[str, str | int | float | bool | list[str] | None]]
"""An error as `CellError.to_wire` writes it and `errors.from_wire` reads it."""


class Ping(Request[NodeInfo], frozen=True):
    pass


class ListBeats(Request[list[Beat]], frozen=True):
    """The last heartbeat received from each node, with its age."""


# ---- agents --------------------------------------------------------------------------------------------------


class Spawn(Request[bool], frozen=True):
    """Create the agent unless it exists.  False: it was created with another initial state."""

    agent: str
    cls: str
    version: int
    state: StateDelta
    born: bytes = b""
    parent: Parent | None = None
    policy: Policy | None = None
    """Of this agent; None: as its class says."""


class ListAgents(Request[list[AgentInfo]], frozen=True):
    """The agents that the node runs, by id: at most `limit`, which is at most `PAGE_MAX`, of those after `after`."""

    after: str = ""
    which: Which = Which()
    limit: int = PAGE_MAX


class ListIds(Request[list[str]], frozen=True):
    """The ids of all agents that the node runs, in order: at most `PAGE_MAX` of those after `after`."""

    after: str = ""


class ShowAgent(Request[AgentInfo | None], frozen=True):
    """The agent, or None if this node does not run it."""

    agent: str


class Order(Request[str], frozen=True):
    """Suspend, pause, resume or terminate the agent; answers its state after that."""

    agent: str
    order: str
    reason: str = ""


class ListCalls(Request[list[CallInfo]], frozen=True):
    agent: str


class CountWaiting(Request[InboxRoom], frozen=True):
    """The messages in the agent's inbox of this priority, and how many may be there."""

    agent: str
    priority: str = NORMAL


class Remind(Request[AskStatus], frozen=True):
    """These asks have no answer.  Those that have taken effect are answered again, to `reply_to`."""

    agent: str
    sender: str
    start: int
    reply_to: str
    numbers: list[int]


class Read(Request[answers.Reading], frozen=True):
    """Run a shared handler on the agent's committed state.  The owner answers, or a node that keeps a copy of the agent."""

    agent: str
    cls: str
    handler: str
    args: bytes
    seen: int
    """The state must be that of this record of the agent's log, or of a later one."""
    is_linearizable: bool
    """It must hold everything that was acknowledged when the request came."""
    wait_s: float
    """The node gives up after so many seconds."""


class ReadArguments(Request[bytes], frozen=True):
    """Encode the words of a command line as arguments of the class's handler."""

    cls: str
    handler: str
    words: list[str]


class ReadState(Request[Spawn], frozen=True):
    """Read the words of a command line as the state of a new agent; answers the `Spawn` to send."""

    agent: str
    cls: str
    words: list[str]


class PurgeLetters(Request[int], frozen=True):
    """Remove these dead letters; answers how many there were."""

    agent: str
    letters: list[LetterKey]


class ListTimers(Request[list[TimerInfo]], frozen=True):
    agent: str


class CancelTimer(Request[bool], frozen=True):
    """Remove the timer; False if there is none of this id."""

    agent: str
    timer: str


# ---- moves ---------------------------------------------------------------------------------------------------


class Migrate(Request[Progress], frozen=True):
    """Start migration `migration` of the agent, planned in `epoch`, or answer its progress."""

    agent: str
    migration: str
    epoch: int
    to: str
    """The first target; "": the source chooses."""
    wait: float
    """The node answers after so many seconds, or when the migration has ended."""
    recovery: dict[str, float] | None = None
    """Fields of `RecoveryConfig` that differ from the node's."""
    parent: str = ""
    """The migration that this one retries."""
    trace: str = ""


class Abort(Request[str], frozen=True):
    """Cancel the agent's open migration; answers its id."""

    agent: str
    migration: str = ""
    """Only this one; "": whichever is open."""


class Predict(Request[answers.Prediction], frozen=True):
    """What would a move take?  Sent to the owner."""

    agent: str
    to: str


class ReadAudit(Request[list[AuditEntry]], frozen=True):
    """The node's audit entries of this migration."""

    migration: str


class Prepare(Request[answers.Preparation], frozen=True):
    """From the source: could you take the agent?"""

    agent: str
    migration: str
    source: str
    cls: str
    version: int
    state_bytes: int
    epoch: int
    architectures: list[str] = []  # noqa: RUF012 - a struct copies it
    is_dry: bool = False
    """Only asked: nothing is reserved."""


class Copy(Request[CopyReport], frozen=True):
    """From the source: fold the log up to `seq`."""

    agent: str
    migration: str
    seq: int


class Release(Request[None], frozen=True):
    """From the source: drop the copy of this migration."""

    agent: str
    migration: str


# ---- ownership -----------------------------------------------------------------------------------------------


class Claim(Request[bool], frozen=True):
    """Take the agent over, whichever node owns it now; the former owner is fenced."""

    agent: str
    cause: str
    force: bool = False
    """Claims also an agent that an undo sends to another node."""
    of: str = ""
    """Only while this node owns it; "": any owner."""
    seen: Seen | None = None
    """Where the agent's log ended when the sender read it, so that the node need not ask again."""
    on_order: bool = False
    """An operator says that `of` is gone; otherwise the node claims only if the table of members says so."""
    asks_policy: bool = False
    """An agent whose policy decides where it runs is refused with `NotPlaced`, and chosen a place for first."""


class Claims(Request[list[WireError | None]], frozen=True):
    """Take all of these over; answers for each, in order, None or why it was refused."""

    wishes: list[Claim]


class Look(Request[None], frozen=True):
    """Read the agent's log: it may name you (a wake-up, rule 4)."""

    agent: str


class Undo(Request[answers.UndoPlan], frozen=True):
    """To the owner in `epoch`: take the agent back to before this migration."""

    agent: str
    migration: str
    epoch: int
    to: str
    """The node on which the agent continues; "": one is chosen, `prefer` first."""
    prefer: str
    corrects: bool
    is_dry: bool


class ReadReplay(Request[answers.ReplayProgress], frozen=True):
    """How far is the agent with the messages that it takes again?"""

    agent: str


class SetCopies(Request[None], frozen=True):
    """To the owner: so many nodes are to keep a copy of the agent."""

    agent: str
    copies: int


class Follow(Request[dict[str, str]], frozen=True):
    """From an owner: keep copies of these agents up to date.  Answers those refused, with the reasons."""

    agents: list[Prepare]


class ListCopies(Request[list[str]], frozen=True):
    """The agents that the node keeps copies of, by id: at most `PAGE_MAX` of those after `after`."""

    after: str = ""


class PlanDrain(Request[DrainProgress], frozen=True):
    """Where would the agents of this node go?"""


class Drain(Request[DrainProgress], frozen=True):
    """Move all agents off this node.  A request with the name of a running drain only reads its progress."""

    name: str
    deadline_s: float


class ReadDrain(Request[DrainProgress], frozen=True):
    """How far is the drain of this name?"""

    name: str


AnyRequest: TypeAlias = (
    Ping | ListBeats | Spawn | ListAgents | ListIds | ShowAgent | Order | ListCalls | CountWaiting | Remind | ReadArguments | ReadState
    | PurgeLetters | ListTimers | CancelTimer | Migrate | Abort | Predict | ReadAudit | Prepare | Copy | Release | Claim | Claims
    | Look | Undo | PlanRequest | MetricsRequest | Read | ReadReplay | SetCopies | Follow | ListCopies | PlanDrain | Drain | ReadDrain
)  # fmt: skip


class Response(msgspec.Struct, array_like=True, frozen=True):
    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    error: WireError | None = None


_encoder = msgspec.msgpack.Encoder()
_request = msgspec.msgpack.Decoder(AnyRequest)
_response = msgspec.msgpack.Decoder(Response)


def encode_request(request: Request[Any]) -> bytes:
    return _encoder.encode(request)


def decode_request(data: bytes) -> AnyRequest:
    """Raises `RecordInvalid`: the wire may carry anything."""
    try:
        request: AnyRequest = _request.decode(data)
        return request
    except UNREADABLE as error:
        raise RecordInvalid(f"A message on the control subject is not a request: {error}.") from error


def encode_result(result: object) -> bytes:
    return _encoder.encode((result, None))


def encode_error(error: CellError) -> bytes:
    return _encoder.encode((None, error.to_wire()))


def decode_response(request: Request[R], data: bytes, node: str) -> R:
    """The result that answers the request.  Raises the error that the response carries, and `RecordInvalid`."""
    try:
        response = _response.decode(data)
        if response.error is None:
            result: R = _result_decoder(type(request)).decode(response.result)
            return result
    except UNREADABLE as error:
        what = f"The answer of node {node} to {type(request).__name__}"
        raise RecordInvalid(f"{what} cannot be read: {error}.") from error
    raise from_wire(*response.error)


@functools.cache
def _result_decoder(request: type[Request[Any]]) -> msgspec.msgpack.Decoder[Any]:
    """The decoder of a request's answer: of `NodeInfo` for `class Ping(Request[NodeInfo])`."""
    (base,) = request.__orig_bases__  # type: ignore[attr-defined]
    return msgspec.msgpack.Decoder(typing.get_args(base)[0])
