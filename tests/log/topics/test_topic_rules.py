"""What a publisher appends and a subscriber takes: the broken variants of the model (T8a to T8o), as tables."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import pytest
from support.agent_log import after, claimed, commit, committed, undone

from mielin_cells.errors import RecordInvalid, TopicInvalid
from mielin_cells.log.fold import Fold
from mielin_cells.log.records import AnyRecord
from mielin_cells.log.rules import wrong_topics
from mielin_cells.log.topics.names import (
    check_pattern,
    check_topic,
    is_topic,
    matches,
    receiver_of,
    scan_pattern,
    subject_of,
    topic_named,
    topic_of,
)
from mielin_cells.log.topics.posts import POST_MESSAGES_MAX, End, Post, Posting, Value, decode_post, encode_post
from mielin_cells.log.topics.subs import Gap, Sub, Subs, Subscribed, Took, TopicChange, Unsubscribed, after_undo
from mielin_cells.settings import MAIL_BYTES_MAX
from mielin_cells.substrate.patterns import matcher

# ---- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("orders.*.new", ["orders.eu.new", "orders.=.new"], ["orders.new", "orders.eu.old", "orders.eu.new.x", "x.eu.new"]),
        ("orders.>", ["orders.eu", "orders.eu.new"], ["orders", "order.eu"]),
        (">", ["a", "a.b"], []),
        ("a", ["a"], ["a.b", "b"]),
        ("*.*", ["a.b"], ["a", "a.b.c"]),
        ("a.*.>", ["a.b.c", "a.b.c.d"], ["a.b", "b.b.c"]),
        ("größe.*", ["größe.x"], ["grosse.x"]),
    ],
)  # fmt: skip
def test_patterns_are_those_of_nats(pattern: str, fits: list[str], does_not: list[str]) -> None:
    assert check_pattern(pattern) == pattern
    scanned = matcher(scan_pattern(pattern))
    for topic in fits:
        assert matches(pattern, check_topic(topic))
        for publisher in ("p", "a b", "=", "\x01client", "a.b"):
            assert scanned(subject_of(topic, publisher)), "the scan finds less than the pattern"
            assert topic_of(subject_of(topic, publisher)) == (topic, publisher)
    assert not any(matches(pattern, topic) for topic in does_not)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        "a\nb",
        "a.*b",
        "a.>b",
        "x" * 257,
        ".".join("a" * 17),
        5,
        None,
        b"a",
        "a.\ud800",
    ],
)
def test_malformed_names_are_refused(bad: object) -> None:
    for check in (check_topic, check_pattern):
        with pytest.raises(TopicInvalid):
            check(bad)


def test_wildcards_are_for_patterns_and_the_rest_is_last() -> None:
    for wild in ("a.*", ">", "*"):
        assert check_pattern(wild) == wild
        with pytest.raises(TopicInvalid, match="only patterns"):
            check_topic(wild)
    with pytest.raises(TopicInvalid, match="last level"):
        check_pattern("a.>.b")


def test_a_topic_is_never_taken_for_an_agent() -> None:
    assert is_topic(receiver_of("a"))
    assert topic_named(receiver_of("a.b")) == "a.b"
    assert not is_topic("a")


# ---- what a publisher appends ----------------------------------------------------------------------------------------


class Shard:
    """One subject, with conditional appends."""

    def __init__(self) -> None:
        self.posts: list[tuple[int, Post]] = []
        self.seq = 0

    @property
    def end(self) -> End:
        return End(self.posts[-1][0], self.posts[-1][1].last, self.posts[-1][1].at) if self.posts else End()

    def append(self, post: Post) -> int:
        """The sequence, or 0 for a conflict."""
        if post.prev != self.end.seq:
            return 0
        self.seq += 3  # other subjects have the others
        self.posts.append((self.seq, post))
        return self.seq

    @property
    def numbers(self) -> list[int]:
        return [n for _, post in self.posts for n in range(post.n, post.last + 1)]


def owner(shard: Shard) -> Posting:
    """A new owner of the publisher: it reads the end."""
    posting = Posting("p", "t")
    posting.end = shard.end
    return posting


def compose(posting: Posting, *numbers: int, now: float = 1.0) -> Post:
    return posting.compose(numbers[0], [Value(b"%d" % n) for n in numbers], now, b"")


def test_a_new_owner_sends_only_what_is_above_the_last_number() -> None:
    """T8a, T8f, T8g: 1 landed, its owner died before it knew."""
    shard = Shard()
    assert shard.append(compose(owner(shard), 1))
    second = owner(shard)
    assert second.stored == 1
    with pytest.raises(AssertionError, match="cannot be"):
        compose(second, 1)
    second.landed(shard.append(compose(second, 2)))
    assert shard.numbers == [1, 2]
    assert second.stored == 2


def test_a_conflict_says_nothing_and_numbers_say_what_is_stored() -> None:
    """T8b, T8c: the first owner's 1 is in doubt and landed; the second one sends 2; the first meets the conflict on 1."""
    shard = Shard()
    first = owner(shard)
    one = compose(first, 1)
    assert shard.append(one)
    second = owner(shard)
    second.landed(shard.append(compose(second, 2)))
    assert not shard.append(one)
    assert first.met_conflict(shard.end) is False
    assert first.stored == 2, "neither 1 nor 2 is sent again"
    first.landed(shard.append(compose(first, 3)))
    assert shard.numbers == [1, 2, 3]


