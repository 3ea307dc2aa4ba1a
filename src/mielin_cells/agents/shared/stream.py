"""`Stream`: what a handler that yields answers with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Self, TypeVar

T = TypeVar("T")


class Stream(ABC, AsyncIterator[T]):
    """The parts of one call, in order, as the handler yields them: `async for part in chat.say("hi")`.

    The call is sent when the iteration begins.  The stream goes on while the agent moves, and after its node has died: the turn runs
    again then, and the parts that are stored already are not sent again.  The iteration ends when the turn is committed.

    Guarantees: once it has ended, the parts are exactly those of the run that was committed, each once.
    Not guaranteed: that a part is final when it arrives.  If a step that emits parts is run again, the iteration raises
    `StreamRestarted` with the offset from which on the parts are replaced; the same iterator goes on with the new ones.

    Raises what an ask raises, and `StreamGap` if parts were removed before this reader had them (setting `stream_keep_s`).

        >>> class Clerk(cells.Agent):
        ...     @cells.handler
        ...     async def count(self, to: int) -> AsyncIterator[int]:
        ...         for n in range(to):
        ...             yield n
        ...
        >>> clerk = await cluster.spawn(Clerk, "clerk")
        >>> stream = clerk.count(3)
        >>> await anext(stream)
        0
        >>> [part async for part in clerk.count.read(stream.id, after=stream.position)]
        [1, 2]
    """

    @property
    @abstractmethod
    def id(self) -> str:
        """Names the call: `chat.say.read(id)` reads its stream from elsewhere.  Raises `UsageError` before the call was sent."""

    @property
    @abstractmethod
    def position(self) -> str:
        """Where this reader is.  Another one goes on from there: `chat.say.read(id, after=position)`."""

    @abstractmethod
    async def start(self) -> Self:
        """Sends the call, if that was not done yet, and returns once it is stored: from then on its id is known everywhere."""

    @abstractmethod
    def close(self) -> None:
        """Reads no more; the call goes on.  Done by itself at the end of the iteration."""

    @abstractmethod
    async def aclose(self) -> None:
        """Reads no more and cancels the call, unless it has ended; returns when the order is stored.  See `cluster.cancel`.

        The call is also cancelled when the task that reads is cancelled, and when nothing refers to the stream any more, as after
        leaving `async for part in chat.say("hi")`.  A stream made by `read` belongs to somebody else's call, and cancels nothing.
        """

    def on_restart(self, call: Callable[[int], None]) -> Self:
        """Calls `call(offset)` where the iteration would raise `StreamRestarted`."""
        self.restarted = call
        return self

    restarted: Callable[[int], None] | None = None
    """What `on_restart` was given."""
