"""The checkers are alive: with one guard of the protocol taken away, they find the harm within so many seeds.

A guard is taken away from outside, by wrapping a method of production code or of the world; nothing in the code knows of it.  The same
seeds are clean with all guards in place.  `make test` takes away those that are found soonest; `make guards` takes away each of them.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from dataclasses import replace
from typing import Any

import pytest
from msgspec.structs import replace as replace_field
from support.attribute_guards import attributes_expect_the_last
from support.cancel_guards import asks_of_cancelled_turns_are_cancelled
from support.deploy_guards import one_process_drives
from support.depth import depth
from support.family_guards import restarts_are_counted
from support.guards import GUARDS, Guard, Patch, guard
from support.member_guards import the_suspected_say_that_they_live
from support.paths import ROOT
from support.plan_guards import a_planned_target_meets_the_policy
from support.priority_guards import inboxes_are_opened
from support.team_guards import a_turn_hands_on_its_trace
from support.topic_guards import numbers_say_what_is_stored
from support.wait_guards import the_first_outcome_stands

from mielin_cells.agents import context
from mielin_cells.agents.live import Cell
from mielin_cells.errors import Fenced
from mielin_cells.log import codec
from mielin_cells.log.commit import DeadLetter, Input, Out, StepCall
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import MEMBERS, log_subject
from mielin_cells.log.keys.kept import Keys
from mielin_cells.log.ledger import Ledger
from mielin_cells.log.message import Mail, Message
from mielin_cells.log.records import Claimed
from mielin_cells.log.state import StoredState
from mielin_cells.log.streams.entries import StreamView
from mielin_cells.log.turns.batch import Batch
from mielin_cells.membership.members import AnyRecord as AnyMember
from mielin_cells.membership.table import Members
from mielin_cells.migration import case
from mielin_cells.migration import source as machine
from mielin_cells.migration.failure import MigrationError
from mielin_cells.migration.recovery import RecoveryConfig, RecoveryStrategy, explain
from mielin_cells.node.activation import effects, intake, readers
from mielin_cells.node.activation.activation import Activation
from mielin_cells.node.activation.calls import order, pending
from mielin_cells.node.activation.calls.tasks import Branch
from mielin_cells.node.activation.context import NodeContext
from mielin_cells.node.activation.effects import Effects
from mielin_cells.node.activation.inbox import Arrival, Inbox
from mielin_cells.node.activation.outbox import Outbox
from mielin_cells.node.activation.presence.sleeper import Sleeper
from mielin_cells.node.activation.turn import Turn
from mielin_cells.node.activation.writer import Writer
from mielin_cells.node.moves.handover import Handover
from mielin_cells.node.moves.target import Copy
from mielin_cells.node.ownership import rounds
from mielin_cells.node.ownership.idling import Idling
from mielin_cells.node.ownership.rounds import Rounds
from mielin_cells.node.reads import Reads
from mielin_cells.node.streams.writer import StreamWriter
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import Reading
from mielin_cells.store.clock import StoreClock
from mielin_cells.substrate import retry
from mielin_cells.substrate.ports import Entry, Log, Outcome, Source
from mielin_cells.substrate.ports import Tail as TailPort
from mielin_cells.testing.checkers.checker import INVARIANTS
from mielin_cells.testing.checkers.scene import WALL_S
from mielin_cells.testing.simulate import Result, simulate
from mielin_cells.testing.simulator.view import View


@guard(within=10)
def conditional_append(patch: Patch) -> None:
    """Whoever appends is stored, whatever it expected."""
    append = View.append

    async def anyhow(
        self: View, subject: str, data: bytes, expect: int | None = None, owner: str | None = None
    ) -> Outcome:
        return await append(self, subject, data, None, owner)

    patch.setattr(View, "append", anyhow)


@guard(within=200)
def absence_is_settled(patch: Patch) -> None:
    """That there is no agent is told by whoever answered, also by a leader that was cut off."""
    last, settled, absent = View.last, View.settled, dict[tuple[str, str], bool]()

    async def noted(self: View, subject: str) -> Entry | None:
        found = await last(self, subject)
        absent[self.label, subject] = found is None
        return found

    async def as_it_was_told(self: View, subject: str) -> Entry | None:
        return None if absent.get((self.label, subject)) else await settled(self, subject)

    patch.setattr(View, "last", noted)
    patch.setattr(View, "settled", as_it_was_told)


@guard(within=40)
def damage_is_read_again(patch: Patch) -> None:
    """What does not read is taken for damaged where it is stored, at the first look."""
    patch.setattr(retry, "READS", 0)


@guard(within=40)
def what_was_refused_is_dropped(patch: Patch) -> None:
    """After a record that the store refused, its writer goes on: with a state and numbers that the log does not have."""
    fail = Writer._failed

    def goes_on(self: Writer, what: str, error: BaseException) -> BaseException:
        found = fail(self, what, error)
        self.failure = None
        return found

    patch.setattr(Writer, "_failed", goes_on)


@guard(within=200)
def refusal_is_no_answer(patch: Patch) -> None:
    """What the store refuses while a turn runs counts as what the handler raised."""
    patch.setattr(effects, "PASSING", (Fenced,))


@guard(within=40)
def failed_turn_is_undone(patch: Patch) -> None:
    """What a turn has changed stays as it is, also if it fails."""
    patch.setattr(Cell, "undo", Cell._forget)


@guard(within=200)
def state_is_its_turns(patch: Patch) -> None:
    """Whoever holds an agent may change it, also a task that has outlived its turn."""
    assign = Cell.set

    def anyhow(self: Cell, name: str, value: Any) -> None:
        token = context.turn.set(self.owner)
        try:
            assign(self, name, value)
        finally:
            context.turn.reset(token)

    patch.setattr(Cell, "set", anyhow)


@guard(within=200)
def cursor_in_the_commit(patch: Patch) -> None:
    """The cursor is kept apart, at once, and an owner begins to read from there: a process has to die between two instants."""
    apart: dict[tuple[int, str], int] = {}
    worlds: list[object] = []  # kept, so that no two of them have one `id`
    read, done = Inbox.read, Inbox.done

    def key(inbox: Inbox) -> tuple[int, str]:
        if not worlds or worlds[-1] is not inbox._home.settings:
            worlds.append(inbox._home.settings)
        return id(inbox._home.settings), inbox._fold.agent

    def done_apart(self: Inbox, arrival: Arrival, *args: object) -> None:
        apart[key(self)] = max(apart.get(key(self), 0), arrival.seq)
        done(self, arrival, *args)  # type: ignore[arg-type]

    async def read_apart(self: Inbox) -> None:
        self._fold.ledger.cursor = max(self._fold.ledger.cursor, apart.get(key(self), 0))
        await read(self)

    patch.setattr(Inbox, "done", done_apart)
    patch.setattr(Inbox, "read", read_apart)


@guard(within=10)
def output_rule_for_tells(patch: Patch) -> None:
    """What a turn tells leaves when the turn ends, before its commit is there."""
    send = Effects.send

    def send_at_once(self: Effects, turn: Turn) -> None:
        activation = self._core
        before = len(activation.batch.outs)
        send(self, turn)
        for out in activation.batch.outs[before:]:
            activation.outbox.push(out)

    patch.setattr(Effects, "send", send_at_once)


@guard(within=60)
def recorded_turn_is_first(patch: Patch) -> None:
    """While a turn with recorded asks and steps waits for its next run, others go on and change the state that it was made in."""
    patch.setattr(intake, "stays_first", lambda fold, sender, n: False)
    patch.setattr(intake, "turn_is_open", lambda fold: False)


@guard(within=10)
def put_off_is_held(patch: Patch) -> None:
    """The cursor passes a message that waits for its next run, and no commit says that it is not done."""

    def put_off(self: Inbox, arrival: Arrival, batch: Batch) -> None:
        assert isinstance(self.queue, deque)
        self.queue.popleft()
        self.aside += 1
        if not arrival.was_held:
            arrival.was_held = True
            self._fold.ledger.held.append(arrival.seq)
            self._fold.ledger.cursor = arrival.seq
            batch.moved = True

    patch.setattr(Inbox, "put_off", put_off)


@guard(within=5)
def output_rule_for_answers(patch: Patch) -> None:
    """A caller is answered when its turn ends, before its commit is there."""
    take = Effects.take

    def take_and_answer(self: Effects, mail: Mail, message: Message, turn: Turn | None, answer: bytes | None) -> None:
        take(self, mail, message, turn, answer)
        if answer is not None:
            activation = self._core
            activation.home.begin(activation._let_out({(mail.reply_to, mail.sender): {message.n: answer}}))

    patch.setattr(Effects, "take", take_and_answer)


@guard(within=400)
def claim_by_read(patch: Patch) -> None:
    """A source that does not know whether its handover landed reads, and goes on if it sees none: it claims nothing (rule 6)."""
    claim_back = Handover.claim_back

    async def by_a_read(self: Handover, *, is_in_doubt: bool) -> machine.Event:
        last = await self.activations.home.log.last(log_subject(self.activation.fold.agent))
        if last is not None and last.seq == self.activation.fold.seq:
            return machine.ClaimedBack()
        return await claim_back(self, is_in_doubt=is_in_doubt)

    patch.setattr(Handover, "claim_back", by_a_read)


@guard(within=30)
def claim_after_a_restart(patch: Patch) -> None:
    """A node that has read that it owns an agent goes on in the same epoch, without a claim of its own (rule 5)."""
    append = Writer.append

    async def by_a_read(self: Writer, compose: Any, **how: Any) -> Any:
        found = compose(self.head(claim=True)) if how.get("claim") else None
        if not isinstance(found, Claimed) or found.cause != "restarted":
            return await append(self, compose, **how)
        self.fold.incarnation = self.incarnation
        return found

    patch.setattr(Writer, "append", by_a_read)


@guard(within=100)
def verification(patch: Patch) -> None:
    """Nobody looks whether bytes are those that were stored, nor whether a state is the one that was committed and sealed."""

    def anything(data: bytes, where: str) -> bytes:
        return data[codec._HEAD :]

    make_activation = Copy._make_activation

    async def unseen(self: Copy, fold: Fold) -> None:
        self._handed = None
        await make_activation(self, fold)

    patch.setattr(codec, "unframed", anything)
    patch.setattr(Fold, "verify", lambda self: None)
    patch.setattr(Copy, "_make_activation", unseen)


@guard(within=40)
def retry_count(patch: Patch) -> None:
    """A failure that may be retried is, however often it has been."""

    def always(error: MigrationError, config: RecoveryConfig) -> tuple[RecoveryStrategy, str]:
        return explain(error, replace(config, max_retries=1000))

    patch.setattr(case, "explain", always)


@guard(within=20)
def watermark_of_sent_outputs(patch: Patch) -> None:
    """A commit calls released what was sent, not what is stored (rule 11)."""
    push = Outbox.push

    def sent(self: Outbox, out: Out) -> None:
        push(self, out)
        self._stored = {**self._stored, out.to: max(self._stored.get(out.to, 0), out.n)}

    patch.setattr(Outbox, "push", sent)


@guard(within=30)
def steps_in_the_log(patch: Patch) -> None:
    """A turn that runs again calls again."""
    patch.setattr(Turn, "recorded", property(lambda self: (), lambda self, made: None), raising=True)


@guard(within=600)
def steps_recorded_before_a_stop(patch: Patch) -> None:
    """A turn stops between steps before the outcome is in the log: the move has to come between two steps."""
    record = Turn._record_step

    async def unless_stopped(self: Turn, made: StepCall) -> None:
        if not self._core.is_stopping:
            await record(self, made)

    patch.setattr(Turn, "_record_step", unless_stopped)


@guard(within=200)
def logs_are_listed_after_news(patch: Patch) -> None:
    """Once a node has listed all logs it counts as at rest, whatever is written after that."""

    async def at_rest(self: Rounds) -> bool:
        return self._compared_at > 0

    patch.setattr(Rounds, "_is_calm", at_rest)


@guard(within=20)
def own_agents_are_listed(patch: Patch) -> None:
    """A node takes what it is asked to take, and looks for no other agents."""

    async def nothing(log: Log, node: str, source: Source = "index") -> list[str]:
        return []

    patch.setattr(rounds, "list_owned", nothing)
    patch.setattr(Rounds, "hear", lambda self, subject: None)


@guard(within=40)
def reads_are_acknowledged(patch: Patch) -> None:
    """A read is given the state in memory, which a commit under way may be about to make true."""
    patch.setattr(readers, "is_ahead", lambda *batches: False)


@guard(within=20)
def a_read_sees_one_state(patch: Patch) -> None:
    """A read that waits in the middle goes on with whatever the agent has become."""
    patch.setattr(StoredState, "frozen", lambda self: self)


@guard(within=40)
def a_linearizable_read_asks_the_log(patch: Patch) -> None:
    """Who takes itself for the owner answers a linearizable read without a look at the log's end."""
    read = Reads.read

    async def at_once(self: Reads, request: requests.Read) -> Reading:
        return await read(self, replace_field(request, is_linearizable=False))

    patch.setattr(Reads, "read", at_once)


