"""Entries of topics: streams of their own, read by pattern in the order of each stream.

They are republished without their bodies, since what is live is only a wake-up.  A stream has no age limit: one would remove the last
entry of a subject, and then an old message, sent again, would be stored a second time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.api import Unanswered
from mielin_cells.substrate.jetstream.ask import ask, raw_stream
from mielin_cells.substrate.jetstream.asking import APPEND_S, Asking
from mielin_cells.substrate.jetstream.connection import Connection, Listener
from mielin_cells.substrate.jetstream.heard import Heard
from mielin_cells.substrate.jetstream.places import TOPIC, TOPICS_NOTE, head_of
from mielin_cells.substrate.ports import Found

BATCH: Final = 256
BATCH_BYTES: Final = 4 * 1024 * 1024
MADE: Final = "mielin.topics"
"""In the metadata of the first log stream of a new deployment: the streams of topics have been made.  A lost one is not made again."""


async def has_topics(connection: Connection, deployment: str, metadata: Mapping[str, str]) -> bool:
    """True if the streams of topics have been made: so says the first log stream's metadata, or a note, which its leader reads."""
    if metadata.get(MADE):
        return True
    first = api.stream_name(deployment, "log", 0)
    wanted = json.dumps({"last_by_subj": _note(deployment)}).encode()
    answer: api.GetAnswer = await ask(connection, f"STREAM.MSG.GET.{first}", wanted, api.GetAnswer)
    if answer.error is not None and answer.error.err_code != api.NO_MESSAGE:
        raise api.error_of(answer.error, first)
    return answer.message is not None


async def make_topics(connection: Connection, deployment: str, make: Callable[[str], Any]) -> None:
    """Makes the streams of a deployment that an earlier version made.  `make` creates the stream of a name.

    That they are made is then noted by a conditional append, and not in the metadata of the stream: a server takes a stream's
    configuration from whoever writes last, and so would take back what somebody else changes meanwhile, such as its copies.  If the
    outcome of the append is not known, the next look at the note shows it.
    """
    first = api.stream_name(deployment, "log", 0)
    metadata = (await raw_stream(connection, first))["config"].get("metadata", {})
    while not await has_topics(connection, deployment, metadata):
        for shard in range(int(metadata["mielin.shards"])):
            answer = await make(api.stream_name(deployment, TOPIC, shard))
            if answer.error is not None and answer.error.err_code != api.NAME_IN_USE:
                raise api.error_of(answer.error, api.stream_name(deployment, TOPIC, shard))
        with contextlib.suppress(Unanswered):
            await connection.call(_note(deployment), b"1", APPEND_S, {api.EXPECT: "0"})


def _note(deployment: str) -> str:
    return head_of(deployment, "log", 0) + TOPICS_NOTE


class Watching:
    """A subscription to what is stored under a pattern."""

    __slots__ = ("_forget", "_listener", "wake")

    def __init__(self, listener: Listener, wake: Callable[[], None], forget: Callable[[Watching], None]) -> None:
        self._listener = listener
        self._forget = forget
        self.wake = wake

    def close(self) -> None:
        self._listener.close()
        self._forget(self)


class Topics(Asking):
    """Reads a deployment's topics."""

    def __init__(self, connection: Connection, deployment: str, shards: int) -> None:
        super().__init__(connection)
        self._deployment = deployment
        self._shards = shards
        self._watching: dict[Watching, None] = {}

    async def ends(self) -> tuple[int, ...]:
        """As the leaders answer, or those that were cut off and do not know it yet."""
        names = [api.stream_name(self._deployment, TOPIC, shard) for shard in range(self._shards)]
        return tuple([(await self._stream("STREAM.INFO", name, {}, name)).state.last_seq for name in names])

    async def scan(self, pattern: str, shard: int, after: int, limit: int) -> list[Found]:
        stream, head = api.stream_name(self._deployment, TOPIC, shard), head_of(self._deployment, TOPIC, shard)
        found: list[Found] = []
        while len(found) < limit:
            wanted: dict[str, object] = {
                "seq": after + 1, "next_by_subj": head + pattern, "batch": min(BATCH, limit - len(found)),
                "max_bytes": BATCH_BYTES,
            }  # fmt: skip
            page, more = await self._batch(stream, wanted, after, pattern)
            found += [Found(one.subject.removeprefix(head), one.seq, one.data) for one in page]
            if not page or not more:
                break
            after = page[-1].seq
        return found

    def watch(self, pattern: str, wake: Callable[[], None]) -> Watching:
        self._connection.check()

        def receive(_: Heard) -> None:
            wake()

        listener = self._connection.listen(f"{self._deployment}.live.*.{pattern}", receive)
        watching = Watching(listener, wake, self._unwatch)
        self._watching[watching] = None
        return watching

    def _unwatch(self, watching: Watching) -> None:
        self._watching.pop(watching, None)

    def wake_all(self) -> None:
        """The connection was lost: nobody knows what was missed."""
        for watching in tuple(self._watching):
            watching.wake()

    def close(self) -> None:
        for watching in tuple(self._watching):
            watching.close()
