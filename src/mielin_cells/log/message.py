"""What travels: mail in inboxes, replies on the wire, and the frame around everything that is stored.

A frame is: magic, format, payload length, BLAKE3 of the payload, payload.  It finds truncation, trailing bytes and any
changed bit before anything is decoded; what the payload says (agent, sequence) is checked by who reads it.
"""

from __future__ import annotations

import msgspec
from blake3 import blake3

from mielin_cells.errors import DigestMismatch, RecordInvalid, RecordTruncated, TrailingData, UnsupportedFormat

FORMAT = 1
_MAGIC = b"mc"
_HEAD = len(_MAGIC) + 1 + 4 + 32


def framed(payload: bytes) -> bytes:
    return b"%b%c%b%b%b" % (_MAGIC, FORMAT, len(payload).to_bytes(4, "big"), blake3(payload).digest(), payload)


def unframed(data: bytes, where: str) -> bytes:
    """The payload.  Raises the kind of `RecordInvalid` that says what is wrong with the bytes found at `where`."""
    if len(data) < _HEAD:
        raise RecordTruncated(f"{where} holds {len(data)} bytes, less than a frame; restore the store.", subject=where)
    if data[:2] != _MAGIC:
        raise DigestMismatch(f"{where} does not begin as a frame; its bytes were changed.", subject=where)
    if data[2] != FORMAT:
        raise UnsupportedFormat(
            f"{where} has format {data[2]}, this version reads {FORMAT}; upgrade it.",
            subject=where, have=data[2], need=FORMAT,
        )  # fmt: skip
    size, payload = int.from_bytes(data[3:7], "big"), data[_HEAD:]
    if len(payload) < size:
        raise RecordTruncated(f"{where} is cut short: {len(payload)} of {size} bytes.", subject=where)
    if len(payload) > size:
        raise TrailingData(f"{where} has {len(payload) - size} bytes too many.", subject=where)
    if blake3(payload).digest() != data[7:_HEAD]:
        raise DigestMismatch(f"{where} does not match its digest; its bytes were changed.", subject=where)
    return payload


# `gc=False`: these hold no cycles, and thousands are made in a second; the collector need not look through them.


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One message of a sender: number `n` in that sender's count to this receiver."""

    n: int
    handler: str
    args: bytes
    ask: bool = False
    corrects: int = 0
    """The sender was rolled back: this stands in for its earlier message of this number."""
    chain: tuple[str, ...] = ()
    """Of an ask: the agents that wait for its answer, each for the next, and its sender last."""


class Mail(msgspec.Struct, array_like=True, frozen=True):
    """One inbox entry: consecutive messages of one sender.

    `sender` is an agent id, or for a client its session (`client_sender`).  `start`: where the receiver's log ended when a
    client's session began, 0 for an agent.  `low`: the sender has the outcome of every number below it.
    """

    to: str
    cls: str
    sender: str
    start: int
    low: int
    reply_to: str
    messages: list[Message]


class Replies(msgspec.Struct, array_like=True, frozen=True):
    """The answers of `agent` to numbers of `sender`: each an `Answer` in msgpack, as stored in the agent's state."""

    agent: str
    sender: str
    answers: dict[int, bytes]


class Answer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    result: bytes | None
    error: tuple[str, str, dict[str, str | int | float | bool | list[str] | None]] | None = None
    raised: bytes | None = None
    """Of an error that the handler declares: what makes it again (`core.raises`)."""


_CLIENT = "\x01"
"""No agent id holds a control character, so a client is never taken for an agent."""


def client_sender(session: str) -> str:
    return _CLIENT + session


def is_client(sender: str) -> bool:
    return sender.startswith(_CLIENT)


def sender_text(sender: str) -> str:
    """The sender for people."""
    return f"client {sender[len(_CLIENT) :]}" if is_client(sender) else sender


UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that it cannot decode: nesting deeper than the interpreter's limit is the last."""

_encoder = msgspec.msgpack.Encoder()
_mail = msgspec.msgpack.Decoder(Mail)
_replies = msgspec.msgpack.Decoder(list[Replies])
_answer = msgspec.msgpack.Decoder(Answer)


def encode_mail(mail: Mail) -> bytes:
    return framed(_encoder.encode(mail))


def decode_mail(data: bytes, where: str) -> Mail:
    payload = unframed(data, where)
    try:
        return _mail.decode(payload)
    except UNREADABLE as error:
        raise RecordInvalid(f"{where} is framed well but is no mail: {error}.", subject=where) from error


def encode_replies(replies: list[Replies]) -> bytes:
    return _encoder.encode(replies)


def decode_replies(data: bytes) -> list[Replies]:
    """Raises `RecordInvalid` for bytes that are no replies: the wire may carry anything."""
    try:
        return _replies.decode(data)
    except UNREADABLE as error:
        raise RecordInvalid(f"A message on the reply subject is no reply: {error}.") from error


def encode_answer(answer: Answer) -> bytes:
    return _encoder.encode(answer)


def decode_answer(data: bytes) -> Answer:
    try:
        return _answer.decode(data)
    except UNREADABLE as error:
        raise RecordInvalid(f"A stored answer cannot be read: {error}.") from error