@guard(within=40)
def members_expect_the_last_record(patch: Patch) -> None:
    """What is appended to the log of the members is stored, whatever has been read of it."""
    append = View.append

    async def anyhow(
        self: View, subject: str, data: bytes, expect: int | None = None, owner: str | None = None
    ) -> Outcome:
        return await append(self, subject, data, None if subject == MEMBERS else expect, owner)

    patch.setattr(View, "append", anyhow)


@guard(within=20)
def members_are_decided_anew(patch: Patch) -> None:
    """A record of the members that lost against another one is appended again behind it."""
    append = Members.try_append

    async def again(self: Members, record: AnyMember) -> int:
        return await append(self, record) or await append(self, record)

    patch.setattr(Members, "try_append", again)


@guard(within=40)
def deadlines_are_kept(patch: Patch) -> None:
    """A message runs however late it is."""
    patch.setattr(Ledger, "why_unrun", lambda *_: "")


@guard(within=200)
def deadlines_by_the_stores_clock(patch: Patch) -> None:
    """A node judges deadlines by its own wall clock, which may be wrong."""

    class Wall(StoreClock):
        def __init__(self, home: NodeContext) -> None:
            super().__init__(home.log)
            self._wall = home.wall

        def now(self) -> float:
            return super().now() + self._wall() - (WALL_S + asyncio.get_running_loop().time())

    make = NodeContext.__post_init__

    def made(self: NodeContext) -> None:
        make(self)
        self.clock = Wall(self)

    patch.setattr(NodeContext, "__post_init__", made)