def test_a_conflict_of_a_subject_that_has_not_moved_is_none() -> None:
    """A replicated stream may report one before anything has landed: the same bytes are sent again."""
    shard = Shard()
    posting = owner(shard)
    one = compose(posting, 1)
    assert posting.met_conflict(shard.end) is True
    assert posting.flying is one
    with pytest.raises(AssertionError, match="cannot be"):
        compose(posting, 2)
    posting.landed(shard.append(one))
    assert shard.numbers == [1]


def test_a_late_append_of_an_old_owner_lands_nowhere() -> None:
    """T8d: every append expects the last entry, also where a batch overlaps another one."""
    shard = Shard()
    zombie = owner(shard)
    late = compose(zombie, 1, 2)
    second = owner(shard)
    second.landed(shard.append(compose(second, 1)))
    assert not shard.append(late)
    assert zombie.met_conflict(shard.end) is False
    assert zombie.stored == 1
    zombie.landed(shard.append(compose(zombie, 2, 3)))
    assert shard.numbers == [1, 2, 3]


def test_an_entry_holds_what_fits_and_times_never_go_back() -> None:
    posting = Posting("p", "t")
    posting.end = End(0, 0, 9.0)
    post = posting.compose(1, (Value(b"x") for _ in range(1000)), 5.0, b"")
    assert (len(post.values), post.at, post.prev_at) == (POST_MESSAGES_MAX, 9.0, 9.0)
    posting.landed(4)
    big = Value(b"x" * MAIL_BYTES_MAX)
    assert len(posting.compose(post.last + 1, [big, big], 10.0, b"").values) == 1


def test_an_entry_is_bound_to_its_subject() -> None:
    post = Post("p", "t", 1, 0, 0.0, 1.0, b"", [Value(b"\x01")])
    assert decode_post(encode_post(post), subject_of("t", "p")) == post
    for bad in (subject_of("t", "q"), subject_of("u", "p")):
        with pytest.raises(RecordInvalid):
            decode_post(encode_post(post), bad)
    with pytest.raises(RecordInvalid):
        decode_post(encode_post(post)[:-1], subject_of("t", "p"))


# ---- what a subscriber takes -----------------------------------------------------------------------------------------

KEY = Sub("t", "h", "", [0], 0.0, [0]).key


def subs(start: int = 0, since: float = 0.0) -> Subs:
    return Subs({KEY: Sub("t", "h", "", [start], since, [start])})


