"""What is known of a message of a topic, and of those that were missed."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal, TypeAlias

import msgspec

Since: TypeAlias = Literal["now", "first"] | int | datetime | timedelta
"""Where a subscription begins: what is published from now on; the first message that is still stored; an offset, behind which it
begins (`Published.offset`); a time, or how long ago."""


class Published(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a message beside its value.  A handler gets it as its second parameter, if it has one of this type.

    >>> about = await cluster.publish("orders.eu.new", {"pieces": 3}, publisher="web")
    >>> about.topic, about.publisher, about.n
    ('orders.eu.new', 'client web', 1)
    """

    topic: str
    publisher: str
    """The id of the agent that published it; `client NAME` of a client; `stream NAME` of a stream of another system."""
    n: int
    """Number of the message in this publisher's count to this topic; its sequence in the stream of another system."""
    at: float
    """When it was stored, in wall seconds by its publisher's clock."""
    offset: int
    """Its place among all messages of the store's shard; messages that were stored together share one."""
    corrects: int = 0
    """The publisher was rolled back: this replaces its earlier message of this number."""
    id: str = ""
    """The id that another system gave it (`Nats-Msg-Id`)."""


class TopicGap(msgspec.Struct, frozen=True):
    """Messages that were removed from the store before the subscriber had read them.

    Of a stream of another system these are positions of that stream, and it is not known whether messages to the subscriber were among
    them.

        >>> class Reader(cells.Agent):
        ...     async def on_start(self) -> None:
        ...         await cells.subscribe("news", self.on_news, on_gap=self.on_gap)
        ...
        ...     @cells.handler
        ...     async def on_news(self, text: str) -> None: ...
        ...
        ...     @cells.handler
        ...     async def on_gap(self, gap: cells.TopicGap) -> str:
        ...         return f"{gap.last - gap.first + 1} messages of {gap.publisher} are gone"
        ...
        >>> reader = await cluster.spawn(Reader, "reader")
        >>> gap = cells.TopicGap(pattern="news", topic="news", publisher="paper", first=2, last=7)
        >>> await reader.on_gap(gap)  # as the node calls it
        '6 messages of paper are gone'
    """

    pattern: str
    topic: str
    publisher: str
    first: int
    """Number of the first one; 0 if that is not known, because nothing of this publisher was read before."""
    last: int
    """Number of the last one; 0 of a stream that was deleted and made anew: it is read from its first message."""
