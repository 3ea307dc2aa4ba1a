"""What is known of a message of a topic, and of those that were missed."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal, TypeAlias

import msgspec

Since: TypeAlias = Literal["now", "first"] | int | datetime | timedelta
"""Where a subscription begins: what is published from now on; the first message that is still stored; an offset, behind which it
begins (`Published.offset`); a time, or how long ago."""


class Published(msgspec.Struct, frozen=True):
    """What is known of a message beside its value.  A handler gets it as its second parameter, if it has one of this type."""

    topic: str
    publisher: str
    """The id of the agent that published it, or the name that a client gave."""
    n: int
    """Number of the message in this publisher's count to this topic."""
    at: float
    """When it was stored, in wall seconds by its publisher's clock."""
    offset: int
    """Its place among all messages of the store's shard; messages that were stored together share one."""
    corrects: int = 0
    """The publisher was rolled back: this replaces its earlier message of this number."""


class TopicGap(msgspec.Struct, frozen=True):
    """Messages that were removed from the store before the subscriber had read them."""

    pattern: str
    topic: str
    publisher: str
    first: int
    """Number of the first one; 0 if that is not known, because nothing of this publisher was read before."""
    last: int
