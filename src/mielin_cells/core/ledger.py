"""Who has sent what to the agent and what the agent has sent: the bookkeeping of exactly-once, as one agent's log tells it.

Owner and reader change a ledger by the same methods: the owner turn by turn, a reader commit by commit (`apply`), so both
hold the same.  Rules 10, 11, 14, 15 and 18 of the protocol live here.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from mielin_cells.core.message import is_client
from mielin_cells.core.records import (
    Again,
    Commit,
    DeadLetter,
    LedgerImage,
    LetterKey,
    Out,
    PeerImage,
    Replayed,
    Taken,
    Timer,
    Undone,
)
from mielin_cells.core.settings import DEAD_LETTERS_MAX, SESSIONS_MAX


class Verdict(Enum):
    """What to do with a message that has arrived."""

    APPLY = "apply"
    REPEAT = "repeat"
    """It has taken effect: answer from the stored reply, run nothing."""
    HOLD = "hold"
    """An earlier number of this sender is still missing."""
    CLOSED = "closed"
    """The sender itself has closed this number: `AnswerExpired`."""
    EXPIRED = "expired"
    """Of a session that was forgotten, as far as anybody can tell now: `SessionExpired`."""


_APPLY, _HOLD, _REPEAT, _CLOSED = Verdict.APPLY, Verdict.HOLD, Verdict.REPEAT, Verdict.CLOSED
"""Reading a member of an enumeration costs as much as all else that is looked at for most messages."""


class Peer:
    """One sender.  For an agent `mark` is the highest number applied; a client's numbers are remembered one by one."""

    __slots__ = ("answers", "is_client", "low", "mark", "start")

    def __init__(
        self, is_client: bool, mark: int = 0, low: int = 0, start: int = 0, answers: dict[int, bytes] | None = None
    ) -> None:
        self.is_client = is_client
        self.mark = mark
        self.low = low
        self.start = start
        self.answers: dict[int, bytes] = {} if answers is None else answers


