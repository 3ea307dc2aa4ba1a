"""All interleavings of a few messages with keys and deadlines, of owners that die, of time and an undo (rules T2 and T3).

The decisions are the ledger's own.  Each state is a log, what the owner has in memory, and what it knows of the store's time; every
state that can be reached is looked at, the nearest first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from mielin_cells.log.commit import EXPIRED, Input, ReplayInput
from mielin_cells.log.keys.kept import CONFLICT, KEYED, Keyed, Keys
from mielin_cells.log.ledger import Ledger, Verdict
from mielin_cells.log.message import Message, Terms

LAST = 2
"""The store's time goes from 0 to this."""

CALLS = (
    Message(1, "pay", b"x", True, terms=Terms(0.0, "k")),
    Message(1, "pay", b"x", True, terms=Terms(1.0, "k")),
    Message(1, "pay", b"y", True, terms=Terms(0.0, "k")),
    Message(1, "see", b"", True, terms=Terms(1.0)),
)
"""In the order of the inbox, each of a client of its own."""

SENDERS = tuple(f"\x01c{place}" for place in range(len(CALLS)))


class Event(NamedTuple):
    """Of the log: call `place` is taken, or its turn has recorded a call (`open`); or `undo`."""

    kind: str
    place: int = 0
    unrun: str = ""
    answer: bytes = b""


class State(NamedTuple):
    log: tuple[Event, ...] = ()
    memory: tuple[Event, ...] = ()
    """What the next commit will hold."""
    now: int = 0
    known: int = 0
    """The store's time, as the owner knows it."""
    deaths: int = 0


class Harm(AssertionError):
    pass


def taken(events: tuple[Event, ...]) -> list[Event]:
    """Of each call that was ever taken, the first time."""
    firsts: dict[int, Event] = {}
    for event in events:
        if event.kind == "take":
            firsts.setdefault(event.place, event)
    return list(firsts.values())


def ledger_of(events: tuple[Event, ...]) -> Ledger:
    """As every reader of the log has it."""
    ledger = Ledger()
    for number, event in enumerate(events):
        if event.kind == "take":
            call, sender = CALLS[event.place], SENDERS[event.place]
            again = (sender, call.n) in ledger.replays
            has_key = not event.unrun and call.terms is not None and call.terms.key
            keyed = (
                Keyed(call.terms.key, call.digest, 0.0) if has_key and call.terms is not None and not again else None
            )
            one = Input(sender, call.n, 0, 1, None if again else event.answer, [], event.unrun, keyed)
            ledger.take(one.sender, one.n, one.low, one.start, one.answer, one.given_up, one.kept)
        elif event.kind == "undo":
            replays = [ReplayInput(SENDERS[e.place], 1, True, [], {}, [], e.unrun) for e in taken(events[:number])]
            ledger.undo(0, [], {}, [], [], replays, False, [])
    return ledger


def since_undo(events: tuple[Event, ...]) -> list[Event]:
    undone = [number for number, event in enumerate(events) if event.kind == "undo"]
    return list(events[undone[-1] + 1 :] if undone else events)


def take(state: State, place: int, ledger: Ledger) -> Event:
    call = CALLS[place]
    begun = any(event.kind == "open" and event.place == place for event in since_undo(state.log))
    unrun = ledger.why_unrun(SENDERS[place], call, float(state.known), begun, False)
    kept = ledger.keys.kept.get("k") if ledger.keys is not None else None
    answer = b"ran %d" % place
    if unrun == KEYED and kept is not None:
        answer = kept.answer or b""
    elif unrun:
        answer = unrun.encode()
    if unrun == EXPIRED and call.terms is not None and (not 0 < call.terms.expires <= state.now and not ledger.replays):
        raise Harm(f"call {place} expires at {state.now}")
    if unrun == EXPIRED and begun:
        raise Harm(f"call {place} expires, and its turn has begun")
    stored = ledger.answer(SENDERS[place], 1)
    if (SENDERS[place], 1) in ledger.replays and stored is not None:
        answer = stored
    return Event("take", place, unrun, answer)