class There(NamedTuple):
    """An entry of publisher `who` at `seq`."""

    seq: int
    who: str
    n: int
    prev: int
    size: int = 1
    prev_at: float = 0.0
    at: float = 1.0

    @property
    def post(self) -> Post:
        values = [Value(b"")] * self.size
        return Post(self.who, "t", self.n, self.prev, self.prev_at, self.at, b"", values)


def read(to: Subs, *entries: There, key: str = KEY) -> list[tuple[int, str, int, Gap | None]]:
    """What is taken: sequence, publisher, count, and the gap."""
    taken = []
    for one in entries:
        taking = to.judge(key, 0, one.seq, one.who, one.post)
        if taking is not None:
            assert wrong_topics(to, [taking.took]) == ""
            to.apply(taking.took)
            taken.append((one.seq, one.who, taking.took.count, taking.gap))
    return taken


P1, Q1, P2, Q2 = There(1, "p", 1, 0), There(2, "q", 1, 0), There(3, "p", 2, 1), There(4, "q", 2, 2)


@pytest.mark.parametrize(
    ("begins", "entries", "wanted"),
    [
        pytest.param(subs(), [P1, Q1, P2], [(1, "p", 1, None), (2, "q", 1, None), (3, "p", 1, None)], id="in order"),
        pytest.param(subs(), [P1, P1, Q1, P1], [(1, "p", 1, None), (2, "q", 1, None)], id="read again"),
        pytest.param(subs(), [P1, P2], [(1, "p", 1, None), (3, "p", 1, None)], id="another publisher's was removed"),
        pytest.param(subs(), [P2], [(3, "p", 1, Gap(1, 1))], id="removed before it was read (T8j)"),
        pytest.param(
            subs(), [P2, Q2], [(3, "p", 1, Gap(1, 1)), (4, "q", 1, Gap(1, 1))],
            id="removed before an entry of another moved the cursor (T8k)",
        ),
        pytest.param(subs(), [Q1, P2], [(2, "q", 1, None), (3, "p", 1, Gap(1, 1))], id="only its own publisher tells (T8l)"),
        pytest.param(subs(1), [P2], [(3, "p", 1, None)], id="what was before the beginning is not missed"),
        pytest.param(subs(1), [P1, Q1], [(2, "q", 1, None)], id="what was before the beginning is not taken"),
        pytest.param(subs(2), [There(9, "p", 4, 3)], [(9, "p", 1, Gap(0, 3))], id="how many is not known"),
        pytest.param(subs(0, 5.0), [P1, There(3, "p", 2, 1, 1, 1.0, 6.0)], [(3, "p", 1, None)], id="from a time on"),
        pytest.param(
            subs(0, 5.0), [There(9, "p", 4, 3, 1, 5.5, 6.0)], [(9, "p", 1, Gap(0, 3))],
            id="from a time on, and the one before it was of that time, too",
        ),
        pytest.param(
            subs(), [There(1, "p", 1, 0, 3), There(5, "p", 9, 1, 2)], [(1, "p", 3, None), (5, "p", 2, Gap(4, 8))], id="batches"
        ),
    ],
)  # fmt: skip
def test_what_is_taken_and_what_is_a_gap(
    begins: Subs, entries: list[There], wanted: list[tuple[int, str, int, Gap | None]]
) -> None:
    assert read(begins.copy(), *entries) == wanted


