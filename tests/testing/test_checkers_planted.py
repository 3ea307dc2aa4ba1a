"""Checkers that no guard makes speak are alive: planted violations are found (I2, I11, I12, I20, I30, I37, I40, I46)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeAlias, cast

import pytest
from msgspec.structs import replace
from support.agent_log import (
    AGENT,
    NODE,
    TARGET,
    accepted,
    after,
    asked,
    claimed,
    commit,
    committed,
    created,
    handed_off,
    head,
    returned,
    stepped,
    suspended,
    undone,
)
from support.journals import MIGRATION, attempted, cancelled, ended, planned
from support.journals import head as journal_head

from mielin_cells.agents.groups.report import GroupReport
from mielin_cells.log.commit import ReplayInput
from mielin_cells.log.delta import StateDelta
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import inbox_subject, journal_subject, log_subject
from mielin_cells.log.records import AnyRecord, Undone, encode_record
from mielin_cells.log.topics.names import subject_of
from mielin_cells.log.topics.outside import MADE
from mielin_cells.log.topics.posts import Post, Value
from mielin_cells.log.topics.subs import Sub, Subs, Subscribed, Took, TopicChange, Unsubscribed, key_of
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.members import Joined, Planned
from mielin_cells.migration.journal import Head, Journal
from mielin_cells.migration.progress import MigrationPhase
from mielin_cells.node.node import Node
from mielin_cells.policy.planning.plan import PlannedMove
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.checkers.checker import Checker, Checkers, Line, MemberStep, Owned, Posted, Step
from mielin_cells.testing.checkers.history import Author, History
from mielin_cells.testing.checkers.lines.cancels import CancelsHold
from mielin_cells.testing.checkers.members import MembersAgree
from mielin_cells.testing.checkers.migrations import RecoveredOnce
from mielin_cells.testing.checkers.outside.once import OutsideOnce
from mielin_cells.testing.checkers.ownership import EpochsGrow, NobodyRuns, NothingUnverified
from mielin_cells.testing.checkers.plans.resting import NoPingPong
from mielin_cells.testing.checkers.scene import Observed, Ordered, Scene, Violation
from mielin_cells.testing.checkers.teams.orders import OrdersCarriedOut
from mielin_cells.testing.checkers.topics import TopicsOnce

Make: TypeAlias = Callable[[Fold], AnyRecord]


def process(name: str, incarnation: int = 1) -> Author:
    return cast("Author", SimpleNamespace(name=name, label=f"{name}#{incarnation}"))


def scene(**nodes: object) -> Scene:
    made = Scene(History(lambda: 0.0))
    made.nodes = {name: cast("Node", node) for name, node in nodes.items()}
    return made


class Fed:
    """A checker, and the log that it sees."""

    agent = AGENT

    def __init__(self, kind: type[Checker], **nodes: object) -> None:
        self.checker = kind(scene(**nodes))
        self.owned, self.seq, self.at = Owned(), 0, 0.0
        self.checker.scene.history = History(lambda: self.at)

    def lands(self, record: AnyRecord, author: str = "") -> None:
        self.seq += 1
        self.checker.record(Step(self.agent, self.seq, record, process(author or record.node), self.at, self.owned, {}))
        self.owned.after(self.seq, record)

    def story(self, *makers: Make) -> Fold:
        """Lands what a legal log has; what the log then says."""
        return self.goes_on(Fold(self.agent), *makers)

    def goes_on(self, fold: Fold, *makers: Make) -> Fold:
        for make in makers:
            record = make(fold)
            fold.apply(fold.seq + 1, record)
            self.lands(record)
        return fold


LEGAL: tuple[Make, ...] = (created, committed, handed_off, accepted, handed_off, returned, suspended, claimed)


@pytest.mark.parametrize("kind", [EpochsGrow, NobodyRuns, NothingUnverified, RecoveredOnce])
def test_a_legal_log_is_not_blamed(kind: type[Checker]) -> None:
    Fed(kind).story(*LEGAL)


# ---- I2 ----


@pytest.mark.parametrize(
    ("makers", "wrong"),
    [
        ((created,), lambda f: claimed(f, epoch=3)),
        ((created,), lambda f: claimed(f, epoch=1)),
        ((created, claimed), lambda f: committed(f, epoch=1)),
        ((created,), lambda f: committed(f, epoch=2)),
        ((created, handed_off), lambda f: accepted(f, epoch=1)),
        ((), lambda f: created(f, epoch=2)),
    ],
)
def test_epochs_that_do_not_grow_by_one_are_found(makers: tuple[Make, ...], wrong: Make) -> None:
    fed = Fed(EpochsGrow)
    fold = fed.story(*makers)
    with pytest.raises(Violation, match="^I2: .*is of epoch"):
        fed.lands(wrong(fold))


def test_a_process_that_writes_in_less_than_it_has_written_in_is_found() -> None:
    fed = Fed(EpochsGrow)
    fed.story(created, claimed)
    fed.owned = Owned(seq=9, epoch=1, owner="n3")  # as if the log had gone back
    with pytest.raises(Violation, match="^I2: .*it has written in 2"):
        fed.lands(committed(after(), node="n3", epoch=1), "n3")


# ---- I11 ----


@pytest.mark.parametrize("wrong", [committed, asked, stepped, suspended, handed_off])
def test_a_record_in_probation_that_is_no_verdict_is_detected(wrong: Make) -> None:
    fed = Fed(NobodyRuns)
    fold = fed.story(created, handed_off)
    with pytest.raises(Violation, match="^I11: .*lands in probation"):
        fed.lands(wrong(fold))


@pytest.mark.parametrize("wrong", [accepted, returned])
def test_a_verdict_outside_of_probation_is_found(wrong: Make) -> None:
    fed = Fed(NobodyRuns)
    fold = fed.story(created)
    with pytest.raises(Violation, match="^I11: .*lands outside of probation"):
        fed.lands(wrong(fold))


def source(phase: MigrationPhase, *, is_stopping: bool) -> SimpleNamespace:
    activation = SimpleNamespace(is_open=True, is_stopping=is_stopping)
    move = SimpleNamespace(machine=SimpleNamespace(phase=phase), activation=activation, migration="m-1.1")
    live = SimpleNamespace(live={AGENT: activation})
    attempts = SimpleNamespace(moves={AGENT: move})
    return SimpleNamespace(migrations=SimpleNamespace(attempts=attempts), activations=live)


UNDECIDED = (MigrationPhase.HANDING_OVER, MigrationPhase.IN_DOUBT, MigrationPhase.VERIFYING)


@pytest.mark.parametrize("phase", UNDECIDED)
def test_a_source_that_takes_messages_while_it_is_open_who_owns_is_found(phase: MigrationPhase) -> None:
    fed = Fed(NobodyRuns, **{NODE: source(phase, is_stopping=False)})
    with pytest.raises(Violation, match=f"^I11: .*takes messages of .* while m-1.1 is {phase.value}"):
        fed.story(created, handed_off)
    Fed(NobodyRuns, **{NODE: source(phase, is_stopping=True)}).story(created, handed_off)
    Fed(NobodyRuns, **{NODE: source(MigrationPhase.COPYING, is_stopping=False)}).story(created, handed_off)


# ---- I12 ----


def test_an_attempt_that_is_handed_over_twice_is_found() -> None:
    fed = Fed(RecoveredOnce)
    fold = fed.story(created, handed_off, returned)
    with pytest.raises(Violation, match="^I12: .*a second time"):
        fed.lands(handed_off(fold, "m-1"))


def told(*makers: Callable[[dict[str, Any]], Head]) -> tuple[RecoveredOnce, list[Line]]:
    journal, lines = Journal(MIGRATION), list[Line]()
    for seq, make in enumerate(makers, 1):
        record: Any = make(journal_head(journal, prev=seq - 1))
        lines.append(Line(AGENT, MIGRATION, seq, record, process("node-1"), 0.0))
    return RecoveredOnce(scene()), lines


def test_a_journal_with_two_ends_or_a_fork_is_found() -> None:
    checker, lines = told(planned, attempted(1), cancelled, ended)
    for line in lines:
        checker.journal(line)
    again: Any = ended(journal_head(Journal(MIGRATION), prev=4))
    with pytest.raises(Violation, match="^I12: .*ends it a second time"):
        checker.journal(Line(AGENT, MIGRATION, 5, again, process("node-2"), 0.0))
    checker, lines = told(planned, attempted(1), ended)
    checker.journal(lines[0])
    with pytest.raises(Violation, match="^I12: .*follows 2, but 1 is there"):
        checker.journal(lines[2])


# ---- I20 ----


@pytest.mark.parametrize("subject", [log_subject(AGENT), inbox_subject(AGENT), journal_subject(AGENT, MIGRATION)])
@pytest.mark.parametrize("damage", ["torn", "changed", "empty"])
def test_an_unreadable_record_is_detected(subject: str, damage: str) -> None:
    good = encode_record(created(Fold(AGENT)))
    data = {"torn": good[:-3], "changed": good[:-1] + bytes([good[-1] ^ 1]), "empty": b""}[damage]
    with pytest.raises(Violation, match="^I20: node-1#1 appended to .*cannot be read"):
        Checkers(scene(), [NothingUnverified]).landed(subject, Entry(1, data), process("node-1"))


def target(seq: int, migration: str) -> SimpleNamespace:
    return SimpleNamespace(
        copies=SimpleNamespace(by_agent={AGENT: SimpleNamespace(_fold=SimpleNamespace(seq=seq, migration=migration))})
    )


@pytest.mark.parametrize(("seq", "migration"), [(1, "m-1"), (2, ""), (2, "m-0"), (3, "m-1")])
def test_a_target_that_accepts_what_it_has_not_read_is_found(seq: int, migration: str) -> None:
    fed = Fed(NothingUnverified, **{TARGET: target(seq, migration)})
    fold = fed.story(created, handed_off)
    with pytest.raises(Violation, match="^I20: .*its copy is at"):
        fed.lands(accepted(fold))
    fed = Fed(NothingUnverified, **{TARGET: target(2, "m-1")})
    fed.lands(accepted(fed.story(created, handed_off)))
    assert head(fold)["node"] == TARGET


@pytest.mark.parametrize(("have", "is_refused"), [({"Purse": 2}, False), ({"Purse": 1}, True), ({"Other": 2}, True)])
def test_a_process_runs_no_agent_whose_class_it_does_not_have_in_that_version(
    have: dict[str, int], is_refused: bool
) -> None:
    fed = Fed(MembersAgree)
    assert isinstance(fed.checker, MembersAgree)
    fold = SimpleNamespace(cls="Purse", version=2)
    fed.checker.scene.folds[AGENT] = cast("Fold", fold)
    author = process(NODE)
    fed.checker.member(MemberStep(1, Joined(NODE, 10, b"", Announcement(classes=have)), author))
    made = created(Fold(AGENT))
    fed.checker.record(Step(AGENT, 1, made, author, 0.0, Owned(), {}))
    step = Step(AGENT, 2, claimed(after(), NODE, 10), author, 0.0, Owned(), {})
    if is_refused:
        with pytest.raises(Violation, match="I29"):
            fed.checker.record(step)
    else:
        fed.checker.record(step)


# ---- I30 ----

NEWS = subject_of("news", "p")
KEY = key_of("news", "on_post")


def change(what: TopicChange) -> Make:
    return lambda fold: committed(fold, commit(changes=[what]))


def subscriber(*changes: TopicChange) -> tuple[Fed, Fold, Make]:
    """Messages 1 and 2 are published, and an agent subscribes, takes the first, and goes on so; then an undo to before that."""
    fed, fold, log = Fed(TopicsOnce), Fold(AGENT), list[tuple[int, AnyRecord]]()
    assert isinstance(fed.checker, TopicsOnce)
    fed.checker.scene.folds[AGENT] = fold
    for seq, n, prev in ((101, 1, 0), (102, 2, 101)):
        post = Post("p", "news", n, prev, 0.0, 1.0, b"", [Value(b"")])
        fed.checker.post(Posted(NEWS, post, seq, process("node-1")))
    begun = Subscribed(Sub("news", "on_post", "", [0], 0.0, [0]))
    for make in (created, *map(change, (begun, Took(KEY, 0, 101, NEWS, 1, 1, 0), *changes))):
        record = make(fold)
        fold.apply(fold.seq + 1, record)
        fed.lands(record)
        log.append((fold.seq, record))
    return fed, fold, lambda fold: undone(fold, after(), *log[1:])


ENDED = Unsubscribed(KEY)


@pytest.mark.parametrize("changes", [(), (ENDED,), (Took(KEY, 0, 102, NEWS, 2, 1, 0), ENDED)])
def test_an_undo_may_bring_back_a_subscription_that_was_ended_but_only_as_it_was(
    changes: tuple[TopicChange, ...],
) -> None:
    """Seed 40000730: its handler had no other subscription, and what the handler had had was forgotten."""
    fed, fold, undo = subscriber(*changes)
    record = undo(fold)
    assert isinstance(record, Undone)
    assert [sub.parked for sub in record.subs or []] == ["undone"]
    for marks in ({}, {NEWS: 3}):
        wrong = [replace(sub, marks=marks) for sub in record.subs or []]
        with pytest.raises(Violation, match="^I30: .*sets subscription 'on_post news' to .*, which had come to {"):
            fed.lands(replace(record, subs=wrong))
    with pytest.raises(Violation, match="^I30: .*sets subscription 'on_post >' to .*, which had come to None"):
        fed.lands(replace(record, subs=[replace(sub, pattern=">") for sub in record.subs or []]))
    fed.lands(record)


@pytest.mark.parametrize("is_made_again", [True, False])
def test_a_message_that_is_taken_again_behind_an_undo_is_found(is_made_again: bool) -> None:
    """A subscription that was ended goes on where it was once it is made again; until then, it takes nothing."""
    fed, fold, undo = subscriber(ENDED)
    record = undo(fold)
    assert isinstance(record, Undone)
    open_yet = replace(record, replays=[ReplayInput("client", 1, True, [], {}, [])])
    fold.apply(fold.seq + 1, open_yet)
    fed.lands(open_yet)
    if is_made_again:
        fed.lands(change(Subscribed(Sub("news", "on_post", "", [102], 0.0, [102])))(fold))
    with pytest.raises(Violation, match="^I30: .*again: " if is_made_again else "^I30: .*for nobody"):
        fed.lands(change(Took(KEY, 0, 101, NEWS, 1, 1, 0))(fold))
    if is_made_again:
        fed.lands(change(Took(KEY, 0, 102, NEWS, 2, 1, 0))(fold))


@pytest.mark.parametrize(("kind", "stream", "made"), [(TopicsOnce, "", {}), (OutsideOnce, "orders ", {MADE: 7})])
def test_subscriptions_of_one_handler_that_nobody_makes_again_go_together_and_are_not_blamed(
    kind: type[Checker], stream: str, made: dict[str, int]
) -> None:
    fed, fold, log = Fed(kind), Fold(AGENT), list[tuple[int, AnyRecord]]()
    fed.checker.scene.folds[AGENT] = fold
    first, second = (Sub(f"{stream}{one}", "h", "", [0], 0.0, [0], made) for one in ("a", ">"))

    def lands(record: AnyRecord) -> None:
        fold.apply(fold.seq + 1, record)
        fed.lands(record)
        log.append((fold.seq, record))

    lands(created(fold))
    for what in (Subscribed(first), Subscribed(second), Unsubscribed(second.key)):
        lands(change(what)(fold))
    for _ in range(2):
        record = undone(fold, after(), *log[1:])
        assert [sub.parked for sub in record.subs or []] == ["undone", "undone"]
        lands(record)
        lands(claimed(fold))
        assert fold.ledger.topics == Subs()


# ---- I37 ----


def test_a_turn_that_goes_on_with_a_cancelled_ask_is_found_unless_it_was_undone() -> None:
    """Seed 1706484: a turn had given an ask up.  After an undo it ran again, and had the answer to that ask: it is cancelled."""
    fed = Fed(CancelsHold)
    fed.checker.scene.observed[AGENT] = Observed(wronged=["(client, 1): cancelled"])
    fold = fed.story(created, committed)
    with pytest.raises(Violation, match="I37"):
        fed.checker.at_rest()
    fed.lands(undone(fold))
    fed.checker.at_rest()


# ---- I46 ----


class Moved(Fed):
    """What the checker sees of an agent that policies move."""

    agent = "mover-free-1"

    def __init__(self) -> None:
        super().__init__(NoPingPong)

    def plans(self, epoch: int, migration: str = "m-9") -> None:
        move = PlannedMove(self.agent, migration, epoch, NODE, TARGET, 70)
        plan = Planned("n9", 1, 1, "policy", self.at, self.at + 120.0, (move,))
        self.checker.member(MemberStep(self.seq, plan, process("n9")))

    def begins(self, node: str, migration: str = "m-9") -> None:
        record = planned(journal_head(Journal(migration), migration=migration, agent=self.agent))
        self.checker.journal(Line(self.agent, migration, self.seq, record, process(node), self.at))


def by_another(fold: Fold) -> AnyRecord:
    return claimed(fold, node="n3", incarnation=30)


def restarted(fold: Fold) -> AnyRecord:
    return claimed(fold, incarnation=fold.incarnation + 1)


def claimed_back(fold: Fold) -> AnyRecord:
    """By the process that has handed it over, or is in doubt whether it has."""
    return claimed(fold, node=NODE, incarnation=10)


@pytest.mark.parametrize("came", [(by_another,), (restarted,), (handed_off, accepted), (by_another, claimed_back)])
def test_an_agent_that_is_planned_as_soon_as_it_has_come_is_found(came: tuple[Make, ...]) -> None:
    fed = Moved()
    fold = fed.story(created)
    fed.at = 10.0
    fed.goes_on(fold, *came)
    fed.at = 12.0
    with pytest.raises(Violation, match="^I46: .*has come 2 s ago"):
        fed.plans(fold.epoch)


@pytest.mark.parametrize("back", [(claimed_back,), (handed_off, claimed_back), (handed_off, returned)])
def test_an_agent_that_comes_back_before_it_ran_elsewhere_was_never_away(back: tuple[Make, ...]) -> None:
    """Seed 40000988: a handover's answer was lost, and the source claimed the agent, which it still had."""
    fed = Moved()
    fold = fed.story(created)
    fed.at = 10.0
    fed.goes_on(fold, *back)
    fed.at = 12.0
    fed.plans(fold.epoch)