def steps(state: State) -> Iterator[State]:
    events = state.log + state.memory
    ledger = ledger_of(events)
    verdicts = [ledger.judge(sender, 1, 1) for sender in SENDERS]
    place = verdicts.index(Verdict.APPLY) if Verdict.APPLY in verdicts else None
    if place is not None:
        event = take(state, place, ledger)
        yield state._replace(memory=(*state.memory, event))
        if not event.unrun and not state.memory and state.log[-1:] != (Event("open", place),):
            yield state._replace(log=(*state.log, Event("open", place)))
    if state.memory:
        yield state._replace(log=events, memory=())
    if state.now < LAST:
        yield state._replace(now=state.now + 1)
    if state.known < state.now:
        yield state._replace(known=state.now)
    if state.deaths < 2:
        yield state._replace(memory=(), known=0, deaths=state.deaths + 1)
    if place is None and not state.memory and Event("undo") not in state.log:
        yield state._replace(log=(*state.log, Event("undo")))


def check(state: State) -> None:
    ledger = ledger_of(state.log)
    now = [event for event in since_undo(state.log) if event.kind == "take"]
    ran = [event.place for event in now if not event.unrun]
    if sum(place in (0, 1, 2) for place in ran) > 1:
        raise Harm(f"the key ran {ran}")
    for first in taken(state.log):
        if ledger.answer(SENDERS[first.place], 1) != first.answer:
            raise Harm(f"call {first.place} was answered {first.answer!r}, and then otherwise")
        for event in now:
            if event.place == first.place and event.unrun != first.unrun:
                raise Harm(f"call {first.place} was taken in two ways: {first.unrun!r}, {event.unrun!r}")
        if first.unrun == KEYED and first.answer not in (b"ran 0", b"ran 1", b"ran 2"):
            raise Harm(f"call {first.place} got {first.answer!r}")


def explore() -> int:
    """The number of states.  Raises `Harm` for the nearest that is wrong, and if a path ends before all is taken."""
    seen, queue, ends = {State()}, deque([State()]), 0
    while queue:
        state = queue.popleft()
        check(state)
        after = list(steps(state))
        ends += not after
        for one in after:
            if one not in seen:
                seen.add(one)
                queue.append(one)
    assert ends, "no path ends"
    return len(seen)


def test_a_key_runs_once_and_what_expired_never_runs_in_every_interleaving() -> None:
    assert explore() > 4_000


def test_each_way_in_which_a_call_is_taken_is_reached() -> None:
    seen, queue, ways = {State()}, deque([State()]), set[str]()
    while queue:
        for one in steps(queue.popleft()):
            ways |= {event.unrun for event in one.log if event.kind == "take"}
            if one not in seen and len(seen) < 5_000:
                seen.add(one)
                queue.append(one)
    assert ways >= {"", KEYED, CONFLICT, EXPIRED}


def _forget_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Input, "kept", None)


def _run_known_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Keys, "judge", lambda *_: "")


def _forget_begun(patch: pytest.MonkeyPatch) -> None:
    why = Ledger.why_unrun

    def anew(self: Ledger, sender: str, call: Message, now: float, has_begun: bool, is_over: bool) -> str:
        return why(self, sender, call, now, False, is_over)

    patch.setattr(Ledger, "why_unrun", anew)


def _know_more_than_the_store(patch: pytest.MonkeyPatch) -> None:
    why = Ledger.why_unrun
    patch.setattr(Ledger, "why_unrun", lambda self, sender, call, now, *args: why(self, sender, call, now + 1, *args))


def _judge_again_after_an_undo(patch: pytest.MonkeyPatch) -> None:
    why = Ledger.why_unrun

    def anew(self: Ledger, *args: object) -> str:
        replays, self.replays = self.replays, {}
        try:
            return why(self, *args)  # type: ignore[arg-type]
        finally:
            self.replays = replays

    patch.setattr(Ledger, "why_unrun", anew)


@pytest.mark.parametrize(
    "broken",
    [_forget_keys, _run_known_keys, _forget_begun, _know_more_than_the_store, _judge_again_after_an_undo],
    ids=lambda broken: broken.__name__.strip("_"),
)
def test_each_rule_that_is_broken_does_harm(broken: object, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)  # type: ignore[operator]
    with pytest.raises(Harm):
        explore()