def test_the_commit_that_takes_moves_the_cursor() -> None:
    """T8m, T8n: a new owner goes on from what the log says."""
    of_owner, of_log = subs(), subs()
    taking = of_owner.judge(KEY, 0, 1, "p", P1.post)
    assert taking is not None
    of_owner.apply(taking.took)
    assert of_owner.judge(KEY, 0, 1, "p", P1.post) is None
    assert of_log.judge(KEY, 0, 1, "p", P1.post) is not None, "it was not committed: the next owner takes it"
    of_log.apply(taking.took)
    assert of_log == of_owner
    assert of_log.content() == of_owner.content()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([Took(KEY, 0, 1, "p", 1, 1, 0), Took(KEY, 0, 1, "p", 1, 1, 0)], "after 1"),
        ([Took(KEY, 0, 0, "p", 1, 1, 0)], "after 0"),
        ([Took("other", 0, 1, "p", 1, 1, 0)], "is not there"),
        ([Took(KEY, 1, 1, "p", 1, 1, 0)], "is not there"),
        ([Unsubscribed(KEY), Took(KEY, 0, 1, "p", 1, 1, 0)], "is not there"),
        (
            [
                Took(KEY, 0, 7, "p", 1, 1, 0),
                Subscribed(Sub("t", "h", "", [0], 0.0, [0])),
                Took(KEY, 0, 8, "p", 2, 1, 0),
            ],
            "",
        ),
    ],
)
def test_readers_refuse_what_is_taken_twice_or_for_nobody(changes: list[Took], says: str) -> None:
    wrong = wrong_topics(subs(), changes)  # type: ignore[arg-type]
    assert (says in wrong) if says else wrong == ""


def test_subscribing_again_changes_nothing_but_who_hears_of_gaps() -> None:
    mine = subs()
    read(mine, P1)
    mine.apply(Subscribed(Sub("t", "h", "on_gap", [99], 0.0, [99])))
    sub = mine.by_key[KEY]
    assert (sub.cursor, sub.start, sub.on_gap, len(mine.by_key)) == ([1], [0], "on_gap", 1)


def test_a_handler_gets_a_message_once_whichever_of_its_patterns_matched() -> None:
    """Both read at their own pace; the one that comes second passes over, and sees no gap in it."""
    both = subs()
    wide = Sub(">", "h", "", [2], 0.0, [2])
    both.apply(Subscribed(wide))
    assert read(both, P2, key=wide.key) == [(3, "p", 1, None)]
    assert read(both, P1, Q1, P2, Q2) == [(1, "p", 1, None), (2, "q", 1, None), (3, "p", 0, None), (4, "q", 1, None)]
    assert read(both, Q2, key=wide.key) == [(4, "q", 0, None)]
    assert sum(sub.missed for sub in both.live()) == 0
    both.apply(Unsubscribed(wide.key))
    assert [sub.key for sub in both.live()] == [KEY]
    assert read(both, There(5, "p", 3, 3)) == [(5, "p", 1, None)]


def test_what_an_ended_subscription_has_taken_is_not_taken_by_another_of_its_handler() -> None:
    both = subs()
    wide = Sub(">", "h", "", [0], 0.0, [0])
    both.apply(Subscribed(wide))
    read(both, P1, Q1, key=wide.key)
    both.apply(Unsubscribed(wide.key))
    assert read(both, P1, Q1, P2) == [(1, "p", 0, None), (2, "q", 0, None), (3, "p", 1, None)]
    both.apply(Unsubscribed(KEY))
    assert both.by_key == {}, "nothing is kept once the handler has no subscription"


# ---- undo --------------------------------------------------------------------------------------------------------------


def test_an_undo_takes_no_position_back() -> None:
    """What was taken is in the inbox, and is handled from there once more: taken again it would come twice."""
    back, now = subs(), subs()
    read(now, P1, Q1)
    after = after_undo(back, now, {})
    assert [(sub.key, sub.cursor, sub.parked) for sub in after] == [(KEY, [2], "")]


def test_a_subscription_that_was_undone_goes_on_where_it_was_if_it_is_made_again() -> None:
    now = subs()
    read(now, P1)
    undone = Subs({sub.key: sub for sub in after_undo(None, now, {})})
    assert undone.live() == []
    again = undone.copy()
    again.apply(Subscribed(Sub("t", "h", "", [77], 0.0, [77])))
    again.replayed()
    assert [sub.cursor for sub in again.live()] == [[1]]
    undone.replayed()
    assert undone.by_key == {}, "the turn that made it was not repeated"


def test_a_subscription_whose_end_was_undone_goes_on_where_it_ended() -> None:
    back, now = subs(), subs()
    read(now, P1)
    ended = {KEY: now.by_key[KEY].copy()}
    now.apply(Unsubscribed(KEY))
    after = after_undo(back, now, ended)
    assert [(sub.cursor, sub.parked) for sub in after] == [([1], "")]


