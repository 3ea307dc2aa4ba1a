"""JetStream's words: requests, answers, and what its error codes mean.  Pure."""

from __future__ import annotations

import datetime
import re
from typing import Any, Final

import msgspec

from mielin_cells.errors import (
    CellError,
    ConfigError,
    InvalidAgentId,
    JetStreamDisabled,
    MessageTooLarge,
    PermissionDenied,
    QuotaExceeded,
    StoreFull,
    StoreUnreachable,
    StreamMissing,
)
from mielin_cells.substrate.ports import Appended, Conflict, Outcome, Unknown

EXPECT: Final = "Nats-Expected-Last-Subject-Sequence"
EXPECT_OF: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
"""The filter whose last sequence is meant; without it, the message's own subject."""
SOURCE: Final = "Nats-Stream-Source"
"""Of an entry that a stream has taken from another one: that stream, the sequence there, and more."""
SEQUENCE: Final = "Nats-Sequence"
PREVIOUS: Final = "Nats-Last-Sequence"
"""In a republished message: the subject's sequence before; in a batch: the entry's before, in this batch."""
STATUS: Final = "Status"
TIME: Final = "Nats-Time-Stamp"
MESSAGE_ID: Final = "Nats-Msg-Id"

INBOX: Final = "_INBOX."
"""Where answers are heard."""
NO_RESPONDERS: Final = "503"
END_OF_BATCH: Final = "204"
NOT_FOUND: Final = "404"
TOO_MANY: Final = "413"
"""A request for last entries would have more results than a server gives."""

SERVER_MIN: Final = (2, 12, 0)
"""Batched direct gets and the conditional append as they are used here; see `docs/semantics.md`."""

WRONG_LAST: Final = frozenset((10071, 10164))
"""Both mean "not the expected last sequence"; the second comes from a replicated stream's leader, perhaps too early."""
NO_MESSAGE: Final = 10037
STREAM_MISSING: Final = 10059
NAME_IN_USE: Final = 10058
_DISABLED: Final = frozenset((10039, 10076))
_FULL: Final = {
    10023: "the server has not enough resources",
    10047: "the server's storage is full",
    10028: "the server's memory is full",
    10077: "the stream has reached its limit",
    10122: "the stream has reached its limit",
}
_QUOTA: Final = {
    10002: "the account's resources are used up",
    10026: "the account's limit of consumers is reached",
    10027: "the account's limit of streams is reached",
}
_REPLICAS: Final = 10074
_NO_PEERS: Final = 10005
REPLICAS_REFUSED: Final = frozenset((_REPLICAS, _NO_PEERS))
"""The cluster has too few servers."""
_OVERLAP: Final = 10065
_TOO_LARGE: Final = 10054
_WORDS: Final = re.compile(r"[A-Za-z0-9_=-]+(\.[A-Za-z0-9_=-]+)*")
_DIGITS: Final = re.compile(r"(\d+)\s*$")
_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")
_FORBIDDEN: Final = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]*)\"", re.IGNORECASE)
PUBLISH: Final = "publish"
_TAGS: Final = "tags not matched"
OFFLINE: Final = "offline"
"""Text of a refusal when the cluster has enough servers but not all of them are up."""


class Unanswered(Exception):
    """A request was sent and will get no answer: it may or may not have been acted on."""


class ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    error: ApiError | None = None


class StoredMessage(msgspec.Struct):
    subject: str
    seq: int
    data: str = ""
    hdrs: str = ""
    time: datetime.datetime | None = None


class GetAnswer(msgspec.Struct):
    message: StoredMessage | None = None
    error: ApiError | None = None


class Placement(msgspec.Struct):
    tags: list[str] = []


class StreamConfig(msgspec.Struct):
    name: str = ""
    num_replicas: int = 1
    placement: Placement | None = None
    subjects: list[str] = []
    allow_direct: bool = False
    metadata: dict[str, str] = {}


class StreamState(msgspec.Struct):
    messages: int = 0
    first_seq: int = 0
    last_seq: int = 0
    subjects: dict[str, int] | None = None


class StreamAnswer(msgspec.Struct):
    """Of STREAM.INFO, STREAM.CREATE and STREAM.PURGE; the last fills neither."""

    config: StreamConfig = msgspec.field(default_factory=StreamConfig)
    state: StreamState = msgspec.field(default_factory=StreamState)
    cluster: dict[str, Any] | None = None
    """Which servers have a copy."""
    total: int = 0
    error: ApiError | None = None
    created: datetime.datetime | None = None
    ts: datetime.datetime | None = None
    """The time of the server that answers, the stream's leader."""

    @property
    def is_clustered(self) -> bool:
        return is_clustered(self.cluster)