@guard(within=100)
def known_keys_do_not_run(patch: Patch) -> None:
    """A call runs, although one under its key has run."""
    patch.setattr(Keys, "judge", lambda *_: "")


@guard(within=40)
def keys_are_in_the_log(patch: Patch) -> None:
    """An owner remembers keyed calls, and the log does not have them."""
    patch.setattr(Input, "kept", None)


@guard(within=200)
def the_next_timer_wakes(patch: Patch) -> None:
    """An agent that leaves memory is woken by messages alone."""
    begin = Sleeper.begin

    def without_alarm(
        self: Sleeper, tail: TailPort | None, others: Sequence[TailPort], due: float | None, context: Context
    ) -> None:
        begin(self, tail, others, None, context)

    patch.setattr(Sleeper, "begin", without_alarm)


@guard(within=200)
def an_agent_leaves_with_its_commits(patch: Patch) -> None:
    """An agent leaves memory before the commit of its last turns is there, and its inbox is read on behind their messages."""

    async def unsaved(self: Idling, activation: Activation) -> None:
        return None

    def quiet(self: Activation) -> bool:
        return self.is_open and self.fold.may_run and not self.inbox.queue and self.stops == 1 and self._batch is None

    def anyhow(self: Sleeper, cursor: int) -> TailPort | None:
        tail, self._tail = self._tail, None
        return tail

    patch.setattr(Idling, "_save", unsaved)
    patch.setattr(Idling, "_make_short", unsaved)
    patch.setattr(Activation, "is_idle", property(lambda self: not self.inbox.queue and self.is_open))
    patch.setattr(Activation, "may_sleep", property(quiet))
    patch.setattr(Sleeper, "take_tail", anyhow)


