"""Checks of what topics need: reads by pattern in the order of a shard, ends, wake-ups, and a last entry that stays."""

from __future__ import annotations

import asyncio

from mielin_cells.substrate.ports import Conflict, Found, Log, Substrate
from mielin_cells.testing.conformance.kit import WAIT_S, check, in_time, must, store

SUBJECTS = ("topic.a.b.=.p", "topic.a.b.=.q", "topic.a.c.=.p", "topic.a.=.p", "topic.d.b.=.p", "topic.a.b.c.=.p")


async def scanned(log: Log, pattern: str, after: tuple[int, ...] | None = None, limit: int = 1000) -> list[Found]:
    """All shards, one after the other."""
    starts = after if after is not None else (0,) * len(await log.topic_ends())
    return [one for shard, start in enumerate(starts) for one in await log.scan(pattern, shard, start, limit)]


async def put(log: Log, count: int) -> list[Found]:
    """Appends to all subjects in turn, and to others that no pattern of topics finds."""
    there = list[Found]()
    for n in range(count):
        subject = SUBJECTS[n % len(SUBJECTS)]
        there.append(Found(subject, await store(log, subject, b"%d" % n), b"%d" % n))
        await store(log, "inbox.a.b", b"no topic")
    return there


@check
async def a_scan_gives_what_matches_in_order(substrate: Substrate) -> None:
    log = substrate.log
    there = await put(log, 120)
    wanted = {
        "topic.a.b.=.*": {"topic.a.b.=.p", "topic.a.b.=.q"},
        "topic.*.b.=.p": {"topic.a.b.=.p", "topic.d.b.=.p"},
        "topic.a.>": set(SUBJECTS) - {"topic.d.b.=.p"},
        "topic.>": set(SUBJECTS),
        "topic.a.*": set(),
        "topic.a.c.=.p": {"topic.a.c.=.p"},
        "topic.none.>": set(),
    }
    for pattern, subjects in wanted.items():
        found = await scanned(log, pattern)
        must(
            sorted(found, key=lambda one: one.data) == sorted((f for f in there if f.subject in subjects), key=lambda one: one.data),
            f"{pattern} found another set of entries.",
        )  # fmt: skip
    for shard in range(len(await log.topic_ends())):
        seqs = [one.seq for one in await log.scan("topic.>", shard)]
        must(seqs == sorted(set(seqs)), "A scan is not in the order of its shard.")
        must(all(seq > 0 for seq in seqs), "A sequence is not above 0.")


@check
async def attributes_are_scanned_apart_from_topics(substrate: Substrate) -> None:
    log = substrate.log
    await put(log, 12)
    first = await store(log, "attr.a", b"1")
    await store(log, "attr.b", b"2")
    last = await store(log, "attr.a", b"3")
    must(
        [one.data for one in await scanned(log, "attr.*") if one.subject == "attr.a"] == [b"1", b"3"],
        "A scan lacks attributes.",
    )
    must(len(await scanned(log, "attr.*")) == 3, "A scan of attributes gives something else.")
    must(all(one.subject in SUBJECTS for one in await scanned(log, "topic.>")), "A scan of topics gives attributes.")
    must(await log.append("attr.a", b"4", first) == Conflict(last), "Attributes are appended behind an older entry.")
    await log.trim("attr.a", last + 1)
    left = [one.data for one in await scanned(log, "attr.*") if one.subject == "attr.a"]
    must(left == [b"3"], "A trim of attributes leaves more, or less, than the last entry.")
    must(
        await log.append("attr.a", b"4", last) != Conflict(last),
        "A trim of attributes moves the place that appends expect.",
    )


@check
async def a_scan_goes_on_where_one_ended(substrate: Substrate) -> None:
    log = substrate.log
    await put(log, 60)
    for shard in range(len(await log.topic_ends())):
        whole, after, pages = await log.scan("topic.*.b.=.*", shard), 0, list[Found]()
        while page := await log.scan("topic.*.b.=.*", shard, after, 7):
            must(len(page) <= 7, "A scan gave more than its limit.")
            pages += page
            after = page[-1].seq
        must(pages == whole, "Pages of a scan are not what one scan gives.")