def is_clustered(cluster: dict[str, Any] | None) -> bool:
    """By what STREAM.INFO says of it: a server alone names itself as the leader, and no cluster."""
    return bool(cluster and cluster.get("name"))


def stream_name(deployment: str, kind: str, shard: int) -> str:
    return f"{deployment}-{kind}-{shard}"


def checked_subject(subject: str) -> str:
    """Raises `InvalidAgentId` for wildcards, white space, line ends and empty words: `log.ids` never makes them."""
    if _WORDS.fullmatch(subject) is None:
        raise InvalidAgentId(
            f"{subject[:120]!r} is no subject: words of A-Z a-z 0-9 _ - = with dots between.", agent=subject
        )
    return subject


def outcome_of(data: bytes, subject: str) -> Outcome | None:
    """What a publish's answer says; None for a conflict that does not name the last sequence: ask for it.

    Raises what a refusal means: then nothing was stored.  An answer that cannot be read says nothing of that.
    """
    try:
        ack = decode(data, PubAck, subject)
    except StoreUnreachable as error:
        return Unknown(str(error))
    if ack.error is None:
        return Appended(ack.seq) if ack.seq > 0 else Unknown(f"the answer about {subject} names no sequence")
    if ack.error.err_code in WRONG_LAST:
        match = _DIGITS.search(ack.error.description)
        return Conflict(int(match[1])) if match is not None else None
    raise error_of(ack.error, subject)


def decode(data: bytes, kind: type[Any], where: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StoreUnreachable(f"The server's answer about {where} cannot be read: {error}.", subject=where) from error


def error_of(error: ApiError, where: str, stream: str = "") -> CellError:
    """The exception that a JetStream error means, about `where`: a subject of `stream`, or a stream itself."""
    code, words = error.err_code, error.description
    if code in _DISABLED:
        return disabled(words)
    if code == STREAM_MISSING:
        return missing(stream or where)
    if code in _QUOTA:
        return QuotaExceeded(f"Nothing was written to {where}: {_QUOTA[code]} ({words}); raise the limit.", limit=words)
    if code in _FULL:
        return StoreFull(
            f"Nothing was written to {where}: {_FULL[code]} ({words}). Free space or raise the limit, then try again; "
            "agents keep their last durable state.",
            subject=where,
        )  # fmt: skip
    if code == _REPLICAS:
        return ConfigError(f"replicas: {words}; a server alone keeps one copy.", field="replicas", range="1")
    if code == _NO_PEERS and _TAGS in words:
        return ConfigError(
            f"placement_tags: no server has all of these tags ({words}); give tags that are in the server_tags of servers that run.",
            field="placement_tags", range="tags of servers",
        )  # fmt: skip
    if code == _NO_PEERS and OFFLINE not in words:
        return ConfigError(
            f"replicas: the cluster has too few servers with JetStream ({words}); add servers, or ask for fewer copies.",
            field="replicas", range="at most one for each server",
        )  # fmt: skip
    if code == _OVERLAP:
        return ConfigError(
            f"The stream {where} cannot be made: another stream has its subjects; use another deployment name.",
            field="deployment", range="a name of its own",
        )  # fmt: skip
    if code == _TOO_LARGE:
        return MessageTooLarge(f"The entry for {where} is above the stream's limit ({words}); nothing was stored.")
    return StoreUnreachable(
        f"The server did not do it for {where}: {words} (error {code}); nothing was written.", subject=where
    )


def disabled(why: str) -> JetStreamDisabled:
    return JetStreamDisabled(
        f"The server has no JetStream for this account ({why}); start it with `nats-server -js`, or let its operator enable it."
    )


def missing(stream: str) -> StreamMissing:
    return StreamMissing(
        f"The stream {stream} is gone from the server: it was deleted. Stop, restore it from a backup, or use another "
        "deployment name; nothing is created in its place.",
        stream=stream,
    )  # fmt: skip


def version_of(text: str) -> tuple[int, int, int]:
    """The version as numbers; (0, 0, 0) for malformed text."""
    match = _VERSION.match(text)
    return (int(match[1]), int(match[2]), int(match[3])) if match is not None else (0, 0, 0)


def forbidden(text: str) -> tuple[str, str] | None:
    """What this user may not do, and with which subject, both in small letters; None for any other error."""
    match = _FORBIDDEN.search(text)
    return (match[1].lower(), match[2].lower()) if match is not None else None


def denied(action: str, subject: str) -> PermissionDenied:
    what = "write to" if action == PUBLISH else "listen on"
    return PermissionDenied(
        f"The server forbids this user to {what} {subject}; nothing was done. Let its operator allow it.",
        subject=subject,
    )
