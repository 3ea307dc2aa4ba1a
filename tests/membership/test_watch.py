"""Who is silent, who is suspected and who leads: the decisions of one node, at stated times, without I/O."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from functools import partial

import pytest

from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.members import (
    AnyRecord,
    Doubted,
    Joined,
    Leads,
    Member,
    Serving,
    Status,
    Suspected,
    Table,
)
from mielin_cells.membership.watch import LATE_KEPT_S, Ears, Repeated, Watch, patience
from mielin_cells.rpc.answers import Beat

LIMIT_S = 2.5
A, B, C, D, E = "abcde"


def table_of(*names: str, leader: str = A) -> Table:
    table = Table()
    for name in names:
        append(table, Joined(name, 1, b"", Announcement()))
        append(table, Serving(name, 1))
    if leader:
        append(table, Leads(leader, 1))
    return table


def append(table: Table, record: AnyRecord) -> None:
    table.apply(table.seq + 1, record)


class Node:
    """A watch that has listened since 0, and the heartbeats that it hears."""

    def __init__(self, name: str, table: Table, *, listens: bool = True) -> None:
        self.name = name
        self.table = table
        self.watch = Watch(name, 1, LIMIT_S, 0.0)
        self.ears = Ears(0.0 if listens else None, 0.0)
        self.last: dict[str, float] = {}
        self.says: dict[str, list[str] | None] = {}
        self.stuck: dict[str, float] = {}

    def look(self, now: float, heard: Collection[str]) -> AnyRecord | None:
        """What the node appends at a time when the heartbeats of `heard` have just come; it is appended."""
        self.last |= dict.fromkeys(heard, now)
        beats = [
            Beat(name, 1, self.stuck.get(name, 0.0), now - at, silent=self.says.get(name))
            for name, at in self.last.items()
        ]
        fresh = self.watch.observe(now, self.table, beats, self.ears)
        record = self.watch.elect(now, self.table, fresh, self.ears) or self.watch.suspect(now, self.table, fresh)
        if record is not None:
            append(self.table, record)
        return record

    def until(self, seconds: float, heard: Collection[str], began: float = 0.0) -> list[tuple[float, AnyRecord]]:
        """Everything that it appends until then, with the time."""
        found, now = list[tuple[float, AnyRecord]](), began
        while now < seconds:
            while (record := self.look(now, heard)) is not None:
                found.append((now, record))
            now = round(now + 0.1, 3)
        return found


# ---- suspicion (N11, N12) ------------------------------------------------------------------------------------


def test_a_silent_node_is_suspected_once_a_second_watcher_does_not_hear_it_either() -> None:
    leader = Node(A, table_of(A, B, C))
    leader.says = {B: []}
    assert leader.until(10.0, [A, B]) == []  # the deputy hears it
    leader.says = {B: [C]}
    assert leader.look(10.0, [A, B]) == Suspected(C, 1, leader.table.term)
    assert leader.look(10.1, [A, B]) is None


def test_a_node_that_has_only_joined_is_watched_too() -> None:
    leader = Node(A, table_of(A, B))
    leader.says = {B: [C]}
    leader.until(5.0, [A, B])
    append(leader.table, Joined(C, 1, b""))
    [(at, record)] = leader.until(12.0, [A, B], 5.0)
    assert record == Suspected(C, 1, leader.table.term)
    assert at == pytest.approx(5.0 + LIMIT_S, abs=0.2)  # it has time for its first heartbeat


def test_a_leader_that_is_the_only_watcher_doubts_and_that_counts_once_it_has_stood() -> None:
    leader = Node(A, table_of(A, B))
    [(at, record)] = leader.until(4.0, [A])
    assert record == Doubted(B, 1, leader.table.term)
    assert at == pytest.approx(LIMIT_S, abs=0.2)
    assert not leader.watch.is_overdue(4.0, B, leader.table)
    leader.until(6.0, [A], 4.0)
    assert leader.watch.is_overdue(6.0, B, leader.table)
    append(leader.table, Serving(B, 1))
    leader.look(6.1, [A])
    assert not leader.watch.is_overdue(20.0, B, leader.table)


def test_each_refutation_doubles_the_time_to_the_next_doubt() -> None:
    leader, doubts, now = Node(A, table_of(A, B)), list[float](), 0.0
    while now < 60.0:
        for at, _ in leader.until(now + 0.1, [A], now):
            doubts.append(at)
            append(leader.table, Serving(B, 1))
        now = round(now + 0.1, 3)
    waits = [later - earlier for earlier, later in itertools.pairwise(doubts)]
    assert waits[:3] == pytest.approx([2 * LIMIT_S, 4 * LIMIT_S, 8 * LIMIT_S], abs=0.3)


def test_a_new_incarnation_is_not_waited_for_because_an_earlier_one_was_suspected() -> None:
    leader = Node(A, table_of(A, B, C))
    leader.says = {B: [C]}
    now = 0.0
    for incarnation in range(1, 6):
        [(at, record)] = leader.until(now + 4.0, [A, B], now)
        assert record == Suspected(C, incarnation, leader.table.term)
        assert at - now < LIMIT_S + 0.3
        append(leader.table, Joined(C, incarnation + 1, b""))
        append(leader.table, Serving(C, incarnation + 1))
        now = at + 0.1


def test_a_doubt_is_a_suspicion_once_another_watcher_confirms_it() -> None:
    leader = Node(A, table_of(A, B, C))
    leader.until(4.0, [A])
    assert {one.status for one in leader.table if one.name != A} == {Status.DOUBTED}
    leader.says = {B: [C]}
    append(leader.table, Serving(B, 1))
    assert leader.until(15.0, [A, B], 4.1) == [(4.1, Suspected(C, 1, leader.table.term))]  # and once


def test_what_is_appended_in_a_round_is_not_appended_again_in_it() -> None:
    """The leader appended its suspicion twice, where a doubt had come long before (seed 58)."""
    leader = Node(A, table_of(A, B, C))
    leader.until(4.0, [A])
    beats = {B: Beat(B, 1, 0.0, 0.0, silent=[C])}
    assert leader.watch.suspect(20.0, leader.table, beats) == Suspected(C, 1, leader.table.term)
    append(leader.table, Suspected(C, 1, leader.table.term))
    assert leader.watch.suspect(20.0, leader.table, beats) is None


def test_a_deputy_that_does_not_hear_itself_is_no_witness() -> None:
    deputy = Node(B, table_of(A, B, C))
    deputy.until(5.0, [A])
    assert deputy.watch.silent is None
    deputy.until(10.0, [A, B], 5.0)
    assert deputy.watch.silent == [C]


def test_a_witness_whose_loop_is_held_is_not_asked() -> None:
    leader = Node(A, table_of(A, B, C))
    leader.says, leader.stuck = {B: []}, {B: 2 * LIMIT_S}
    [(_, record)] = leader.until(4.0, [A, B])
    assert record == Doubted(C, 1, leader.table.term)


def test_who_does_not_lead_suspects_nobody() -> None:
    deputy = Node(B, table_of(A, B, C))
    deputy.says = {C: []}
    assert deputy.until(10.0, [A, B]) == []
    assert deputy.watch.silent == [C]


def test_a_watcher_that_was_stopped_starts_all_clocks_again() -> None:
    """SIGSTOP, a suspended laptop, a starved process: nobody is suspected for heartbeats that it slept through."""
    leader = Node(A, table_of(A, B, C))
    leader.says = {B: [C]}
    leader.until(5.0, [A, B, C])
    leader.watch.woke(25.0, 20.0)
    assert leader.look(25.0, [A, B]) is None
    assert leader.watch.silent is None
    [(at, _)] = leader.until(40.0, [A, B], 25.1)
    assert at == pytest.approx(25.0 + patience(LIMIT_S, LIMIT_S), abs=0.2)  # and it is more patient for a while
    leader.watch.woke(26.0 + LATE_KEPT_S, 0.0)
    assert leader.watch.limit_s == LIMIT_S


def test_silence_counts_from_when_a_node_began_to_listen() -> None:
    deputy = Node(B, table_of(A, B, C), listens=False)
    deputy.until(50.0, [A])
    deputy.ears.all_since = 50.0
    deputy.until(50.0 + LIMIT_S, [A, B], 50.0)
    assert deputy.watch.silent is None
    deputy.until(53.0, [A, B], 50.0 + LIMIT_S)
    assert deputy.watch.silent == [C]


# ---- election ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "times"), [(B, 1), (C, 1), (D, 2), (E, 2)])
def test_a_deputy_follows_a_lost_leader_after_the_limit_and_any_other_after_twice_that(name: str, times: int) -> None:
    node = Node(name, table_of(A, B, C, D, E), listens=times == 1)
    node.until(10.0, [A])
    assert node.watch.wants_all == (times == 1)
    (at, record), *_ = node.until(20.0, [name], 10.0)
    assert record == Leads(name, 1)
    assert at == pytest.approx(9.9 + times * LIMIT_S, abs=0.15)
    assert node.watch.wants_all


def test_a_node_that_may_have_to_lead_listens_to_all_before() -> None:
    node = Node(D, table_of(A, B, C, D), listens=False)
    node.until(10.0, [A])
    node.until(10.0 + LIMIT_S, [], 10.0)
    assert node.watch.wants_all


def test_without_a_leader_a_deputy_leads_at_once_and_another_node_after_the_limit() -> None:
    assert Node(B, table_of(A, B, leader="")).look(0.0, []) == Leads(B, 1)
    (at, _), *_ = Node(C, table_of(A, B, C, D, leader="")).until(5.0, [])
    assert at == pytest.approx(LIMIT_S, abs=0.15)


def test_a_leader_that_was_started_again_does_not_lead_any_more() -> None:
    table = table_of(A, B)
    append(table, Joined(A, 2, b""))
    assert Node(B, table).look(0.0, [A]) == Leads(B, 1)


def test_a_leader_that_is_heard_and_cannot_act_is_followed() -> None:
    node = Node(B, table_of(A, B))
    node.stuck = {A: 2 * LIMIT_S}
    assert node.look(5.0, [A, B]) == Leads(B, 1)


@pytest.mark.parametrize("record", [Suspected(B, 1, 7), Doubted(B, 1, 7), Joined(B, 2, b"")])
def test_a_node_that_does_not_serve_follows_nobody(record: AnyRecord) -> None:
    table = table_of(A, B)
    append(table, record)
    assert Node(B, table).until(20.0, []) == []


def test_a_lost_election_is_tried_again_after_ever_longer_waits() -> None:
    node, tries, now = Node(B, table_of(A, B)), list[float](), 0.0
    while now < 60.0:
        table = node.table
        if (record := node.look(now, [B])) is not None:
            assert record == Leads(B, 1)
            tries.append(now)
            append(table, Leads(A, 1))  # which this node does not hear
        now = round(now + 0.1, 3)
    waits = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert waits[:3] == pytest.approx([LIMIT_S, 2 * LIMIT_S, 4 * LIMIT_S], abs=0.3)


def test_rounds_may_be_rare_while_all_are_heard_and_never_pass_by_a_decision() -> None:
    """`calm_s` after a round: a watcher that sleeps for so long decides at the same time as one that looks all the time."""
    table = table_of(A, B, C, D)
    leader, other = Node(A, table), Node(D, table, listens=False)
    for node in (leader, other):
        node.until(3.0, (A, B, C, D))
    assert other.watch.calm_s == pytest.approx(LIMIT_S / 2), "it hears the leader, and watches nobody else"
    assert leader.watch.calm_s == pytest.approx(LIMIT_S / 2)
    other.look(3.4, ())
    assert other.watch.calm_s == pytest.approx(2.9 + LIMIT_S / 2 - 3.4), (
        "then it listens to all, since it may have to lead"
    )
    leader.look(3.5, (A, B, D))
    assert leader.watch.calm_s == pytest.approx(LIMIT_S / 2)
    leader.look(5.0, (A, B, D))
    assert leader.watch.calm_s == pytest.approx(2.9 + LIMIT_S - 5.0), "C was heard at 2.9 for the last time"
    leader.look(5.5, (A, B, D))
    assert leader.watch.silent == [C]
    assert leader.watch.calm_s <= 0


def test_a_node_that_has_not_listened_for_long_enough_looks_often() -> None:
    node = Node(B, table_of(A, B, C))
    node.look(1.0, (A, B, C))
    assert node.watch.silent is None
    assert node.watch.calm_s == 0.0
    alone = Node(D, table_of(A, D, leader=""), listens=False)
    alone.look(1.0, (A, D))
    assert alone.watch.calm_s == 0.0, "nobody leads"


# ---- guards (N11, N12): each is taken away, and the story that watches it fails ---------------------------------------


def only_deputies_follow(patch: pytest.MonkeyPatch) -> None:
    elect = Watch.elect
    patch.setattr(
        Watch, "elect",
        lambda self, now, table, *rest: elect(self, now, table, *rest) if self._name in table.deputies else None,
    )  # fmt: skip


def who_slept_believes_its_clocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Watch, "woke", lambda *_: None)


def silence_counts_from_the_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ears, "all_since", property(lambda _: 0.0, lambda *_: None), raising=False)


def who_has_only_joined_is_not_watched(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Member, "is_present", property(lambda self: self.status in (Status.SERVING, Status.DOUBTED)))


def nobody_has_to_confirm(patch: pytest.MonkeyPatch) -> None:
    suspect = Watch.suspect
    patch.setattr(Watch, "suspect", lambda self, now, table, _: suspect(self, now, table, {}))


def a_leader_alone_says_nothing(patch: pytest.MonkeyPatch) -> None:
    suspect = Watch.suspect

    def confirmed(self: Watch, now: float, table: Table, fresh: dict[str, Beat]) -> Suspected | Doubted | None:
        said = suspect(self, now, table, fresh)
        return said if isinstance(said, Suspected) else None

    patch.setattr(Watch, "suspect", confirmed)


def a_doubt_counts_at_once(patch: pytest.MonkeyPatch) -> None:
    def is_overdue(_: Watch, __: float, name: str, table: Table) -> bool:
        member = table.get(name)
        return member is not None and member.status is Status.DOUBTED

    patch.setattr(Watch, "is_overdue", is_overdue)


def no_wait_is_doubled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Repeated, "is_due", lambda self, now, first_s: self.times == 0 or now - self.at >= first_s)


WATCHED_BY: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], None]]] = [
    (only_deputies_follow, partial(test_a_deputy_follows_a_lost_leader_after_the_limit_and_any_other_after_twice_that, D, 2)),
    (who_slept_believes_its_clocks, test_a_watcher_that_was_stopped_starts_all_clocks_again),
    (silence_counts_from_the_start, test_silence_counts_from_when_a_node_began_to_listen),
    (who_has_only_joined_is_not_watched, test_a_node_that_has_only_joined_is_watched_too),
    (nobody_has_to_confirm, test_a_silent_node_is_suspected_once_a_second_watcher_does_not_hear_it_either),
    (a_leader_alone_says_nothing, test_a_leader_that_is_the_only_watcher_doubts_and_that_counts_once_it_has_stood),
    (a_doubt_counts_at_once, test_a_leader_that_is_the_only_watcher_doubts_and_that_counts_once_it_has_stood),
    (no_wait_is_doubled, test_each_refutation_doubles_the_time_to_the_next_doubt),
]  # fmt: skip


@pytest.mark.parametrize(("remove", "story"), WATCHED_BY, ids=[remove.__name__ for remove, _ in WATCHED_BY])
def test_a_rule_of_watching_that_is_taken_away_is_missed_by_its_story(
    remove: Callable[[pytest.MonkeyPatch], None], story: Callable[[], None]
) -> None:
    story()
    with pytest.MonkeyPatch.context() as patch:
        remove(patch)
        with pytest.raises((AssertionError, ValueError)):
            story()
