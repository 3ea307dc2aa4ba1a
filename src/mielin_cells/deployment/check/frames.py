"""What `mielin check` and its sandbox tell each other, as frames of bytes: a length, and a value in msgpack."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

LENGTH_BYTES = 8


class Waiting(msgspec.Struct, array_like=True, frozen=True):
    """A call that the agent has yet to take, or will make to itself."""

    what: str
    """message, timer, wait or topic."""
    handler: str
    args: bytes | None = None
    """As stored; None if they are not known yet."""


class Trial(msgspec.Struct, array_like=True, frozen=True):
    """An agent as it is stored."""

    agent: str
    cls: str
    version: int
    state: bytes
    calls: list[Waiting]


class Ready(msgspec.Struct, array_like=True, frozen=True, tag="ready"):
    """The process runs, and is about to import the app."""


class Loaded(msgspec.Struct, array_like=True, frozen=True, tag="loaded"):
    """The app is imported."""

    classes: dict[str, int]
    """Agent classes with their versions."""


class Refused(msgspec.Struct, array_like=True, frozen=True, tag="refused"):
    """The app cannot be used."""

    message: str


class Verdict(msgspec.Struct, array_like=True, frozen=True, tag="verdict"):
    """What became of a trial."""

    agent: str
    code: str = ""
    """Of the error that keeps the agent from loading; "": it loads."""
    why: str = ""
    calls: list[str] = []
    """Why some of its calls cannot be made, each once."""


Told: TypeAlias = Ready | Loaded | Refused | Verdict

_told: msgspec.msgpack.Decoder[Told] = msgspec.msgpack.Decoder(Told)
_trial = msgspec.msgpack.Decoder(Trial)


def frame(value: Told | Trial) -> bytes:
    data = msgspec.msgpack.encode(value)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def decode_told(data: bytes) -> Told:
    return _told.decode(data)


def decode_trial(data: bytes) -> Trial:
    return _trial.decode(data)
