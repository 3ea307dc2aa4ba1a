"""Exactly-once bookkeeping, by the rules: 10 (numbers), 11 (released), 14 (answers), 15 (clients)."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.agent_log import commit, out, taken
from support.letters import letter

from mielin_cells.log import ledger as module
from mielin_cells.log.commit import Input, Out, ReplayInput
from mielin_cells.log.inboxes.cancels import Cancels
from mielin_cells.log.ledger import Ledger, Verdict
from mielin_cells.log.message import client_sender
from mielin_cells.log.turns.batch import Batch

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ALICE = "alice"
CLIENT, OTHER = client_sender("s1"), client_sender("s2")
APPLY, REPEAT, HOLD, CLOSED, EXPIRED = Verdict


# ---- agents: contiguous numbers from 1 (rule 10) ----


def test_the_first_message_of_an_agent_is_number_1() -> None:
    ledger = Ledger()
    verdicts = [ledger.judge(ALICE, n, 0) for n in (1, 2, 3, 2**63)]
    assert verdicts == [APPLY, HOLD, HOLD, HOLD]


@pytest.mark.parametrize("n", [0, -1])
def test_a_number_below_1_is_dropped_not_held_for_ever(n: int) -> None:
    ledger = Ledger()
    assert ledger.judge(ALICE, n, 0) is CLOSED
    ledger.take(ALICE, 1, 0, 0, None)
    assert ledger.judge(ALICE, n, 0) in (REPEAT, CLOSED)


def test_a_cancel_is_kept_until_its_message_comes_although_the_sender_wants_no_answer_of_it() -> None:
    """Its sender has settled 3, so its `low` is 4 in the mail that brings 2 and 3."""
    ledger = Ledger()
    ledger.take(ALICE, 1, 0, 0, None)
    ledger.cancels = Cancels.with_one(None, ALICE, 3)
    ledger.take(ALICE, 2, 4, 0, None)
    assert ledger.cancels.has(ALICE, 3)
    ledger.take(ALICE, 3, 4, 0, None)
    assert not ledger.cancels.kept


def test_cancels_of_a_client_that_wants_no_such_answer_go() -> None:
    """A client's messages below its `low` are closed, so their cancels have nothing left to do."""
    ledger = Ledger()
    ledger.cancels = Cancels.with_one(None, CLIENT, 3)
    ledger.take(CLIENT, 2, 4, 1, b"x")
    assert not ledger.cancels.kept
    assert ledger.judge(CLIENT, 3, 1) is CLOSED


def test_only_the_number_after_the_mark_applies() -> None:
    ledger = Ledger()
    for n in (1, 2, 3):
        assert ledger.judge(ALICE, n, 0) is APPLY
        ledger.take(ALICE, n, 0, 0, None)
    assert [ledger.judge(ALICE, n, 0) for n in range(1, 7)] == [REPEAT, REPEAT, REPEAT, APPLY, HOLD, HOLD]


def test_senders_are_counted_apart() -> None:
    ledger = Ledger()
    ledger.take(ALICE, 1, 0, 0, None)
    assert ledger.judge("bob", 1, 0) is APPLY
    assert ledger.judge(ALICE, 2, 0) is APPLY


@QUICK
@given(st.lists(st.integers(1, 8), max_size=60))
def test_however_messages_arrive_each_takes_effect_once_and_in_order(arrivals: list[int]) -> None:
    ledger, applied, held = Ledger(), list[int](), set[int]()
    for n in arrivals:
        waiting = [n]
        while waiting:
            number = waiting.pop()
            verdict = ledger.judge(ALICE, number, 0)
            if verdict is HOLD:
                held.add(number)
            elif verdict is APPLY:
                ledger.take(ALICE, number, 0, 0, None)
                applied.append(number)
                waiting += [k for k in held if k == number + 1]
    assert applied == list(range(1, len(applied) + 1))
    assert set(arrivals) - held <= set(applied)
    assert len(applied) + 1 not in arrivals  # nothing that could be applied was left


# ---- answers (rule 14) ----


