"""Commits: inputs that took effect, messages sent, calls of turns, timers, dead letters, and a change of state."""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from blake3 import blake3

from mielin_cells.log.delta import StateDelta
from mielin_cells.log.family.tree import FamilyChange
from mielin_cells.log.inboxes.places import InboxPlace
from mielin_cells.log.keys.kept import Keyed
from mielin_cells.log.message import Terms
from mielin_cells.log.topics.subs import TopicChange
from mielin_cells.log.waits.kept import WaitChange
from mielin_cells.log.waits.tokens import label_of

LetterKey: TypeAlias = tuple[int, str, int]
"""Identifies one dead letter of an agent: inbox sequence, sender, number."""
Place: TypeAlias = tuple[str, bool, int]
"""Identifies a message among those of its input: receiver, whether it is an ask, and how many such came before it."""


EXPIRED = "expired"
"""`Input.unrun`: the message's deadline had passed (rule T2)."""
FULL = "full"
"""`Input.unrun`: it was the oldest of too many."""


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
    """After an undo: the number of the message that this one replaces."""
    chain: tuple[str, ...] = ()
    """For an ask: the chain of agents that wait for its answer, its sender last."""
    terms: Terms | None = None


class Input(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An input that took effect (or was closed with an error), and the answer stored for it (asks only)."""

    sender: str
    n: int
    low: int
    start: int
    """For a client's session: where this log ended when the session began."""
    answer: bytes | None
    given_up: list[int] = []
    """For a client: earlier numbers that take no effect from here on."""
    unrun: str = ""
    """`EXPIRED`, `FULL`, `KEYED`, `CONFLICT` or `CANCELLED`: why it was taken without an effect, if it was.  So a replay after an undo
    takes it."""
    keyed: Keyed | None = None
    """The call, if it has run and had a key."""

    @property
    def kept(self) -> Keyed | None:
        """`keyed`, with its answer."""
        keyed = self.keyed
        return (
            keyed if keyed is None or keyed.answer is not None else msgspec.structs.replace(keyed, answer=self.answer)
        )


class DeadLetter(msgspec.Struct, array_like=True, frozen=True):
    """A message that could not be handled, with its cause.  `handler` and `args` are empty if the inbox entry was unreadable."""

    seq: int
    sender: str
    n: int
    handler: str
    cause: str
    tries: int
    asks: list[str]
    args: bytes
    at: float = 0.0
    """When it became a dead letter, in wall seconds; for people."""

    @property
    def key(self) -> LetterKey:
        return self.seq, self.sender, self.n


class InBranch(msgspec.Struct, array_like=True, frozen=True):
    """Where a call belongs in a turn that makes calls at the same time.

    `path` with the call's name, and how many of the name its branch has made before, tell one call from all others of the turn.
    Outcomes are given to the handler one at a time; a run that goes on behind recorded ones gets them in the same order.
    """

    path: tuple[int, ...]
    """Of the branch: a task is numbered by the one that creates it."""
    n: int
    """How many calls of its kind and name the branch has made before."""
    after: int
    """How many outcomes had been given when the call was recorded."""
    given: int = -1
    """Its outcome was the one after so many others; -1 while it has none."""
    k: int = 0
    """Of an ask: the `k` of its message."""
    body: bytes = b""
    """Of a step: the digest of its arguments, if they have one."""


class AskCall(msgspec.Struct, array_like=True, frozen=True, tag="ask"):
    """An ask of a turn.  `n` is 0 for one that was refused before it was sent."""

    to: str
    n: int
    handler: str
    body: bytes
    """BLAKE3 of receiver, handler and arguments: a re-run must ask the same."""
    label: str
    answer: bytes | None = None
    """Its outcome (msgpack of `message.Answer`), None while there is none."""
    branch: InBranch | None = None
    """None while the turn makes one call after the other."""


TIMER = "\ttimer"
"""The name of a `StepCall` that is a timer of a branch; its outcome is that it fires.  No step has such a name."""


class StepCall(msgspec.Struct, array_like=True, frozen=True, tag="step"):
    """A finished step of a turn, with its outcome (msgpack of `message.Answer`)."""

    name: str
    answer: bytes
    parts: int = 0
    """Parts of the turn's stream that its last call has sent."""
    branch: InBranch | None = None

    @property
    def label(self) -> str:
        return "a timer" if self.name == TIMER else label_of(self.name)


TurnCall: TypeAlias = AskCall | StepCall


class OpenTurn(msgspec.Struct, array_like=True, frozen=True):
    """A turn that has made calls and is not yet committed (rule 12): input `n` of `sender`."""

    sender: str
    n: int
    calls: list[TurnCall]
    sends: bool = False
    """Parts of its stream may have left."""

    @property
    def is_bound(self) -> bool:
        """True if it must go on before any other turn, on the state in which it began: what it has sent or asked follows from that."""
        return bool(self.calls) or self.sends


class EndedTurn(msgspec.Struct, array_like=True, frozen=True):
    """A turn that made calls has ended: its last outcomes, which no earlier record has (rule 13)."""

    sender: str
    input: int
    at: int
    calls: list[TurnCall]


class Timer(msgspec.Struct, array_like=True, frozen=True):
    """A message to the agent itself, later.  The input (`sender`, `input`) set it as its `k`-th timer; a hook is "", 0."""

    id: str
    handler: str
    args: bytes
    due: float
    """Wall seconds, by the clock of the node that wrote this."""
    wait: float
    """Seconds until it is due, or between two times of a repeating timer: a node that takes it over waits no longer."""
    every: float
    """Seconds; 0: once."""
    catch_up: str
    sender: str
    input: int
    k: int
    cron: str = ""
    """The expression of a timer that repeats by it."""
    zone: str = ""
    trace: str = ""
    """The trace context of the turn that set it."""

    @property
    def repeats(self) -> bool:
        return bool(self.every or self.cron)

    def is_set_as(self, other: Timer) -> bool:
        """True if setting `other` in its place would only change when it is due next."""
        mine = self.handler, self.args, self.every, self.catch_up, self.cron, self.zone
        theirs = other.handler, other.args, other.every, other.catch_up, other.cron, other.zone
        return mine == theirs and (bool(self.cron) or self.wait == other.wait)


class Fired(msgspec.Struct, array_like=True, frozen=True):
    """The message of a one-time timer is among the outputs, and the timer is gone."""

    id: str
    sender: str
    input: int
    k: int


class Wish(msgspec.Struct, array_like=True, frozen=True):
    """What a turn has asked for its own agent: `this().suspend()` and the like.

    It is part of the turn's commit, and no later turn runs until the owner has carried it out.
    """

    order: str
    """suspend, pause, terminate or fail; end: terminate, and everybody has been told."""
    reason: str = ""


class Sent(msgspec.Struct, array_like=True, frozen=True):
    """The latest message that an input has sent as its `k`-th to this receiver (rule 17)."""

    to: str
    k: int
    n: int
    handler: str
    body: bytes
    ask: bool
    answer: bytes | None = None
    """For an ask: its outcome, if it had one."""


class ReplayInput(msgspec.Struct, array_like=True, frozen=True):
    """An input that is run again after an undo, and what its earlier runs have done."""

    sender: str
    n: int
    taken: bool
    """The input had taken effect; if it was an ask, its stored answer stays (rule 17)."""
    sent: list[Sent]
    timers: dict[int, Timer | None]
    """The timers that it set, with their due times; None if the timer's message is in the inbox."""
    steps: list[StepCall]
    """The latest outcomes, by name and then in order, so that no finished step is called again."""
    unrun: str = ""
    """Why it was taken without a run, if it was (`Input.unrun`)."""


class ReplayCounts(msgspec.Struct, array_like=True):
    """Counts what replayed turns did with the messages that their first runs had sent."""

    inputs: int = 0
    same: int = 0
    """Messages that would have been sent again unchanged; they were not sent."""
    differing: int = 0
    """Messages that would now differ; the first ones stand."""
    corrected: int = 0
    """Messages that differ and were sent, each naming the message that it replaces."""
    missing: int = 0
    """Messages that were not made again; the first ones stay sent."""

    def add(self, other: ReplayCounts) -> None:
        self.inputs += other.inputs
        self.same += other.same
        self.differing += other.differing
        self.corrected += other.corrected
        self.missing += other.missing


class Commit(msgspec.Struct, array_like=True, frozen=True):
    """The changes of one or more turns: either all take effect, with the record that holds them, or none."""

    cursor: int
    """Inbox entries up to this sequence are done."""
    held: list[int] | None
    """Inbox entries at or before the cursor that wait for an earlier number; None: as before."""
    inputs: list[Input]
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
    ended: list[EndedTurn] = []
    replayed: ReplayCounts | None = None
    timers: list[Timer] = []
    """Timers that were set, or that moved on to their next time."""
    gone: list[str] = []
    """Timers that were cancelled, or have fired."""
    fired: list[Fired] = []
    wish: Wish | None = None
    changes: list[TopicChange | FamilyChange | WaitChange] = []
    """What was subscribed, ended, and taken of topics; what changed between the agent and its kin; and of external waits."""
    keys_dropped: int = 0
    """How many of the oldest keyed calls are not kept any more, once those of this commit are."""
    inboxes: dict[str, InboxPlace] = {}
    """By priority: the places in the inboxes besides the normal one, of those that have changed (rule T1)."""
    cancels: list[tuple[str, int]] = []
    """Sender and number of messages that are to be taken without a run, when they come (rule T4)."""


def path_of(call: TurnCall) -> tuple[int, ...]:
    return () if call.branch is None else call.branch.path


def place_of(message: Out | Sent) -> Place:
    return message.to, message.ask, message.k


def body_of(out: Out) -> bytes:
    """What tells one message to an agent from another (rules 13 and 17)."""
    return blake3(f"{out.to}\0{out.handler}\0".encode() + out.args).digest()