@guard(within=40)
def dropped_messages_are_dead_letters(patch: Patch) -> None:
    """What a full inbox drops is gone."""
    bury = Effects.bury

    def unless_full(self: Effects, letter: DeadLetter) -> None:
        if not letter.cause.startswith("InboxFull"):
            bury(self, letter)

    patch.setattr(Effects, "bury", unless_full)


@guard(within=60)
def branches_are_told_apart(patch: Patch) -> None:
    """Calls of one turn are known by name and number alone, whichever branch makes them."""
    make = pending.Pending.__init__

    def alike(self: pending.Pending, branch: Branch, *args: Any) -> None:
        make(self, Branch(), *args)

    patch.setattr(pending.Pending, "__init__", alike)


@guard(within=40)
def recorded_calls_come_first(patch: Patch) -> None:
    """A turn with branches that runs again makes its calls at once, whatever is recorded."""

    async def at_once(self: order.Branches) -> None:
        self._turn.calls.clear()

    patch.setattr(order.Branches, "_replay", at_once)


@guard(within=40)
def a_step_that_emits_again_restarts_its_parts(patch: Patch) -> None:
    """Parts of a call that failed stand in front of those of the next one."""

    async def goes_on(self: StreamWriter, at: int, attempt: int) -> None:
        self.view.parts = self.view.parts[:at]

    patch.setattr(StreamWriter, "restart", goes_on)


