"""What a commit holds: inputs that took effect, messages sent, calls of turns, timers, dead letters, and a change of state."""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from blake3 import blake3

from mielin_cells.log.delta import StateDelta

LetterKey: TypeAlias = tuple[int, str, int]
"""What tells one dead letter of an agent from its others: inbox sequence, sender, number."""
Place: TypeAlias = tuple[str, bool, int]
"""Of a message among those of its input: receiver, whether it asks, and how many such went before it."""


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
    """Of an ask: the agents that wait for its answer, each for the next, and its sender last."""


class Input(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An input that took effect (or was closed with an error), and the answer stored for it (asks only)."""

    sender: str
    n: int
    low: int
    start: int
    """Of a client's session: where this log ended when it began."""
    answer: bytes | None
    given_up: list[int] = []
    """Of a client: earlier numbers that take no effect from here on."""


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
    """When it became one, in wall seconds; for people."""

    @property
    def key(self) -> LetterKey:
        return self.seq, self.sender, self.n


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


class StepCall(msgspec.Struct, array_like=True, frozen=True, tag="step"):
    """A finished step of a turn, with its outcome (msgpack of `message.Answer`)."""

    name: str
    answer: bytes

    @property
    def label(self) -> str:
        return f"step {self.name!r}"


TurnCall: TypeAlias = AskCall | StepCall


class OpenTurn(msgspec.Struct, array_like=True, frozen=True):
    """A turn that has made calls and is not yet committed (rule 12): input `n` of `sender`."""

    sender: str
    n: int
    calls: list[TurnCall]


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
    """Seconds from when it was set, or between two times of a repeating one: a node that takes it over waits no longer."""
    every: float
    """Seconds; 0: once."""
    catch_up: str
    sender: str
    input: int
    k: int


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
    """suspend, pause or terminate."""
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
    """Of an ask: its outcome, if it had one."""


class ReplayInput(msgspec.Struct, array_like=True, frozen=True):
    """An input that is to be run again after an undo, and what it has done before."""

    sender: str
    n: int
    taken: bool
    """It had taken effect; if it was an ask, its stored answer stays (rule 17)."""
    sent: list[Sent]
    timers: dict[int, Timer | None]
    """The timers that it set, due when they were due; None: the timer's message is in the inbox."""
    steps: list[StepCall]
    """Latest outcomes, by name and then in order: no finished step is called again."""


class ReplayCounts(msgspec.Struct, array_like=True):
    """What replayed turns have done with the messages that their first runs had sent."""

    inputs: int = 0
    same: int = 0
    """Would have been sent again unchanged, and were not."""
    differing: int = 0
    """Would have been sent otherwise, and were not."""
    corrected: int = 0
    """Were sent otherwise, each naming the message that it replaces."""
    missing: int = 0
    """Were not made again; they stay sent."""

    def add(self, other: ReplayCounts) -> None:
        self.inputs += other.inputs
        self.same += other.same
        self.differing += other.differing
        self.corrected += other.corrected
        self.missing += other.missing


class Commit(msgspec.Struct, array_like=True, frozen=True):
    """What one or many turns changed: all of it takes effect with the record that holds it, or none."""

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
    """Set, or gone on to their next time."""
    gone: list[str] = []
    """Timers that were cancelled, or have fired."""
    fired: list[Fired] = []
    wish: Wish | None = None


def place_of(message: Out | Sent) -> Place:
    return message.to, message.ask, message.k


def body_of(out: Out) -> bytes:
    """What tells one message to an agent from another (rules 13 and 17)."""
    return blake3(f"{out.to}\0{out.handler}\0".encode() + out.args).digest()


Answers: TypeAlias = dict[tuple[str, str], dict[int, bytes]]
"""By reply subject and sender: the answer to each number."""


class Batch:
    """The turns that one commit will hold.  `answers` leave when it is acknowledged (rule 9), and only then."""

    __slots__ = (
        "answers",
        "dead",
        "delta",
        "ended",
        "fired",
        "forgot",
        "held",
        "inputs",
        "moved",
        "outs",
        "released",
        "replayed",
        "timers",
        "touched",
        "turns",
        "wish",
    )  # fmt: skip

    def __init__(self) -> None:
        self.turns = 0
        self.touched = False
        """Something is to be committed, though no turn ran."""
        self.moved = False
        """The cursor has passed repeats: worth no commit of its own, but part of a seal."""
        self.inputs: list[Input] = []
        self.outs: list[Out] = []
        self.ended: list[EndedTurn] = []
        self.replayed: ReplayCounts | None = None
        self.timers: dict[str, Timer | None] = {}
        """Set, gone on, or gone (None)."""
        self.fired: list[Fired] = []
        self.dead: list[DeadLetter] = []
        self.forgot: list[str] = []
        self.held = False
        self.released: dict[str, int] = {}
        self.delta: StateDelta | None = None
        self.answers: Answers = {}
        self.wish: Wish | None = None

    def __bool__(self) -> bool:
        return self.turns > 0 or self.touched

    def answer(self, reply_to: str, sender: str, n: int, answer: bytes) -> None:
        numbers = self.answers.get((reply_to, sender))
        if numbers is None:
            self.answers[reply_to, sender] = {n: answer}
        else:
            numbers[n] = answer

    def change(self, delta: StateDelta | None) -> None:
        """Adds a turn's change of state to what the commit will carry.  The batch owns `delta` from then on."""
        if delta is None:
            return
        self.touched = True
        mine = self.delta
        if mine is None:
            self.delta = delta
        elif delta.tables or delta.buffers or delta.removed:
            self.delta = mine.then(delta)
        else:
            mine.plain.update(delta.plain)

    def commit(self, cursor: int, held: list[int], version: int, digest: bytes) -> Commit:
        return Commit(
            cursor, sorted(held) if self.held else None, self.inputs, self.outs, self.released, self.dead, self.forgot,
            self.delta, version, digest, self.ended, self.replayed,
            [timer for timer in self.timers.values() if timer is not None],
            [name for name, timer in self.timers.items() if timer is None], self.fired, self.wish,
        )  # fmt: skip