@pytest.mark.parametrize("came", [by_another, restarted])
@pytest.mark.parametrize("begins", [False, True])
def test_a_plan_of_an_epoch_that_is_over_moves_nothing(came: Make, begins: bool) -> None:
    """Seeds 40000584, 40000700: a node wished that did not know that another had claimed the agent, or was gone by then."""
    fed = Moved()
    fold = fed.story(created)
    before = fold.epoch
    fed.at = 10.0
    fed.goes_on(fold, came)
    fed.plans(before)
    fed.begins(fold.owner if begins else "elsewhere")
    over = handed_off(fold, "m-9.1")
    if begins:
        with pytest.raises(Violation, match="^I46: .*of an epoch that was over"):
            fed.lands(over)
    else:  # an owner that goes on with another's journal
        fed.lands(over)


# ---- I40 ----


def hired(fold: Fold) -> AnyRecord:
    return replace(created(fold), state=StateDelta(plain={"firings": b"\x90"}))


@pytest.mark.parametrize(
    ("moves", "has_failed", "is_right"),
    [
        ({12.0, 17.0}, False, True),
        ({12.0}, False, False),
        ({12.0, 17.0}, True, True),
        ({12.0}, True, False),
        (set(), True, True),
        (
            {18.0},
            True,
            True,
        ),  # seed 55000086: the order's own move had failed, and another client moved the agent after that
    ],
)
def test_what_an_order_has_taken_back_is_as_it_was_once_that_was_asked(
    moves: set[float], has_failed: bool, is_right: bool
) -> None:
    """An order to move to TARGET, from 10 to 20 s, that was to be taken back from 15 s on."""
    fed, fold = Fed(OrdersCarriedOut), Fold(AGENT)
    scene = fed.checker.scene
    scene.folds[AGENT] = fold
    fed.goes_on(fold, hired)
    for fed.at in sorted(moves):
        fed.goes_on(fold, handed_off, accepted)
    failed = {AGENT: "MigrationFailed"} if has_failed else {"another": "NoResponder"}
    report = GroupReport(order="migrate", failed=failed, undone=[AGENT])
    scene.ordered.append(Ordered(report, TARGET, 10.0, 20.0, {AGENT: 15.0}))
    if is_right:
        fed.checker.at_rest()
    else:
        with pytest.raises(Violation, match="^I40: .*taken back"):
            fed.checker.at_rest()