def taken_back() -> Subs:
    """As after an undo: two subscriptions of one handler, of which the turns that are taken again have made one."""
    now = subs()
    now.apply(Subscribed(Sub(">", "h", "", [0], 0.0, [0])))
    read(now, P1, Q1, P2, key="h >")
    read(now, P1, Q1)
    undone = Subs({sub.key: sub for sub in after_undo(None, now, {})})
    undone.apply(Subscribed(Sub("t", "h", "", [77], 0.0, [77])))
    return undone


@pytest.mark.parametrize("pattern", ["t", ">"])
def test_an_end_that_is_taken_again_takes_no_position_away(pattern: str) -> None:
    undone = taken_back()
    undone.apply(Unsubscribed(KEY, again=True))
    assert undone.live() == []
    undone.apply(Subscribed(Sub(pattern, "h", "", [77], 0.0, [77])))
    assert [(sub.pattern, sub.cursor) for sub in undone.live()] == [(pattern, [3 if pattern == ">" else 2])]
    undone.replayed()
    assert {sub.parked for sub in undone.by_key.values()} == {"", "ended"}


def test_nothing_is_kept_of_what_was_not_made_again() -> None:
    undone = taken_back()
    undone.apply(Unsubscribed(KEY, again=True))
    undone.replayed()
    assert undone == Subs()


def test_an_end_that_an_earlier_version_wrote_does_what_it_did_there() -> None:
    """Its digests hold what that version had: the positions of the handler go with its last live subscription."""
    old = msgspec.msgpack.decode(b"\x91\x92\xacunsubscribed\xa3h t", type=list[TopicChange])
    assert old == [Unsubscribed(KEY)]
    undone = taken_back()
    undone.apply(old[0])
    assert undone == Subs()


def upto(records: list[tuple[int, AnyRecord]]) -> Fold:
    fold = after()
    for seq, record in records:
        fold.apply(seq, record)
    return fold


@pytest.mark.parametrize(
    ("later", "stands"),
    [
        ((), ([20], [25], {"p": 2})),
        ((Subscribed(Sub("t", "h", "", [40], 0.0, [40])),), ([40], [40], {})),
        (
            (Subscribed(Sub("t", "h", "", [40], 0.0, [40])), Took(KEY, 0, 45, "q", 1, 1, 0), Unsubscribed(KEY)),
            ([40], [45], {"q": 1}),
        ),
    ],
)
def test_a_second_undo_goes_on_where_the_latest_subscription_was_also_if_the_first_undo_took_it_back(
    later: tuple[TopicChange, ...], stands: tuple[list[int], list[int], dict[str, int]]
) -> None:
    """What it took is in the inbox, and came twice from where the subscription before it was ended."""
    changes: list[TopicChange] = [
        Subscribed(Sub("t", "h", "", [0], 0.0, [0])), Took(KEY, 0, 10, "p", 1, 1, 0), Unsubscribed(KEY),
        Subscribed(Sub("t", "h", "", [20], 0.0, [20])), Took(KEY, 0, 25, "p", 2, 1, 0),
    ]  # fmt: skip
    seen, fold = list[tuple[int, AnyRecord]](), after()

    def lands(record: AnyRecord) -> None:
        seen.append((fold.seq + 1, record))
        fold.apply(*seen[-1])

    for change in changes:
        lands(committed(fold, commit(changes=[change])))
    lands(undone(fold, upto(seen[:3]), *seen[3:]))
    assert fold.ledger.topics == Subs(), "no turn has made it again"
    lands(claimed(fold))
    for change in later:
        lands(committed(fold, commit(changes=[change])))
    subs = undone(fold, upto(seen[:1]), *seen[1:]).subs
    assert subs is not None
    assert [(sub.start, sub.cursor, sub.marks) for sub in subs] == [stands]
    assert subs[0].parked == ""