def test_a_repeated_ask_is_answered_from_the_store_and_not_run() -> None:
    ledger = Ledger()
    ledger.take(ALICE, 1, 0, 0, b"one")
    ledger.take(ALICE, 2, 0, 0, None)
    assert ledger.judge(ALICE, 1, 0) is REPEAT
    assert ledger.answer(ALICE, 1) == b"one"
    assert ledger.judge(ALICE, 2, 0) is REPEAT
    assert ledger.answer(ALICE, 2) is None


@pytest.mark.parametrize(("sender", "start"), [(ALICE, 0), (CLIENT, 5)])
def test_answers_go_only_below_the_askers_low(sender: str, start: int) -> None:
    ledger = Ledger()
    for n in range(1, 7):
        ledger.take(sender, n, 0, start, b"%d" % n)
    assert [ledger.answer(sender, n) for n in range(1, 7)] == [b"1", b"2", b"3", b"4", b"5", b"6"]
    ledger.take(sender, 7, 4, start, b"7")
    assert [ledger.answer(sender, n) for n in range(1, 8)] == [None, None, None, b"4", b"5", b"6", b"7"]
    assert [ledger.judge(sender, n, start) for n in range(1, 8)] == [CLOSED] * 3 + [REPEAT] * 4


@pytest.mark.parametrize(("sender", "start"), [(ALICE, 0), (CLIENT, 5)])
def test_a_late_message_does_not_lower_low(sender: str, start: int) -> None:
    ledger = Ledger()
    for n, low in ((1, 0), (2, 2), (3, 1)):
        ledger.take(sender, n, low, start, b"x")
    assert ledger.peers[sender].low == 2
    assert ledger.judge(sender, 1, start) is CLOSED


def test_an_ask_that_is_below_its_own_low_leaves_no_answer() -> None:
    ledger = Ledger()
    ledger.take(ALICE, 1, 2, 0, b"nobody waits")
    assert ledger.answer(ALICE, 1) is None
    assert ledger.judge(ALICE, 1, 0) is CLOSED
    assert ledger.judge(ALICE, 2, 0) is APPLY


def test_nobody_gets_anothers_answer() -> None:
    ledger = Ledger()
    ledger.take(ALICE, 1, 0, 0, b"x")
    assert ledger.answer("bob", 1) is None
    assert ledger.answer(ALICE, 2) is None


# ---- clients (rule 15) ----


def test_a_clients_numbers_come_in_any_order_and_each_takes_effect_once() -> None:
    ledger = Ledger()
    for n in (9, 2, 5):
        assert ledger.judge(CLIENT, n, 5) is APPLY
        ledger.take(CLIENT, n, 0, 5, b"")
    assert [ledger.judge(CLIENT, n, 5) for n in (2, 5, 9)] == [REPEAT] * 3
    assert [ledger.judge(CLIENT, n, 5) for n in (1, 3, 10)] == [APPLY] * 3


def test_a_clients_tell_is_remembered_without_an_answer() -> None:
    ledger = Ledger()
    ledger.take(CLIENT, 3, 0, 5, None)
    assert ledger.judge(CLIENT, 3, 5) is REPEAT
    assert ledger.answer(CLIENT, 3) is None


def test_a_number_that_a_client_has_given_up_is_closed_unless_it_was_taken_before() -> None:
    ledger = Ledger()
    ledger.take(CLIENT, 2, 0, 5, b"x")
    ledger.take(CLIENT, 4, 0, 5, b"y", [2, 3])
    assert [ledger.judge(CLIENT, n, 5) for n in (2, 3, 4, 5)] == [REPEAT, REPEAT, REPEAT, APPLY]
    assert (ledger.answer(CLIENT, 2), ledger.answer(CLIENT, 3)) == (b"x", None)
    assert ledger.answer_bytes == 2


def test_numbers_given_up_stay_closed_when_a_later_message_is_taken_again_after_an_undo() -> None:
    ledger = Ledger()
    ledger.take(CLIENT, 1, 0, 5, b"x")
    ledger.replays[CLIENT, 2] = ReplayInput(CLIENT, 2, True, [], {}, [])
    ledger.take(CLIENT, 2, 0, 5, b"y", [3])
    assert ledger.judge(CLIENT, 3, 5) is REPEAT


