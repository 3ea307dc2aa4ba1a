"""Topics as they are used from outside of agents: publishing under a name, and reading along."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import NamedTuple

from mielin_cells import tracing
from mielin_cells.agents.topics.calls import since_s, starts
from mielin_cells.agents.topics.messages import Published, Since, TopicGap
from mielin_cells.errors import MessageTooLarge, RecordInvalid, StoreUnreachable
from mielin_cells.log.ids import TOPICS
from mielin_cells.log.message import sender_text
from mielin_cells.log.topics.names import check_pattern, matches, scan_pattern, subject_of, topic_of
from mielin_cells.log.topics.outside import check_outside
from mielin_cells.log.topics.posts import End, Post, Posting, Value, decode_post, encode_post, end_of, is_kept
from mielin_cells.log.topics.subs import Sub, Subs
from mielin_cells.settings import MESSAGE_BYTES_MAX
from mielin_cells.store.outside import follow_outside
from mielin_cells.substrate.ports import Appended, Entry, Found, Log, Unknown
from mielin_cells.substrate.retry import whole
from mielin_cells.tasks.signal import Signal
from mielin_cells.tasks.supervision import Backoff

PAGE = 256


async def read_post(log: Log, subject: str, entry: Entry) -> Post:
    """Raises `RecordInvalid` for an entry that is damaged where it is stored."""
    return await whole(log, subject, entry, partial(decode_post, subject=subject))


async def read_end(log: Log, subject: str, *, is_settled: bool) -> End:
    """The subject's last entry.  One that is stale costs a conflict, after which a settled one is read."""
    entry = await (log.settled(subject) if is_settled else log.last(subject))
    return End() if entry is None else end_of(entry.seq, await read_post(log, subject, entry))


async def publish(
    log: Log, publisher: str, topic: str, value: bytes, wall: Callable[[], float], nonce: bytes
) -> Published:
    """Publishes one message from outside, behind the last one of this publisher, whichever process published that.

    The nonce tells whether an append whose answer was lost has landed.  Raises what the store raises while it is certain that
    nothing was stored, and `MessageTooLarge`.
    """
    if len(value) > MESSAGE_BYTES_MAX:
        raise MessageTooLarge(
            f"A message to topic {topic!r} has {len(value)} bytes; the limit is {MESSAGE_BYTES_MAX}.",
            limit=MESSAGE_BYTES_MAX, size=len(value),
        )  # fmt: skip
    subject, posting, backoff = subject_of(topic, publisher), Posting(publisher, topic), Backoff()
    posting.end, trace = await read_end(log, subject, is_settled=False), tracing.outgoing()
    stored = Value.of(value, 0, trace.text if trace is not None else "")
    while True:
        post = posting.compose(posting.stored + 1, [stored], wall(), nonce)
        about = partial(Published, topic, sender_text(publisher), post.n, post.at)
        data, in_doubt = encode_post(post), False
        while posting.flying is post:
            outcome = await log.append(subject, data, post.prev)
            if isinstance(outcome, Appended):
                return about(outcome.seq)
            if isinstance(outcome, Unknown):
                in_doubt = True
            elif posting.met_conflict(await read_end(log, subject, is_settled=True)):
                pass
            elif in_doubt and (seq := await _landed(log, subject, post)):
                return about(seq)
            else:
                continue
            await backoff.wait()


async def _landed(log: Log, subject: str, post: Post) -> int:
    """Where the entry stands; 0: another one stands in its place, so it can never land."""
    backoff = Backoff()
    for _ in range(8):
        entries = await log.read(subject, post.prev, 1)
        if entries:
            there = await read_post(log, subject, entries[0])
            if there.prev != post.prev:
                break
            return entries[0].seq if there.nonce == post.nonce else 0
        await backoff.wait()
    raise StoreUnreachable(
        f"It is not known whether a message to topic {post.topic!r} is stored: what stands in its place was removed already.",
        subject=subject,
    )


async def remove_old(log: Log, subject: str, end: End, now: float, keep: int, keep_s: float) -> None:
    """Trims the subject below the first entry that is kept."""
    after = 0
    while entries := await log.read(subject, after, PAGE):
        for entry in entries:
            if is_kept(await read_post(log, subject, entry), end, now, keep, keep_s):
                await log.trim(subject, min(entry.seq, end.seq))
                return
        after = entries[-1].seq


class TopicInfo(NamedTuple):
    """One publisher of a topic."""

    topic: str
    publisher: str
    n: int
    """The number of its last message."""
    at: float
    """When that was published."""


async def list_topics(log: Log, pattern: str) -> list[TopicInfo]:
    """By topic and publisher."""
    names = [subject for subject, _ in await log.subjects(TOPICS) if matches(pattern, topic_of(subject)[0])]
    infos = []
    for subject, entry in (await log.lasts(names)).items():
        post = await read_post(log, subject, entry)
        infos.append(TopicInfo(post.topic, sender_text(post.publisher), post.last, post.at))
    return sorted(infos)


async def follow(
    log: Log, pattern: str, since: Since, now: float, poll_s: float, stream: str | None = None
) -> AsyncIterator[tuple[Published, bytes] | TopicGap]:
    """What is published to the topics that match, or stored in a stream of another system, for ever, by the rules of a subscription.
    Nothing is kept of it.

    Raises `TopicInvalid`, and what the store raises.
    """
    check_pattern(pattern)
    if stream is not None:
        async for one in follow_outside(log, check_outside(stream, pattern), since, now, poll_s):
            yield one
        return
    since_at = since_s(since, now)
    start = starts(since, await log.topic_ends())
    sub = Sub(pattern, "", "", start, since_at, [*start])
    subs, position, woken = Subs({sub.key: sub}), [*start], Signal()
    scanned, is_woken = scan_pattern(pattern), True

    def wake() -> None:
        nonlocal is_woken
        is_woken = True
        woken.set()

    watch = log.watch(scanned, wake)
    try:
        while True:
            is_woken, found_some = False, False
            for shard in range(len(position)):
                for found in await log.scan(scanned, shard, position[shard], PAGE):
                    position[shard], found_some = found.seq, True
                    for one in await _taken(log, subs, sub, shard, found):
                        yield one
            if not found_some and not is_woken:
                await woken.within(poll_s)
    finally:
        watch.close()


async def _taken(log: Log, subs: Subs, sub: Sub, shard: int, found: Found) -> list[tuple[Published, bytes] | TopicGap]:
    try:
        post = await read_post(log, found.subject, Entry(found.seq, found.data))
    except RecordInvalid:  # the publisher's next entry shows that messages are missing
        return []
    taking = subs.judge(sub.key, shard, found.seq, found.subject, post) if matches(sub.pattern, post.topic) else None
    if taking is None:
        return []
    subs.apply(taking.took)
    publisher = sender_text(post.publisher)
    items: list[tuple[Published, bytes] | TopicGap] = []
    if taking.gap is not None:
        items.append(TopicGap(sub.pattern, post.topic, publisher, taking.gap.first, taking.gap.last))
    for n, value in enumerate(post.values, post.n):
        items.append((Published(post.topic, publisher, n, post.at, found.seq, value.corrects), value.data))
    return items
