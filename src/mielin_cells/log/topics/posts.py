"""The entries of a topic, and how a publisher appends them: one at a time, each behind the last one that it knows (rule T8).

Each append expects the subject's last entry and says the number of its first message.  Numbers decide what is stored: that an append
met a conflict says nothing, since another owner of the same agent may have stored the message, or an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

import msgspec

from mielin_cells.errors import RecordInvalid, never
from mielin_cells.log.codec import Codec, framed, pack
from mielin_cells.log.topics.names import subject_of
from mielin_cells.settings import MAIL_BYTES_MAX

POST_MESSAGES_MAX = 256
"""Messages in one entry of a topic: a subscriber takes an entry as a whole."""


class Traced(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What stands in place of `Value.about` for a message of a trace."""

    corrects: int
    trace: str


class Value(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One message of a topic: msgpack of what was published."""

    data: bytes
    about: int | Traced = 0
    """`corrects`, and for a message of a trace that, too."""

    @classmethod
    def of(cls, data: bytes, corrects: int, trace: str) -> Value:
        return cls(data, Traced(corrects, trace) if trace else corrects)

    @property
    def corrects(self) -> int:
        """The publisher was rolled back: this replaces its earlier message of this number."""
        return self.about if isinstance(self.about, int) else self.about.corrects

    @property
    def trace(self) -> str:
        return "" if isinstance(self.about, int) else self.about.trace


class Post(msgspec.Struct, array_like=True, frozen=True):
    """One entry of a topic: consecutive messages of one publisher."""

    publisher: str
    topic: str
    n: int
    """Number of the first message, in this publisher's count to this topic."""
    prev: int
    """Sequence of the entry before it of this subject; 0: there was none."""
    prev_at: float
    at: float
    """When it was made, in wall seconds by its publisher's clock; never before `prev_at`."""
    nonce: bytes
    values: list[Value]

    @property
    def last(self) -> int:
        return self.n + len(self.values) - 1


_posts = Codec[Post](Post, "message of a topic")


def encode_post(post: Post) -> bytes:
    return framed(pack(post))


def decode_post(data: bytes, subject: str) -> Post:
    """Raises `RecordInvalid`, also for an entry of another subject."""
    post = _posts.decode_framed(data, subject)
    if subject_of(post.topic, post.publisher) != subject or not post.values:
        raise RecordInvalid(f"{subject} holds an entry of topic {post.topic!r} by {post.publisher!r}.", subject=subject)
    return post


class End(NamedTuple):
    """The last entry of a publisher's subject: its sequence, the number of its last message, and its time."""

    seq: int = 0
    n: int = 0
    at: float = 0.0


def end_of(seq: int, post: Post) -> End:
    return End(seq, post.last, post.at)


def is_kept(post: Post, end: End, now: float, keep: int, keep_s: float) -> bool:
    """True for an entry that is young enough, and among the newest of its subject.  The last entry always is."""
    return post.last == end.n or (post.last > end.n - keep and post.at >= now - keep_s)


class Posting:
    """One publisher and one topic."""

    __slots__ = ("end", "flying", "publisher", "topic")

    def __init__(self, publisher: str, topic: str) -> None:
        self.publisher = publisher
        self.topic = topic
        self.end: End | None = None
        """The subject's last entry, as far as it is known; None: it is to be read."""
        self.flying: Post | None = None
        """The entry whose append has no outcome yet: nothing else is appended."""

    @property
    def stored(self) -> int:
        """Every message up to this number is stored."""
        return self.end.n if self.end is not None else 0

    def compose(self, first: int, values: Iterable[Value], now: float, nonce: bytes) -> Post:
        """The next entry: messages from number `first` on, as many as one entry may hold, at least one."""
        end = self.end
        if self.flying is not None or end is None or first <= end.n:
            raise never(f"message {first} is composed while {self.flying or end} stands")
        size, fitting = 0, list[Value]()
        for value in islice(values, POST_MESSAGES_MAX):
            size += len(value.data) + 16
            if fitting and size > MAIL_BYTES_MAX:
                break
            fitting.append(value)
        self.flying = Post(self.publisher, self.topic, first, end.seq, end.at, max(now, end.at), nonce, fitting)
        return self.flying

    def landed(self, seq: int) -> None:
        """The entry is stored."""
        if self.flying is None:
            raise never("an entry landed that was not appended")
        self.end, self.flying = End(seq, self.flying.last, self.flying.at), None

    def met_conflict(self, there: End) -> bool:
        """The append met a conflict; `there` is the subject's last entry, read since.  True: the same bytes are appended again.

        If the subject has not moved, the conflict was none (rule 2).  Else what was appended stands there, or an entry that came
        before it: the numbers of that entry say which messages are stored.
        """
        if self.end is not None and there.seq == self.end.seq:
            return True
        self.end, self.flying = there, None
        return False
