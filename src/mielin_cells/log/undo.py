"""Undo: computes the contents of an `Undone` record from the agent's log (rules 16 to 18).

`Undoing` takes the fold as of the record to go back to, then every later record, undone stretches included: a message that
was sent stays sent.  It is pure; `node.ownership.undo` reads and appends.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple, TypeAlias

import msgspec

from mielin_cells.errors import never
from mielin_cells.log.attributes.values import after_undo as after_undo_of_attributes
from mielin_cells.log.commit import (
    TIMER,
    EndedTurn,
    Fired,
    Out,
    Place,
    ReplayInput,
    Sent,
    StepCall,
    Timer,
    TurnCall,
    body_of,
    path_of,
    place_of,
)
from mielin_cells.log.fold import Fold
from mielin_cells.log.inboxes.places import gone_back
from mielin_cells.log.records import AnyRecord, Asked, Committed, HandedOff, Stepped, Undone
from mielin_cells.log.topics.subs import Sub, Subs, Subscribed, Took, TopicChange, Unsubscribed, after_undo
from mielin_cells.log.waits.kept import Stood
from mielin_cells.log.waits.kept import after_undo as waits_after_undo
from mielin_cells.log.waits.tokens import GIVEN

Key: TypeAlias = tuple[str, int]
"""Sender and number."""
StepKey: TypeAlias = tuple[tuple[int, ...], str, int]
"""Branch, name, and how many steps of the name the branch has made before."""


class _Past:
    """The effects of one input, over all runs of its turn."""

    __slots__ = ("calls", "sent", "steps", "taken", "timers", "unrun")

    def __init__(self) -> None:
        self.taken = False
        self.unrun = ""
        self.sent: dict[Place, Sent] = {}
        """The latest message of each place."""
        self.steps: dict[StepKey, StepCall] = {}
        """By branch, name and number of earlier steps with that name in the branch."""
        self.timers: dict[int, Timer | None] = {}
        self.calls: list[TurnCall] = []
        """The calls of the last run in the log."""

    @classmethod
    def of(cls, replay: ReplayInput) -> _Past:
        past = cls()
        past.taken, past.unrun = replay.taken, replay.unrun
        past.sent = {place_of(sent): sent for sent in replay.sent}
        past.timers = dict(replay.timers)
        past.learn(0, list(replay.steps))
        past.calls = []
        return past

    def tells(self, out: Out) -> None:
        self.sent[place_of(out)] = Sent(out.to, out.k, out.n, out.handler, body_of(out), False)

    def learn(self, at: int, calls: list[TurnCall]) -> None:
        """Takes asks and steps of a run from position `at` on; a new run begins at 0."""
        self.calls = [*self.calls[:at], *calls]
        steps, asks = Counter[tuple[tuple[int, ...], str]](), Counter[str]()
        for one in self.calls:
            if isinstance(one, StepCall):
                if one.name == TIMER or one.name.startswith(GIVEN):  # it is waited for again
                    continue
                key = path_of(one), one.name
                self.steps[*key, steps[key]] = one
                steps[key] += 1
            elif one.n:
                k = asks[one.to] if one.branch is None else one.branch.k
                sent = Sent(one.to, k, one.n, one.handler, one.body, True, one.answer)
                asks[one.to] += 1
                earlier = self.sent.get(place_of(sent))
                if earlier is None or earlier.n != sent.n:
                    self.sent[place_of(sent)] = sent
                elif sent.answer is not None:  # what was sent under that number is what it was
                    self.sent[place_of(sent)] = msgspec.structs.replace(earlier, answer=sent.answer)

    def replay(self, sender: str, n: int) -> ReplayInput:
        steps = [self.steps[key] for key in sorted(self.steps)]
        return ReplayInput(sender, n, self.taken, list(self.sent.values()), self.timers, steps, self.unrun)


def _origin(timer: Timer | Fired) -> tuple[str, int, int]:
    return timer.sender, timer.input, timer.k


class Extent(NamedTuple):
    """The size of an undo, in numbers."""

    messages: int
    """Messages that are taken again."""
    sent: int
    """Messages that those have sent, which are not sent again."""
    steps: int
    """Finished steps that are not called again."""
    answered: int
    """Asks of others that keep the answers they had."""


class Undoing:
    """`back`: the fold as of the record that the agent goes back to; changed by nobody meanwhile."""

    def __init__(self, back: Fold) -> None:
        self.back = back
        self.seq = back.seq
        self._answered = 0
        self._fired: set[str] = set()
        """Timers of `back` that have fired since."""
        self._went_on: dict[str, Timer] = {}
        """Repeating timers of `back` in their latest form, also if they were cancelled later."""
        self._pasts: dict[Key, _Past] = {key: _Past.of(known) for key, known in back.ledger.replays.items()}
        self._subs = back.ledger.topics.copy() if back.ledger.topics is not None else Subs()
        self._ended_subs: dict[str, Sub] = {}
        """Subscriptions that have ended since, or were taken back by an undo, as they were then."""
        self._replays: set[Key] = set(back.ledger.replays)
        """What is still to be taken again after the last undo."""
        self._stood = dict(back.ledger.waits.stood) if back.ledger.waits is not None else {}
        """The outcomes of waits, also those that are not kept any more: a turn that runs again may want them."""
        if back.turn is not None:
            self._past(back.turn.sender, back.turn.n).learn(0, back.turn.calls)

    def saw(self, seq: int, record: AnyRecord) -> None:
        """The next record of the log."""
        self.seq = seq
        match record:
            case Committed(commit=commit) | HandedOff(seal=commit) if commit is not None:
                for out in commit.outs:
                    if out.sender:
                        self._past(out.sender, out.input).tells(out)
                for ended in commit.ended:
                    self._learn(ended)
                for one in commit.inputs:
                    past = self._past(one.sender, one.n)
                    if not past.taken:  # to the end: they are taken again in the order in which they were taken
                        self._pasts[one.sender, one.n] = self._pasts.pop((one.sender, one.n))
                        past.unrun = one.unrun
                    past.taken, past.calls = True, []
                    self._replays.discard((one.sender, one.n))
                    self._answered += one.answer is not None
                for timer in commit.timers:
                    self._has_timer(timer, timer)
                    if self._was_pending(timer):
                        self._went_on[timer.id] = timer
                for fired in commit.fired:
                    self._has_fired(fired)
                for change in commit.changes:
                    if isinstance(change, (Took, Subscribed, Unsubscribed)):
                        self._saw_topic(change)
                    elif isinstance(change, Stood):
                        self._stood[change.key] = change.outcome
                self._tidy_subs()
            case Undone(subs=subs, replays=replays):
                self._replays = {(one.sender, one.n) for one in replays}
                if subs is not None:
                    self._subs = Subs({one.key: one.copy() for one in subs})
                    self._ended_subs.update({one.key: one.copy() for one in subs if one.parked == "undone"})
                self._tidy_subs()
            case Asked() | Stepped():
                self._past(record.sender, record.input).learn(record.at, record.calls)
            case _:
                pass

    @property
    def extent(self) -> Extent:
        pasts = self._pasts.values()
        return Extent(
            sum(past.taken for past in pasts), sum(len(past.sent) for past in pasts),
            sum(len(past.steps) for past in pasts), self._answered,
        )  # fmt: skip

    def fields(self, now: Fold) -> dict[str, Any]:
        """The fields of the `Undone` record that follows the last record of `now`, which must be the last one seen."""
        if now.seq != self.seq:
            raise never("now.seq == self.seq does not hold")
        back, ledger = self.back, now.ledger
        peers = {sender: peer for sender, peer in ledger.peers.items() if not peer.is_client}
        before = {sender: peer.mark for sender, peer in back.ledger.peers.items()}
        buried = {letter.key for letter in back.ledger.dead}
        state = after_undo_of_attributes(now.state, back.state)
        return {
            "to": back.seq,
            "version": back.version,
            "state": now.state.delta_to(state),
            "digest": state.digest(),
            "cursor": back.ledger.cursor,
            "held": sorted(back.ledger.held),
            "marks": {s: before.get(s, 0) for s, peer in peers.items() if peer.mark != before.get(s, 0)},
            "unburied": sorted(letter.key for letter in ledger.dead if letter.key not in buried),
            "timers": self._timers(),
            "subs": after_undo(back.ledger.topics, ledger.topics, self._ended_subs) or None,
            "inboxes": gone_back(ledger.inboxes, back.ledger.inboxes) or {},
            "waits": waits_after_undo(back.ledger.waits, self._stood),
            "replays": [past.replay(*key) for key, past in self._pasts.items()],
        }

    def _has_fired(self, fired: Fired) -> None:
        if self._was_pending(fired):
            self._fired.add(fired.id)
        self._has_timer(fired, None)

    def _was_pending(self, timer: Timer | Fired) -> bool:
        before = self.back.ledger.timers.get(timer.id)
        return before is not None and _origin(before) == _origin(timer)

    def _has_timer(self, origin: Timer | Fired, timer: Timer | None) -> None:
        past = self._pasts.get((origin.sender, origin.input))
        if past is not None:  # else it was set before `back`, or by a hook
            past.timers[origin.k] = timer

    def _timers(self) -> list[Timer]:
        """Timers pending at that record, minus those that have fired since; a repeating one goes on after its last time."""
        pending = self.back.ledger.timers
        return [self._went_on.get(name, timer) for name, timer in pending.items() if name not in self._fired]

    def _saw_topic(self, change: TopicChange) -> None:
        if isinstance(change, Unsubscribed) and (ended := self._subs.by_key.get(change.key)) is not None:
            self._ended_subs[change.key] = ended.copy()
        self._subs.apply(change)

    def _tidy_subs(self) -> None:
        """As the ledger does: what an earlier undo took back, and no turn has made again, is over."""
        if not self._replays:
            self._subs.replayed()

    def _past(self, sender: str, n: int) -> _Past:
        return self._pasts.setdefault((sender, n), _Past())

    def _learn(self, ended: EndedTurn) -> None:
        self._past(ended.sender, ended.input).learn(ended.at, ended.calls)