class Ledger:
    __slots__ = (
        "_latest", "_was_open", "again", "clients", "corrects", "cursor", "dead", "held", "horizon", "numbers", "peers", "pending",
        "released", "replayed", "timers",
    )  # fmt: skip

    def __init__(self) -> None:
        self.cursor = 0
        self.held: list[int] = []
        self.peers: dict[str, Peer] = {}
        self.clients = 0
        self._latest = ""
        """The client that took something last, so the last of the clients in `peers`."""
        self.numbers: dict[str, int] = {}
        self.released: dict[str, int] = {}
        self.pending: dict[str, dict[int, Out]] = {}
        self.dead: list[DeadLetter] = []
        self.horizon = 0
        """Every session that was forgotten began when the log ended here, or before (rule 15)."""
        self.timers: dict[str, Timer] = {}
        self.again: dict[tuple[str, int], Again] = {}
        """After an undo: inputs that are to be run once more, and what they have sent (rule 17)."""
        self._was_open: list[Again] = []
        """Those whose turn had begun and not ended."""
        self.corrects = False
        self.replayed = Replayed()

    # ---- inputs ----------------------------------------------------------------------------------------------

    def judge(self, sender: str, n: int, start: int) -> Verdict:
        peer = self.peers.get(sender)
        if peer is None:
            if not is_client(sender):
                return _APPLY if n == 1 else _HOLD if n > 1 else _CLOSED
            expired = start <= self.horizon and (sender, n) not in self.again
            return Verdict.EXPIRED if expired else _APPLY
        if peer.is_client:
            if n in peer.answers or n < peer.low:
                if self.again and (sender, n) in self.again:
                    return _APPLY
                return _REPEAT if n in peer.answers else _CLOSED
            return _APPLY
        if n > peer.mark + 1:
            return _HOLD
        if n == peer.mark + 1:
            return _APPLY
        return _REPEAT if n in peer.answers or n >= peer.low else _CLOSED

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

    def take(self, sender: str, n: int, low: int, start: int, answer: bytes | None) -> None:
        """Number `n` of the sender has taken effect.  Answers below the sender's `low` are dropped."""
        peer = self.peers.get(sender)
        if self.again:
            again = self.again.pop((sender, n), None)
            if (
                again is not None and again.taken
            ):  # its answer stays as it was, and so does a session that was forgotten
                if peer is not None and not peer.is_client:
                    peer.mark = n
                return
        if peer is None:
            peer = self.peers[sender] = Peer(is_client(sender), 0, 0, start if is_client(sender) else 0)
            self.clients += peer.is_client
        if peer.is_client:
            if sender != self._latest:  # to the end: quiet for longest comes first
                self.peers[sender] = self.peers.pop(sender)
                self._latest = sender
            peer.answers[n] = answer or b""
        else:
            peer.mark = n
            if answer is not None:
                peer.answers[n] = answer
        if low > peer.low:
            peer.low = low
            if peer.answers:
                for old in [k for k in peer.answers if k < low]:
                    del peer.answers[old]

    def excess(self) -> list[str]:
        """The client sessions that are too many, quiet for longest first."""
        if self.clients <= SESSIONS_MAX:
            return []
        return [s for s, peer in self.peers.items() if peer.is_client][: self.clients - SESSIONS_MAX]

    def forget(self, sessions: list[str]) -> None:
        for session in sessions:
            peer = self.peers.pop(session, None)
            if peer is not None:
                self._latest = ""
                self.clients -= 1
                self.horizon = max(self.horizon, peer.start)

    def bury(self, letter: DeadLetter) -> None:
        self.dead.append(letter)
        del self.dead[:-DEAD_LETTERS_MAX]

    def clear(self, letters: list[LetterKey]) -> None:
        gone = set(letters)
        self.dead = [letter for letter in self.dead if letter.key not in gone]

    def undo(self, record: Undone) -> None:
        """Back to what had been taken at an earlier record.  What was sent and answered since stays (rules 16 and 17)."""
        self.cursor, self.held = record.cursor, list(record.held)
        for sender, mark in record.marks.items():
            self.peers[sender].mark = mark
        self.clear(record.unburied)
        self.timers = {timer.id: timer for timer in record.timers}
        self.again = {(one.sender, one.n): one for one in record.again}
        self.corrects, self.replayed = record.corrects, Replayed()
        self._was_open = [one for one in record.again if not one.taken]

    def unanswered(self, to: str) -> int | None:
        """The lowest ask to `to` that has no outcome and whose turn is to be run once more: its answer is still wanted."""
        asks = [
            sent.n
            for one in self._was_open
            if (one.sender, one.n) in self.again
            for sent in one.sent
            if sent.ask and sent.to == to and sent.answer is None
        ]
        return min(asks, default=None)

    # ---- outputs ---------------------------------------------------------------------------------------------

    def next_number(self, to: str) -> int:
        return self.numbers.get(to, 0) + 1

    def send(self, out: Out) -> None:
        self.numbers[out.to] = out.n
        self.pending.setdefault(out.to, {})[out.n] = out

    def release(self, to: str, n: int) -> None:
        """Every output to `to` up to `n` is stored in its inbox, and the log says so."""
        if n <= self.released.get(to, 0):
            return
        self.released[to] = n
        waiting = self.pending.get(to)
        if waiting is not None:
            for k in [k for k in waiting if k <= n]:
                del waiting[k]
            if not waiting:
                del self.pending[to]

    def unreleased(self) -> list[Out]:
        return [out for waiting in self.pending.values() for out in waiting.values()]

    # ---- as a whole ------------------------------------------------------------------------------------------

    def apply(self, commit: Commit) -> None:
        """A reader's step: all that the commit says about inputs and outputs."""
        for taken in commit.taken:
            self.take(taken.sender, taken.n, taken.low, taken.start, taken.answer)
        self.cursor = commit.cursor
        if commit.held is not None:
            self.held = list(commit.held)
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

    def image(self) -> LedgerImage:
        peers = {s: PeerImage(p.mark, p.low, p.start, dict(p.answers)) for s, p in self.peers.items()}
        pending = sorted(self.unreleased(), key=lambda out: (out.to, out.n))
        return LedgerImage(
            self.cursor, sorted(self.held), peers, dict(self.numbers), dict(self.released), pending, list(self.dead),
            self.horizon, list(self.again.values()), msgspec.structs.replace(self.replayed), self.corrects,
            list(self.timers.values()),
        )  # fmt: skip

    @classmethod
    def of(cls, image: LedgerImage) -> Ledger:
        ledger = cls()
        ledger.cursor, ledger.held = image.cursor, list(image.held)
        ledger.peers = {s: Peer(is_client(s), p.mark, p.low, p.start, dict(p.answers)) for s, p in image.peers.items()}
        ledger.clients = sum(peer.is_client for peer in ledger.peers.values())
        ledger.numbers, ledger.released = dict(image.numbers), dict(image.released)
        for out in image.pending:
            ledger.pending.setdefault(out.to, {})[out.n] = out
        ledger.dead, ledger.horizon = list(image.dead), image.horizon
        ledger.again = {(one.sender, one.n): one for one in image.again}
        ledger._was_open = [one for one in image.again if not one.taken]
        ledger.timers = {timer.id: timer for timer in image.timers}
        ledger.corrects, ledger.replayed = image.corrects, msgspec.structs.replace(image.replayed)
        return ledger


__all__ = ["Ledger", "Peer", "Taken", "Verdict"]
