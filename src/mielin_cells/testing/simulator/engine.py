"""What the world and its views share: the true store, chance, virtual time, and the record of what happened.

All chance comes from one seed and all waiting is virtual, so a seed is a story that can be told again: `Engine.digest` is the same
for the same seed.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from random import Random
from typing import Any, TypeAlias

from blake3 import blake3

from mielin_cells.errors import CellError, never
from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.checkers.history import Author, History
from mielin_cells.testing.checkers.outside.stream import ForeignStream
from mielin_cells.testing.simulator.environment import CHANCES, INDEX_FILLS_S, REFUSALS, Faults, make_refusal
from mielin_cells.testing.simulator.loop import VirtualLoop
from mielin_cells.testing.simulator.store import Store

OnAppend: TypeAlias = Callable[[str, Entry, Author], None]
OnPublish: TypeAlias = Callable[[str, bytes, Author], None]
OnHarm: TypeAlias = Callable[[str, Author | None], None]

AFTERMATH_S = 10.0
"""After a crash or a cut others still wait, try again, or look for the process."""


class Engine:
    """Base of `World`, as views see it.  Made inside a running `VirtualLoop`."""

    def __init__(
        self, seed: int = 0, faults: Faults | None = None, *, budget: int = 1_000_000, records: bool = True
    ) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            raise never("a World lives in virtual time: use testing.loop.run does not hold")
        self.loop = loop
        self.seed = seed
        self.records = records
        """Whether what happens is noted, for `digest` and for checkers of histories: it takes time and memory."""
        self.budget = budget
        """Faults left; when it is used up nothing fails any more."""
        self.rng = Random(f"world {seed}")
        self._dice = {name: Random(f"{name} {seed}") for name in CHANCES}
        """One for each fault, so that a world without one of them is otherwise much the same."""
        self.use(faults if faults is not None else Faults())
        self.store = Store()
        self._index_anew_at = -INDEX_FILLS_S
        self.history = History(loop.time, seed)
        self.counts = self.history.faults
        """Faults that happened, by kind."""
        self.troubled_until = 0.0
        """Until about when faults of processes and links have consequences."""
        self.calls = 0
        self.pending = 0
        """Effects that are late and still to come."""
        self.foreign: ForeignStream | None = None
        """A stream that another system writes, in some worlds."""
        self.power = 0
        """How often the power was cut: an append that was sent before never reaches the store."""
        self.refuses: tuple[str, float] = ("", 0.0)
        """How the store refuses everybody, and until when."""
        self.torn: set[bytes] = set()
        """Damaged bytes that reads returned instead of the stored ones."""
        self.errors: dict[int, CellError] = {}
        """Errors that refusals have raised, by `id`."""
        self.links: dict[tuple[str, str], float] = {}
        """(from, to): until when the second name hears nothing of the first over the wire."""
        self.trace: list[str] = []
        self.landed: list[tuple[float, int, int]] = []
        """When the store reached which sequence, and how many changes it had seen by then."""
        self._digest = blake3()
        self._observers: list[OnAppend] = []
        self._listeners: list[OnPublish] = []
        self._witnesses: list[OnHarm] = []
        self._context = contextvars.copy_context()

    def use(self, faults: Faults) -> None:
        self.faults = faults
        self._chances = faults.chances()

    # ---- chance and time -------------------------------------------------------------------------------------

    def happens(self, kind: str, view: Author | None = None) -> bool:
        """Draws whether the fault happens now, and counts it."""
        chance = self._chances.get(kind)
        if chance is None or self._dice[kind].random() >= chance or self.budget <= 0:
            return False
        self.budget -= 1
        self.harmed(kind, view)
        return True

    def harmed(self, kind: str, view: Author | None, seconds: float = 0.0) -> float:
        """Counts a fault that `view` suffers for `seconds`, and calls the witnesses; when the fault is over."""
        self.counts[kind] += 1
        if kind not in CHANCES:
            self.troubled_for(seconds + AFTERMATH_S)
        for witness in self._witnesses:
            witness(kind, view)
        return self.loop.time() + seconds

    def troubled_for(self, seconds: float) -> None:
        self.troubled_until = max(self.troubled_until, self.loop.time() + seconds)

    def delay(self, view: Author | None = None) -> float:
        """One way between a process and the store, or between two processes."""
        longest = self.faults.slow_s if self.happens("slow", view) else self.faults.delay_s
        return longest * (0.1 + 0.9 * self.rng.random())

    def late(self) -> float:
        return self.faults.late_s * self.rng.random()

    def later(self, seconds: float, callback: Callable[..., None], *args: Any) -> None:
        """Calls back as the world itself, which no crash or pause stops."""
        self.loop.call_later(seconds, callback, *args, context=self._context)

    def belated(self, seconds: float, callback: Callable[..., None], *args: Any) -> None:
        """As `later`, for an effect that nobody waits for any more: `pending` counts it."""
        self.pending += 1
        self.later(seconds, self._belated, callback, args)

    def _belated(self, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.pending -= 1
        callback(*args)

    def refusal(self, refuses: tuple[str, float], view: Author, what: str, subject: str) -> CellError | None:
        """What a call of the store raises now, if it is refused.  `refuses`: how this process is, and until when."""
        now = self.loop.time()
        for how, until in (refuses, self.refuses):
            if now < until and what in REFUSALS[how].calls:
                break
        else:
            if not self.happens("refused", view):
                return None
            how = self.rng.choice([how for how, refusal in REFUSALS.items() if what in refusal.calls])
        error = make_refusal(how, what, subject)
        self.errors[id(error)] = error
        return error

    # ---- what happened ---------------------------------------------------------------------------------------

    def on_append(self, observer: OnAppend) -> None:
        """Calls `observer(subject, entry, author)` at the instant an entry lands, before any process can know of it."""
        self._observers.append(observer)

    def on_publish(self, listener: OnPublish) -> None:
        """Calls `listener(subject, data, author)` when a process publishes a message, whether it arrives or not."""
        self._listeners.append(listener)

    def on_harm(self, witness: OnHarm) -> None:
        """Calls `witness(kind, view)` at the instant a fault happens."""
        self._witnesses.append(witness)

    def was_published(self, subject: str, data: bytes, author: Author) -> None:
        for listener in self._listeners:
            listener(subject, data, author)

    def has_landed(self, subject: str, entry: Entry, author: Author) -> None:
        self.landed.append((self.loop.time(), entry.seq, len(self.store.changes)))
        if self.records:
            self.note(f"append {subject} {entry.seq} {author.label} {blake3(entry.data).hexdigest(8)}")
        for observer in self._observers:
            observer(subject, entry, author)

    def known_before(self, seconds: float) -> int:
        """The store's sequence as of `seconds` ago."""
        horizon = self.loop.time() - seconds
        for at, seq, _ in reversed(self.landed):
            if at <= horizon:
                return seq
        return 0

    def remake_index(self) -> None:
        """Makes the index of owners anew: what it had lost comes back, and former owners too, but not at once."""
        self.store.lost.clear()
        self._index_anew_at = self.loop.time()

    @property
    def index_fills_s(self) -> float:
        """For how long yet the index of owners is partial."""
        return max(0.0, self._index_anew_at + INDEX_FILLS_S - self.loop.time())

    def note(self, line: str) -> None:
        if not self.records:
            return
        line = f"{self.loop.time():.6f} {line}"
        self.trace.append(line)
        self._digest.update(line.encode())

    def digest(self) -> str:
        """A hash of everything noted so far."""
        return self._digest.hexdigest()
