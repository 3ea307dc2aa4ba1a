"""Streams of other systems as topics: where a subscription begins, and what is read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from mielin_cells.agents.topics.bodies import BodyUnreadable, value_of
from mielin_cells.agents.topics.calls import since_s
from mielin_cells.agents.topics.messages import Published, Since, TopicGap
from mielin_cells.agents.values.wire import encode
from mielin_cells.errors import UsageError
from mielin_cells.log.topics.outside import MADE, Foreign, Page, judge_page, publisher_of, split
from mielin_cells.log.topics.subs import Gap, Sub, Subs
from mielin_cells.substrate.ports import Log, Outside, Subscription
from mielin_cells.tasks.signal import Signal

PAGE = 256
POLL_S = 1.0
"""A stream whose messages cannot be heard is looked at this often."""
SOON_S = 0.002
SOON_S_MAX = 0.5
"""After a hint the stream is looked at after waits that double from the first to the second of these."""


def streams_of(log: Log) -> Outside:
    """Raises `UsageError` if the store has no streams of other systems."""
    if log.outside is None:
        raise UsageError(
            "stream= names a stream of NATS, and this deployment keeps its agents in a file; connect one to NATS."
        )
    return log.outside


async def subscription(log: Log, pattern: str, handler: str, on_gap: str, since: Since, now: float) -> Sub:
    """A new subscription.  Raises `UsageError`, `NoSuchStream`, and what the store raises."""
    outside, (stream, _) = streams_of(log), split(pattern)
    since_at = since_s(since, now)
    extent = await outside.extent(stream)
    if since_at:
        start = await outside.find(stream, extent, since_at)
    elif since == "now":
        start = extent.last
    else:
        start = since if isinstance(since, int) else extent.first - 1
    return Sub(pattern, handler, on_gap, [start], 0.0, [start], {MADE: extent.made})


async def read_page(outside: Outside, pattern: str, after: int, made: int) -> Page:
    """What follows, and the extent read after it: what that does not hold any more was removed before now.

    If nothing follows, the leader is asked once more: only then what was passed over holds nothing that matches.
    `made`: which stream it is, as was read before.  If it was deleted and made anew meanwhile, nobody knows of which of the two the
    messages are, and the page holds none.
    """
    stream, subjects = split(pattern)
    messages = await outside.read(stream, subjects, after, PAGE)
    extent = await outside.extent(stream)
    if extent.made != made:
        return Page(extent, [])
    if messages or extent.last <= after:
        return Page(extent, messages)
    looked = extent
    messages = await outside.read(stream, subjects, after, 1, is_settled=True)
    extent = await outside.extent(stream)
    return Page(extent, messages, 0 if messages or extent.made != looked.made else looked.last)


def about_of(pattern: str, message: Foreign) -> Published:
    return Published(message.subject, publisher_of(pattern), message.seq, message.at, message.seq, id=message.id)


def gap_of(pattern: str, gap: Gap) -> TopicGap:
    stream, subjects = split(pattern)
    return TopicGap(f"{subjects} of stream {stream}", subjects, publisher_of(pattern), gap.first, gap.last)


class Waking:
    """When to look at a stream again.  A hint may come before its message is stored, so after one it is looked at several times."""

    def __init__(self, outside: Outside, pattern: str, poll_s: float, wake: Callable[[], None]) -> None:
        self._outside = outside
        self._stream, self._subjects = split(pattern)
        self._poll_s = poll_s
        self._wake = wake
        self._hint: Subscription | None = None
        self._soon_s = 0.0

    async def listen(self) -> None:
        if self._hint is None:
            self._hint = await self._outside.watch(self._stream, self._subjects, self._heard)

    def _heard(self) -> None:
        self.close()  # a hint that is heard of twice may have been replaced in between
        self._hint, self._soon_s = None, SOON_S
        self._wake()

    def found(self) -> None:
        """What the hint was about has been read, as far as anybody knows."""
        self._soon_s = 0.0

    def wait_s(self) -> float:
        if self._soon_s:
            wait_s, self._soon_s = self._soon_s, 2 * self._soon_s if self._soon_s < SOON_S_MAX else 0.0
            return wait_s
        return self._poll_s if self._hint is not None else min(POLL_S, self._poll_s)

    def close(self) -> None:
        if self._hint is not None:
            self._hint.close()


async def follow_outside(
    log: Log, pattern: str, since: Since, now: float, poll_s: float
) -> AsyncIterator[tuple[Published, bytes] | TopicGap]:
    """What is stored in a stream of another system, for ever, by the rules of a subscription.  Nothing is kept of it.

    A body that is neither JSON nor msgpack is given as bytes.  Raises `NoSuchStream`, and what the store raises.
    """
    outside, sub = streams_of(log), await subscription(log, pattern, "", "", since, now)
    subs, woken, is_woken = Subs({sub.key: sub}), Signal(), True

    def wake() -> None:
        nonlocal is_woken
        is_woken = True
        woken.set()

    waking, position = Waking(outside, pattern, poll_s, wake), sub.cursor[0]
    try:
        while True:
            await waking.listen()
            is_woken = False
            made = sub.marks[MADE]
            page = await read_page(outside, pattern, position, made)
            taking = judge_page(subs, sub.key, position, page, PAGE)
            if taking is not None:
                subs.apply(taking.took)
                if taking.gap is not None:
                    yield gap_of(pattern, taking.gap)
                for message in taking.messages:
                    yield about_of(pattern, message), _value(message)
            position = max(page.passed, position) if taking is None else taking.took.seq
            if page.messages:
                waking.found()
            elif not is_woken and page.extent.made == made:
                await woken.within(waking.wait_s())
    finally:
        waking.close()


def _value(message: Foreign) -> bytes:
    try:
        return value_of(message.data, as_bytes=False)
    except BodyUnreadable:
        return encode(message.data)
