"""Values as bytes, and the frame around everything that is stored.

A frame is: magic, format, payload length, BLAKE3 of the payload, payload.  It finds truncation, trailing bytes and any
changed bit before anything is decoded; the reader checks what the payload says (agent, sequence).
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec
from blake3 import blake3

from mielin_cells.errors import (
    ConfigError,
    DigestMismatch,
    RecordInvalid,
    RecordTruncated,
    TrailingData,
    UnknownRecord,
    UnsupportedFormat,
)

FORMAT = 1
_MAGIC = b"mc"
_HEAD = len(_MAGIC) + 1 + 4 + 32

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Exceptions of msgspec for bytes that it cannot decode; the last is for nesting deeper than the interpreter's limit."""
UNWRITABLE = (TypeError, ValueError, OverflowError, RecursionError)
"""Exceptions of encoding: a type without an encoding, text that is not UTF-8, a value that is too large."""

T = TypeVar("T")

pack = msgspec.msgpack.Encoder().encode
_fields = msgspec.msgpack.Decoder(list[msgspec.Raw])


class Codec(Generic[T]):
    """Values of one type, or tagged structs of a union, as msgpack."""

    __slots__ = ("_decode", "_noun", "_tags")

    def __init__(self, kind: Any, noun: str, base: type[msgspec.Struct] | None = None) -> None:
        """`noun` names a value in errors; `base` is the common base class of a union's structs."""
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._noun = noun
        self._tags = frozenset() if base is None else frozenset(cls.__name__ for cls in base.__subclasses__())

    def decode(self, data: bytes, where: str) -> T:
        """Raises `UnknownRecord` for a struct of another kind, `RecordInvalid` for bytes that do not decode."""
        try:
            value: T = self._decode(data)
            return value
        except (*UNREADABLE, ConfigError) as error:
            tag = _tag_of(data) if self._tags else None
            if tag is not None and tag not in self._tags:
                raise UnknownRecord(
                    f"{where} holds a {self._noun} of kind {tag!r}, which this version does not know; upgrade it.",
                    subject=where, tag=tag,
                ) from error  # fmt: skip
            raise RecordInvalid(f"{where} holds no readable {self._noun}: {error}.", subject=where) from error

    def decode_framed(self, data: bytes, where: str) -> T:
        """Raises the `RecordInvalid` that says what is wrong with the bytes at `where`; nothing is ever skipped."""
        return self.decode(unframed(data, where), where)


def _tag_of(data: bytes) -> str | None:
    try:
        return msgspec.msgpack.decode(_fields.decode(data)[0], type=str)
    except (*UNREADABLE, IndexError):
        return None


def framed(payload: bytes) -> bytes:
    return b"%b%c%b%b%b" % (_MAGIC, FORMAT, len(payload).to_bytes(4, "big"), blake3(payload).digest(), payload)


def unframed(data: bytes, where: str) -> bytes:
    """The payload.  Raises the `RecordInvalid` that says what is wrong with the bytes at `where`."""
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