def test_below_low_a_clients_number_is_refused_whether_it_was_taken_or_not() -> None:
    ledger = Ledger()
    ledger.take(CLIENT, 2, 0, 5, b"x")
    ledger.take(CLIENT, 9, 5, 5, b"y")
    assert [ledger.judge(CLIENT, n, 5) for n in (2, 3, 4, 5)] == [CLOSED, CLOSED, CLOSED, APPLY]


def test_a_forgotten_session_and_those_older_than_it_are_refused() -> None:
    ledger = Ledger()
    ledger.take(CLIENT, 1, 0, 100, b"x")
    ledger.forget([CLIENT])
    assert ledger.horizon == 100
    assert [ledger.judge(CLIENT, 1, 100), ledger.judge(OTHER, 1, 99)] == [EXPIRED, EXPIRED]
    assert ledger.judge(OTHER, 1, 101) is APPLY


def test_a_known_session_that_is_older_than_the_horizon_goes_on() -> None:
    ledger = Ledger()
    ledger.take(OTHER, 1, 0, 50, None)
    ledger.take(CLIENT, 1, 0, 100, None)
    ledger.forget([CLIENT])
    assert [ledger.judge(OTHER, n, 50) for n in (1, 2)] == [REPEAT, APPLY]


def test_the_horizon_never_falls() -> None:
    ledger = Ledger()
    for sender, start in ((CLIENT, 100), (OTHER, 50)):
        ledger.take(sender, 1, 0, start, None)
    ledger.forget([CLIENT])
    ledger.forget([OTHER])
    assert ledger.horizon == 100


def test_forgetting_is_harmless_twice_and_of_strangers() -> None:
    ledger = Ledger()
    ledger.take(CLIENT, 1, 0, 100, None)
    ledger.forget([CLIENT, CLIENT, OTHER])
    assert (ledger.clients, ledger.horizon) == (0, 100)


def test_agents_are_not_under_the_horizon() -> None:
    ledger = Ledger()
    ledger.take(CLIENT, 1, 0, 100, None)
    ledger.forget([CLIENT])
    assert ledger.judge(ALICE, 1, 0) is APPLY


def test_the_sessions_quiet_for_longest_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SESSIONS_MAX", 2)
    ledger = Ledger()
    ledger.take(ALICE, 1, 0, 0, None)
    sessions = [client_sender(f"s{n}") for n in range(4)]
    for n, session in enumerate(sessions):
        ledger.take(session, 1, 0, n + 1, None)
    ledger.take(sessions[0], 2, 0, 1, None)
    assert ledger.excess() == [sessions[1], sessions[2]]
    ledger.forget(ledger.excess())
    assert ledger.excess() == []
    assert ledger.judge(ALICE, 1, 0) is REPEAT


def test_no_agent_id_is_taken_for_a_client() -> None:
    assert Ledger().judge(ALICE, 2, 99) is HOLD
    assert Ledger().judge(CLIENT, 2, 99) is APPLY


# ---- outputs (rules 10 and 11) ----


def test_numbers_go_up_by_one_per_receiver() -> None:
    ledger = Ledger()
    for to in ("guide", "guide", "porter", "guide"):
        ledger.send(out(ledger.next_number(to), to))
    assert (ledger.next_number("guide"), ledger.next_number("porter"), ledger.next_number("new")) == (4, 2, 1)


def test_released_outputs_are_done_and_the_rest_is_sent_again_in_order() -> None:
    ledger = Ledger()
    for n in range(1, 6):
        ledger.send(out(n))
    ledger.release("guide", 3)
    assert [o.n for o in ledger.unreleased()] == [4, 5]
    assert ledger.next_number("guide") == 6


def test_the_released_mark_never_falls_and_numbers_outlive_it() -> None:
    ledger = Ledger()
    for n in range(1, 4):
        ledger.send(out(n))
    for n in (3, 1, 0):
        ledger.release("guide", n)
    assert ledger.released == {"guide": 3}
    assert ledger.unreleased() == []
    assert ledger.next_number("guide") == 4


