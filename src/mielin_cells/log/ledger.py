"""Who has sent what to the agent and what the agent has sent: the bookkeeping of exactly-once, as one agent's log tells it.

Owner and reader change a ledger by the same methods: the owner turn by turn, a reader commit by commit (`apply`), so both
hold the same.  Rules 10, 11, 14, 15 and 18 of the protocol live here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec
from blake3 import blake3

from mielin_cells.log.codec import pack
from mielin_cells.log.commit import EXPIRED, FULL, Commit, DeadLetter, LetterKey, Out, ReplayCounts, ReplayInput, Timer
from mielin_cells.log.digest import NamedDigests
from mielin_cells.log.family import made
from mielin_cells.log.family.tree import Family, FamilyChange
from mielin_cells.log.inboxes.cancels import CANCELLED, Cancels
from mielin_cells.log.inboxes.lines import NORMAL
from mielin_cells.log.inboxes.places import HasPlace, InboxPlace, Places, copied
from mielin_cells.log.keys.kept import Keyed, Keys
from mielin_cells.log.message import Message, Peer, Verdict, is_client
from mielin_cells.log.topics.subs import Sub, Subs, Subscribed, Took, TopicChange, Unsubscribed
from mielin_cells.log.turns.contents import make_room, rest_of
from mielin_cells.log.waits.kept import WAIT_CHANGES, WaitChange, Waits
from mielin_cells.settings import ANSWERS_BYTES_MAX, DEAD_LETTERS_MAX, LETTERS_BYTES_MAX, SESSIONS_MAX

FLAT_MAX = 1024
"""Senders and receivers up to which the ledger's digest is computed from all of it at once, in up to 2 ms."""

HASHED_AT_ONCE = 64
HASH_SLICE = 256
"""Number of names that are hashed in about a millisecond."""

PEER_BYTES = 64
_TO = "\x02"
"""Prefix of a receiver's name among names of senders; no id holds it."""


_APPLY, _HOLD, _REPEAT, _CLOSED = Verdict.APPLY, Verdict.HOLD, Verdict.REPEAT, Verdict.CLOSED
"""Module names for the members, since reading one from the enumeration costs as much as all other checks of a message."""