@guard(within=100)
def a_stream_is_read_before_it_is_written(patch: Patch) -> None:
    """An owner that runs a turn again sends all parts, and does not look which are there."""

    async def blind(self: StreamWriter, ended: int = 0) -> StreamView:
        last = await self._owner.log.last(self._subject)
        self.view.last = last.seq if last is not None else 0
        return self.view

    patch.setattr(StreamWriter, "open", blind)


assert Guard(numbers_say_what_is_stored, 100) in GUARDS, "the guards of topics are among them"
assert Guard(the_suspected_say_that_they_live, 40) in GUARDS, "and those of the members"
assert Guard(inboxes_are_opened, 20) in GUARDS, "and those of priorities"
assert Guard(restarts_are_counted, 40) in GUARDS, "and those of supervision"
assert Guard(attributes_expect_the_last, 100) in GUARDS, "the guards of attributes are among them"
assert Guard(asks_of_cancelled_turns_are_cancelled, 40) in GUARDS, "and those of cancels"
assert Guard(the_first_outcome_stands, 200) in GUARDS, "and those of waits"
assert Guard(a_turn_hands_on_its_trace, 20) in GUARDS, "and those of services, groups, timers by cron and traces"
assert Guard(one_process_drives, 200) in GUARDS, "and those of deploys"
assert Guard(a_planned_target_meets_the_policy, 100) in GUARDS, "and those of policies and plans"

SOON = 10
"""What is found within so many seeds is taken away in `make test`, too."""

CHOSEN = [one for one in GUARDS if one.within <= depth(SOON, 60, 1_000)]
"""`make ci` takes most away, and `make guards` all: the last ones take as long as those before them together."""


@pytest.mark.parametrize("one", CHOSEN, ids=lambda one: one.name)
def test_a_guard_that_is_taken_away_is_missed_within_the_seeds_that_it_states(one: Guard) -> None:
    with pytest.MonkeyPatch.context() as patch:
        one.remove(patch)
        found = first_found(range(1, 1 + one.within))
    assert found is not None, f"no seed up to {one.within} is violated without {one.name}"
    assert found.invariant in INVARIANTS, found.violations
    print(f"{one.name} is missed at seed {found.story.seed}, by {found.invariant}")
    assert simulate(found.story.seed).violations == [], "with the guard in its place the same seed is clean"


def test_the_page_tells_each_guard_with_its_number_of_seeds() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = {name: int(within) for name, within in re.findall(r"^\| `(\w+)` \| [^|]+ \| (\d+) \|", page, re.MULTILINE)}
    assert rows == {one.name: one.within for one in GUARDS}


def first_found(seeds: range) -> Result | None:
    """The first story with a violation."""
    for seed in seeds:
        result = simulate(seed)
        if result.violations:
            return result
    return None