def test_dead_letters_are_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEAD_LETTERS_MAX", 3)
    ledger = Ledger()
    for n in range(5):
        ledger.bury(letter(n))
    assert [found.seq for found in ledger.dead] == [2, 3, 4]


# ---- the owner's steps and a reader's commit are the same ----


@st.composite
def used(draw: st.DrawFn) -> tuple[Ledger, Ledger]:
    """A ledger used by an owner, turn by turn, and one that has read its commits."""
    owner, reader = Ledger(), Ledger()
    for _ in range(draw(st.integers(0, 6))):
        batch = Batch()
        for _ in range(draw(st.integers(0, 5))):
            _step(draw, owner, batch)
        reader.apply(batch.commit(owner.cursor, owner.held, 1, b""))
    return owner, reader


def _step(draw: st.DrawFn, owner: Ledger, batch: Batch) -> None:
    match draw(st.integers(0, 5)):
        case 0 | 1:
            sender = draw(st.sampled_from((ALICE, "bob", CLIENT, OTHER)))
            known = owner.peers.get(sender)
            start = 0 if sender in (ALICE, "bob") else known.start if known else draw(st.integers(1, 9))
            numbers = [] if sender in (ALICE, "bob") else draw(st.lists(st.integers(1, 6), max_size=2))
            answer = draw(st.none() | st.binary(max_size=2))
            take = Input(sender, draw(st.integers(1, 6)), draw(st.integers(0, 6)), start, answer, numbers)
            if owner.judge(sender, take.n, start) is APPLY:
                owner.take(*take_fields(take))
                batch.inputs.append(take)
        case 2:
            to = draw(st.sampled_from(("guide", "porter")))
            sent: Out = out(owner.next_number(to), to)
            owner.send(sent)
            batch.outs.append(sent)
        case 3:
            to = draw(st.sampled_from(("guide", "porter")))
            n = draw(st.integers(0, owner.numbers.get(to, 0)))
            if n > owner.released.get(to, 0):
                owner.release(to, n)
                batch.released[to] = n
        case 4:
            owner.bury(letter(len(owner.dead)))
            batch.dead.append(owner.dead[-1])
        case _:
            owner.cursor += 1
            owner.held.append(owner.cursor)
            batch.held = True


def take_fields(take: Input) -> tuple[str, int, int, int, bytes | None, list[int]]:
    return take.sender, take.n, take.low, take.start, take.answer, take.given_up


@QUICK
@given(used())
def test_a_reader_of_the_commits_has_the_owners_ledger(ledgers: tuple[Ledger, Ledger]) -> None:
    owner, reader = ledgers
    assert reader.copy() == owner.copy()
    assert reader.digest() == owner.digest()
    assert list(reader.peers) == list(owner.peers)  # the order in which sessions are forgotten
    assert reader.clients == owner.clients
    assert [(o.to, o.n) for o in reader.unreleased() if o.to == "guide"] == [
        (o.to, o.n) for o in owner.unreleased() if o.to == "guide"
    ]


@QUICK
@given(used())
def test_an_image_is_the_whole_ledger(ledgers: tuple[Ledger, Ledger]) -> None:
    owner, _ = ledgers
    again = owner.copy()
    assert again.copy() == owner.copy()
    assert list(again.peers) == list(owner.peers)
    for sender in (ALICE, "bob", CLIENT, OTHER):
        for n in range(1, 8):
            assert again.judge(sender, n, 3) is owner.judge(sender, n, 3)
            assert again.answer(sender, n) == owner.answer(sender, n)


def test_an_image_is_no_view() -> None:
    ledger = Ledger()
    ledger.apply(commit(taken(1, ALICE, b"x"), outs=(out(1),), held=[3], dead=[letter(1)]))
    image, again = ledger.copy(), ledger.copy()
    ledger.apply(commit(taken(2, ALICE, b"y"), outs=(out(2),), held=[], dead=[letter(2)], released={"guide": 2}))
    assert image == again.copy()


def test_a_commit_that_says_nothing_of_held_leaves_it() -> None:
    ledger = Ledger()
    ledger.apply(commit(held=[3, 4]))
    ledger.apply(commit(cursor=9))
    assert (ledger.held, ledger.cursor) == ([3, 4], 9)
