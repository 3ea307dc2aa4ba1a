"""What travels between agents: mail in inboxes, replies on the wire."""

from __future__ import annotations

from enum import Enum

import msgspec
from blake3 import blake3

from mielin_cells.errors import AnswerExpired
from mielin_cells.log.codec import Codec, framed, pack
from mielin_cells.log.ids import encoded, inbox_subject
from mielin_cells.log.inboxes.lines import NORMAL, line_text, priority_of

# `gc=False`: these hold no cycles, and thousands are made in a second; the collector need not look through them.


class Terms(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a sender asks for besides the call.  Most messages have none."""

    expires: float = 0.0
    """The store's time from which on no turn may begin for it (rule T2); 0: never."""
    key: str = ""
    """Calls under one key run once, whoever sends them (rule T3)."""
    trace: str = ""
    """The trace context that it is part of (`tracing.Trace.text`)."""

    @classmethod
    def of_trace(cls, trace: str) -> Terms | None:
        """Of a message that asks for nothing else."""
        return cls(trace=trace) if trace else None


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One message of a sender: number `n` in that sender's count to this receiver."""

    n: int
    handler: str
    args: bytes
    ask: bool = False
    corrects: int = 0
    """The sender was rolled back: this replaces its earlier message of this number."""
    chain: tuple[str, ...] = ()
    """For an ask: the chain of agents that wait for its answer, its sender last."""
    terms: Terms | None = None

    def has_expired(self, now: float) -> bool:
        """True if no turn may begin for it any more (rule T2).  `now` is the store's time."""
        return self.terms is not None and 0 < self.terms.expires <= now

    @property
    def digest(self) -> bytes:
        """What tells one call under a key from another: BLAKE3 of handler and arguments."""
        return blake3(f"{self.handler}\0".encode() + self.args).digest(16)


class Mail(msgspec.Struct, array_like=True, frozen=True):
    """One inbox entry: consecutive messages of one sender, of one priority.

    `sender` is the name of a line: an agent's, or that of a client's session (`client_sender`).  `start`: where the receiver's log
    ended when a client's session began, 0 for an agent.  `low`: the sender has the outcome of every number below it.
    """

    to: str
    cls: str
    sender: str
    start: int
    low: int
    reply_to: str
    messages: list[Message]
    given_up: list[int] = []
    """Earlier numbers that a client has given up, although they may be stored late.  Behind this entry they take no effect."""


def inbox_of(mail: Mail) -> str:
    """The subject of the inbox that the mail is for.  An opening, which has no messages, is for the normal one."""
    return inbox_subject(mail.to, priority_of(mail.sender) if mail.messages else NORMAL)


def opening_of(mail: Mail) -> Mail:
    """What the sender stores before its first mail of a priority: it tells the receiver's owner to read that inbox (rule T1)."""
    return msgspec.structs.replace(mail, messages=[], given_up=[])


class Replies(msgspec.Struct, array_like=True, frozen=True):
    """The answers of `agent` to numbers of `sender`: each an `Answer` in msgpack, as stored in the agent's state."""

    agent: str
    sender: str
    answers: dict[int, bytes]
    revision: int = 0
    """How far the agent's log went when they left: what they say was committed up to there."""


def fitting(answers: dict[int, bytes], limit: int) -> list[dict[int, bytes]]:
    """Cuts the answers into lots of at most `limit` bytes, of which each fits one message of the wire."""
    size = sum(map(len, answers.values()))
    if size <= limit:
        return [answers]
    lots: list[dict[int, bytes]] = []
    for n, answer in answers.items():
        size += len(answer)
        if not lots or size > limit:
            lots.append({})
            size = len(answer)
        lots[-1][n] = answer
    return lots


class Answer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    result: bytes | None
    error: tuple[str, str, dict[str, str | int | float | bool | list[str] | None]] | None = None
    raised: bytes | None = None
    """Of an error that the handler declares: what makes it again (`agents.values.raises`)."""


_CLIENT = "\x01"
"""Begins a client's name.  No agent id holds a control character, so a client is never taken for an agent."""


def client_sender(session: str) -> str:
    return _CLIENT + session


def is_client(sender: str) -> bool:
    return sender.startswith(_CLIENT)


def sender_text(sender: str) -> str:
    """The sender as text for people."""
    return line_text(f"client {sender[len(_CLIENT) :]}" if is_client(sender) else sender)


def call_id(sender: str, n: int) -> str:
    """A call of an agent, as text for people: message `n` of a line."""
    return f"{n}.{encoded(sender)}"


class Verdict(Enum):
    """What to do with a message that has arrived."""

    APPLY = "apply"
    REPEAT = "repeat"
    """It has taken effect: answer from the stored reply, run nothing."""
    HOLD = "hold"
    """An earlier number of this sender is still missing."""
    CLOSED = "closed"
    """The sender has closed this number itself: `AnswerExpired`."""
    EXPIRED = "expired"
    """It may belong to a forgotten session: `SessionExpired`."""


class Peer(msgspec.Struct, array_like=True):
    """One sender.  For an agent `mark` is the highest number applied; a client's numbers are remembered one by one."""

    is_client: bool
    mark: int = 0
    low: int = 0
    start: int = 0
    answers: dict[int, bytes] = {}
    """Of an agent: answers to its asks.  Of a client: every number taken at or above `low`, with its answer or b""."""

    def raise_low(self, low: int) -> int:
        """Answers below `low` are not wanted any more.  Returns their size."""
        self.low, size = low, 0
        if self.answers:
            for n in [n for n in self.answers if n < low]:
                size += len(self.answers.pop(n))
        return size

    def content(self, name: str) -> tuple[object, ...]:
        """What a digest of it holds, whatever the order in which it came to be."""
        return name, self.mark, self.low, self.start, sorted(self.answers.items())


_mail = Codec[Mail](Mail, "mail")
_replies = Codec[list[Replies]](list[Replies], "reply")
_answer = Codec[Answer](Answer, "answer")

encode_replies = encode_answer = pack


def encode_mail(mail: Mail) -> bytes:
    return framed(pack(mail))


def decode_mail(data: bytes, where: str) -> Mail:
    return _mail.decode_framed(data, where)


def decode_replies(data: bytes) -> list[Replies]:
    """Raises `RecordInvalid` for bytes that are no replies: the wire may carry anything."""
    return _replies.decode(data, "A message on the reply subject")


def decode_answer(data: bytes) -> Answer:
    return _answer.decode(data, "A stored answer")


_SAID = "This answer was dropped: nobody had acknowledged it, and later ones took its place."
DROPPED = encode_answer(Answer(None, AnswerExpired(_SAID).to_wire()))
"""Takes the place of a dropped answer: a repeated ask gets this error, and nothing runs twice."""