@check
async def entries_of_one_shard_have_different_sequences(substrate: Substrate) -> None:
    """Subjects of one shard are read in one order, so no two entries of it may stand at the same place."""
    log = substrate.log
    there = await put(log, 30)
    by_shard = [await log.scan("topic.>", shard) for shard in range(len(await log.topic_ends()))]
    must(sum(map(len, by_shard)) == len(there), "An entry is in no shard, or in two.")
    for found in by_shard:
        must(len({one.seq for one in found}) == len(found), "Two entries of a shard have one sequence.")


@check
async def what_comes_after_the_ends_is_behind_them(substrate: Substrate) -> None:
    log = substrate.log
    before = await put(log, 30)
    ends = await log.topic_ends()
    must(await scanned(log, "topic.>", ends) == [], "The ends do not reach what is stored.")
    after = [Found(s, await store(log, s, b"new"), b"new") for s in SUBJECTS]
    found = await scanned(log, "topic.>", ends)
    must(sorted(found) == sorted(after), "A scan behind the ends does not give just what came after.")
    must(len(await scanned(log, "topic.>")) == len(before) + len(after), "A scan from the beginning is not whole.")


@check
async def a_watch_wakes(substrate: Substrate) -> None:
    log, woken, other = substrate.log, asyncio.Event(), asyncio.Event()
    watch, second = log.watch("topic.a.*.=.*", woken.set), log.watch("topic.z.>", other.set)

    async def wakes() -> None:
        """A wake-up may be lost, so there are many."""
        for n in range(1000):
            await store(log, "topic.a.b.=.p", b"%d" % n)
            try:
                await asyncio.wait_for(woken.wait(), WAIT_S / 1000)
                return
            except TimeoutError:
                continue

    await in_time(wakes(), "Nothing wakes the watch of a pattern.")
    must(woken.is_set() and not other.is_set(), "A watch was woken by another pattern, or not at all.")
    watch.close()
    watch.close()
    woken.clear()
    await store(log, "topic.a.b.=.p", b"unheard")
    await store(log, "topic.z.y.=.p", b"heard")
    await asyncio.sleep(0.05)
    must(not woken.is_set(), "A watch that was closed is woken.")
    second.close()


@check
async def a_trim_never_takes_the_last_entry_of_a_topic(substrate: Substrate) -> None:
    log, subject = substrate.log, "topic.a.b.=.p"
    seqs = [await store(log, subject, b"%d" % n) for n in range(5)]
    for before in (seqs[2], seqs[-1] + 1, seqs[-1] + 1_000_000):
        await log.trim(subject, before)
        last = await log.last(subject)
        must(last is not None and last.seq == seqs[-1], "A trim took the last entry of a topic's subject.")
    left = await log.read(subject)
    must([entry.seq for entry in left] == seqs[-1:], "A trim left what it was to remove.")
    must([one.seq for one in await scanned(log, subject)] == seqs[-1:], "A scan gives what was trimmed.")
    must(isinstance(await log.append(subject, b"old", 0), Conflict), "A first append lands once more after a trim.")
    await store(log, subject, b"next", seqs[-1])


@check
async def topics_are_listed_and_tailed_like_other_subjects(substrate: Substrate) -> None:
    log = substrate.log
    there = await put(log, 12)
    ends = {one.subject: one.seq for one in there}
    must(await log.subjects("topic.") == sorted(ends.items()), "`subjects` does not list the topics.")
    must((await log.lasts([*SUBJECTS])).keys() == set(SUBJECTS), "`lasts` lacks a topic.")
    tail = log.tail(SUBJECTS[0], 0)
    try:
        got = list[int]()
        while len(got) < 3:
            got += [entry.seq for entry in await in_time(tail.__anext__(), "A tail of a topic gives nothing.")]
            if len(got) == 2:
                await store(log, SUBJECTS[0], b"live")
    finally:
        tail.close()
    must(got == sorted(got), "A tail of a topic is not in order.")