class Ledger(msgspec.Struct, array_like=True, dict=True):
    """The fields are what snapshots hold; the counts at their end follow from the others."""

    cursor: int = 0
    held: list[int] = []
    peers: dict[str, Peer] = {}
    """Senders; among clients and agents that had an answer, the one that has been quiet for longest comes first."""
    numbers: dict[str, int] = {}
    released: dict[str, int] = {}
    pending: dict[str, dict[int, Out]] = {}
    dead: list[DeadLetter] = []
    horizon: int = 0
    """Every forgotten session began when the log ended at this position or earlier (rule 15)."""
    replays: dict[tuple[str, int], ReplayInput] = {}
    """After an undo: inputs that are run once more, and what they have sent (rules 17 and 18)."""
    replayed: ReplayCounts = msgspec.field(default_factory=ReplayCounts)
    corrects: bool = False
    timers: dict[str, Timer] = {}
    clients: int = 0
    answer_bytes: int = 0
    pending_bytes: int = 0
    letter_bytes: int = 0
    topics: Subs | None = None
    """The agent's subscriptions; None until it has one."""
    keys: Keys | None = None
    """Calls that were made with a key (rule T3); None if there never was one."""
    family: Family | None = None
    """Its parent, children and watchers; None if it never had one."""
    inboxes: Places | None = None
    """Places in the inboxes of other priorities than normal, as far as they are in use (rule T1)."""
    cancels: Cancels | None = None
    """Of messages that have not come yet (rule T4); None if there never was one."""
    waits: Waits | None = None
    """External waits (rule T5); None if there never was one."""

    # No fields, and not there in most ledgers:
    _marks = cast("NamedDigests | None", None)
    """Digests by name, if there are many senders and receivers."""
    open_before = tuple[ReplayInput, ...]()
    """The replays whose turn had begun but not ended."""

    def __post_init__(self) -> None:
        self.clients = sum(peer.is_client for peer in self.peers.values())
        self.answer_bytes = sum(len(answer) for peer in self.peers.values() for answer in peer.answers.values())
        self.pending_bytes = sum(len(out.args) for out in self.unreleased())
        self.letter_bytes = sum(len(letter.args) for letter in self.dead)
        if self.replays:
            self.open_before = tuple(one for one in self.replays.values() if not one.taken)

    def copy(self) -> Ledger:
        self.held.sort()
        for place in (self.inboxes or {}).values():
            place.held.sort()
        return _decode(pack(self))

    # ---- inputs ----------------------------------------------------------------------------------------------

    def place(self, priority: str) -> HasPlace:
        """Of one of the inboxes.  One that was not in use is from now on."""
        if priority == NORMAL:
            return self
        if self.inboxes is None:
            self.inboxes = {}
        return self.inboxes.setdefault(priority, InboxPlace())

    def judge(self, sender: str, n: int, start: int) -> Verdict:
        peer = self.peers.get(sender)
        if peer is None:
            if not is_client(sender):
                return _APPLY if n == 1 else _HOLD if n > 1 else _CLOSED
            expired = start <= self.horizon and (sender, n) not in self.replays
            return Verdict.EXPIRED if expired else _APPLY
        if peer.is_client:
            if n in peer.answers or n < peer.low:
                if self.replays and (sender, n) in self.replays:
                    return _APPLY
                return _REPEAT if n in peer.answers else _CLOSED
            return _APPLY
        if n > peer.mark + 1:
            return _HOLD
        if n == peer.mark + 1:
            return _APPLY
        return _REPEAT if n in peer.answers or n >= peer.low else _CLOSED

    def why_unrun(self, sender: str, message: Message, now: float, has_begun: bool, is_over: bool) -> str:
        """Why the message, which is to take effect now, is taken without a run (rules T2 to T4); "" if its turn begins.

        `now`: the store's time.  `has_begun`: the log has calls of its turn.  `is_over`: it is the oldest of too many.
        After an undo, it runs if it ran before, and does not if it did not.
        """
        replay = self.replays.get((sender, message.n)) if self.replays else None
        if self.cancels is not None and not (replay and replay.taken) and self.cancels.has(sender, message.n):
            return CANCELLED
        if replay is not None or has_begun:
            return replay.unrun if replay is not None else ""
        known = self.keys.judge(message) if self.keys is not None else ""
        return known or (EXPIRED if message.has_expired(now) else FULL if is_over else "")

    def has_taken(self, sender: str, n: int) -> bool:
        """True if the number has taken effect."""
        peer = self.peers.get(sender)
        if peer is None:
            return False
        return n in peer.answers or n < peer.low if peer.is_client else n <= peer.mark

    def answer(self, sender: str, n: int) -> bytes | None:
        """The stored answer of a number that has taken effect; None for a tell."""
        peer = self.peers.get(sender)
        return (peer.answers.get(n) or None) if peer else None

    def take(
        self, sender: str, n: int, low: int, start: int, answer: bytes | None, given_up: Sequence[int] = (),
        keyed: Keyed | None = None,
    ) -> None:  # fmt: skip
        """Number `n` of the sender has taken effect.  Answers below the sender's `low` are dropped.

        Numbers that a client has `given_up` are closed without an answer, unless they have taken effect before.
        """
        peer = self.peers.get(sender)
        if self.cancels is not None:
            # An agent's `low` says whose answers it wants, and the messages below it may still come: they are taken in order.
            lowest = max(low, peer.low if peer is not None else 0)
            self.cancels.taken(sender, n, lowest if is_client(sender) else n + 1)
        if self.replays:
            replay = self.replays.pop((sender, n), None)
            if replay is not None and replay.taken:  # its answer stays as it was, and so does a forgotten session
                if peer is not None and peer.is_client:
                    self._close_given_up(sender, peer, given_up)
                elif peer is not None:
                    peer.mark = n
                    self._changed(sender)
                return
        if keyed is not None:
            self.keys = Keys.with_one(self.keys, keyed)
        if peer is None:
            peer = self.peers[sender] = Peer(is_client(sender), 0, 0, start if is_client(sender) else 0)
            self.clients += peer.is_client
        if not peer.is_client:
            peer.mark = n
        if answer is not None or peer.is_client:
            if sender != next(reversed(self.peers)):  # to the end: quiet for longest comes first
                self.peers[sender] = self.peers.pop(sender)
            peer.answers[n] = answer or b""
            if answer is not None:
                self.answer_bytes += len(answer)
        if given_up:
            self._close_given_up(sender, peer, given_up)
        if low > peer.low:
            self.answer_bytes -= peer.raise_low(low)
        if self._marks is not None or len(self.peers) > FLAT_MAX:
            self._changed(sender)
        if self.answer_bytes > ANSWERS_BYTES_MAX:
            make_room(self, self._changed)

    def _close_given_up(self, sender: str, peer: Peer, given_up: Sequence[int]) -> None:
        for number in given_up:
            if number >= peer.low and number not in peer.answers and (sender, number) not in self.replays:
                peer.answers[number] = b""
                self._changed(sender)

    def excess(self) -> list[str]:
        """The client sessions above the limit, quiet for longest first."""
        if self.clients <= SESSIONS_MAX:
            return []
        return [s for s, peer in self.peers.items() if peer.is_client][: self.clients - SESSIONS_MAX]

    def forget(self, sessions: list[str]) -> None:
        for session in sessions:
            peer = self.peers.pop(session, None)
            if self.cancels is not None:
                self.cancels.kept.pop(session, None)
            if peer is not None:
                self.answer_bytes -= sum(map(len, peer.answers.values()))
                self._changed(session)
                self.clients -= 1
                self.horizon = max(self.horizon, peer.start)

    def bury(self, letter: DeadLetter) -> None:
        self.dead.append(letter)
        self.letter_bytes += len(letter.args)
        if self.family is not None:
            self.family.letters += 1
        while len(self.dead) > DEAD_LETTERS_MAX or (self.letter_bytes > LETTERS_BYTES_MAX and len(self.dead) > 1):
            self.letter_bytes -= len(self.dead.pop(0).args)

    def clear(self, letters: list[LetterKey]) -> None:
        gone = set(letters)
        self.dead = [letter for letter in self.dead if letter.key not in gone]
        self.letter_bytes = sum(len(letter.args) for letter in self.dead)

    def undo(
        self, cursor: int, held: list[int], marks: dict[str, int], unburied: list[LetterKey], timers: list[Timer],
        replays: list[ReplayInput], corrects: bool, subs: list[Sub] | None, inboxes: Places | None = None, waits: Waits | None = None,
    ) -> None:  # fmt: skip
        """Goes back to the inputs taken at an earlier record.  Messages sent and answers given since stay (rules 16 and 17)."""
        self.cursor, self.held = cursor, sorted(held)
        self.inboxes = copied(inboxes) if inboxes else None
        for sender, mark in marks.items():
            self.peers[sender].mark = mark
            self._changed(sender)
        self.clear(unburied)
        self.timers = {timer.id: timer for timer in timers}
        self.replays = {(one.sender, one.n): one for one in replays}
        self.open_before = tuple(one for one in replays if not one.taken)
        self.corrects, self.replayed = corrects, ReplayCounts()
        if subs is not None:
            self.topics = Subs({sub.key: sub.copy() for sub in subs})
        self.waits = None if waits is None else waits.copy()
        self.tidy_topics()

    # ---- topics ----------------------------------------------------------------------------------------------

    def subscriptions(self) -> Subs:
        """Made if there are none yet."""
        if self.topics is None:
            self.topics = Subs()
        return self.topics

    def tidy_topics(self) -> None:
        """After each commit: once all inputs are taken again after an undo, what was not subscribed again is over."""
        if self.topics is not None and not self.replays:
            self.topics.replayed()

    def change(self, change: TopicChange | FamilyChange | WaitChange) -> None:
        if isinstance(change, (Took, Subscribed, Unsubscribed)):
            self.subscriptions().apply(change)
        elif isinstance(change, WAIT_CHANGES):
            self.waits = self.waits or Waits()
            self.waits.apply(change)
        else:
            self.family = self.family or Family()
            self.family.apply(change)

    def learn(self, calls: made.Calls) -> None:
        """Takes what steps of a turn say about children."""
        self.family = made.learn(self.family, calls)

    # ---- outputs ---------------------------------------------------------------------------------------------

    def next_number(self, to: str) -> int:
        return self.numbers.get(to, 0) + 1

    def send(self, out: Out) -> None:
        self.numbers[out.to] = out.n
        self.pending.setdefault(out.to, {})[out.n] = out
        self.pending_bytes += len(out.args)
        if self._marks is not None or len(self.numbers) > FLAT_MAX:
            self._changed(_TO + out.to)

    def release(self, to: str, n: int) -> None:
        """Every output to `to` up to `n` is stored in its inbox, and the log says so."""
        if n <= self.released.get(to, 0):
            return
        self.released[to] = n
        if self._marks is not None:
            self._changed(_TO + to)
        waiting = self.pending.get(to)
        if waiting is not None:
            for k in [k for k in waiting if k <= n]:
                self.pending_bytes -= len(waiting.pop(k).args)
            if not waiting:
                del self.pending[to]

    def unreleased(self) -> list[Out]:
        return [out for waiting in self.pending.values() for out in waiting.values()]

    # ---- size and digest -------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """Roughly the bytes that the ledger adds to snapshots and to a move."""
        names = len(self.peers) + len(self.numbers)
        parts = sum(part.size_bytes for part in (self.keys, self.family, self.waits) if part is not None)
        return self.answer_bytes + self.pending_bytes + self.letter_bytes + parts + PEER_BYTES * names

    def _changed(self, name: str) -> None:
        """Notes that a name changed.  If there are many, some are hashed at each change, so that no seal hashes them all."""
        if self._marks is None and len(self.peers) + len(self.numbers) <= FLAT_MAX:
            return
        marks = self._named()
        marks.changed(name)
        if marks.behind > FLAT_MAX:
            marks.some(HASHED_AT_ONCE)

    def _named(self) -> NamedDigests:
        if self._marks is None:
            self._marks = NamedDigests(self._content, [*self.peers, *(_TO + to for to in self.numbers)])
        return self._marks

    def _content(self, name: str) -> bytes | None:
        if name.startswith(_TO):
            to = name[1:]
            return b"%d %d" % (self.numbers[to], self.released.get(to, 0)) if to in self.numbers else None
        peer = self.peers.get(name)
        return pack(peer.content(name)) if peer is not None else None

    def hash_some(self, limit: int) -> bool:
        """Ahead of a seal, in slices; True if there is more to hash."""
        return self._marks is not None and self._marks.some(limit)

    def digest(self) -> bytes:
        """Depends on the contents of the ledger alone, not on their history."""
        if len(self.peers) + len(self.numbers) <= FLAT_MAX:
            peers = [peer.content(name) for name, peer in sorted(self.peers.items())]
            return self._digest((peers, sorted(self.numbers.items()), sorted(self.released.items())))
        return self._digest(self._named().root())

    def _digest(self, names: object) -> bytes:
        return blake3(pack((self.cursor, sorted(self.held), names, rest_of(self)))).digest()

    # ---- as a whole ------------------------------------------------------------------------------------------

    def apply(self, commit: Commit) -> None:
        """A reader's step: all that the commit says about inputs and outputs."""
        for sender, n in commit.cancels:  # before their messages, which may be in the same commit
            self.cancels = Cancels.with_one(self.cancels, sender, n)
        for one in commit.inputs:
            self.take(one.sender, one.n, one.low, one.start, one.answer, one.given_up, one.kept)
        self.cursor = commit.cursor
        if commit.held is not None:
            self.held = sorted(commit.held)
        if commit.inboxes:
            self.inboxes = {**(self.inboxes or {}), **copied(commit.inboxes)}
        if commit.keys_dropped and self.keys is not None:
            self.keys.drop(commit.keys_dropped)
        for letter in commit.dead:
            self.bury(letter)
        self.forget(commit.forgot)
        for out in commit.outs:
            self.send(out)
        for to, n in commit.released.items():
            self.release(to, n)
        if commit.replayed is not None:
            self.replayed.add(commit.replayed)
        for timer in commit.timers:
            self.timers[timer.id] = timer
        for name in commit.gone:
            self.timers.pop(name, None)
        for ended in commit.ended:
            self.learn(ended.calls)
        for change in commit.changes:
            self.change(change)
        self.tidy_topics()


_decode = msgspec.msgpack.Decoder(Ledger).decode


__all__ = ["Ledger", "Peer", "Verdict"]
