"""A world for production code to fail in: one true store, and a faulty view of it for every process.

All chance comes from one seed and all waiting is virtual, so a seed is a story that can be told again: `World.digest`
is the same for the same seed.  What may go wrong, and how often, is a `Faults`; what did is counted in `World.counts`.

The faults are those that the ports permit, and a few more that brokers show: an answer is lost after the append landed;
an append lands seconds after its `Unknown`, or never; a conflict is reported though nothing moved; a read misses the
newest; a trim is late, lost or repeated; messages are dropped, repeated, reordered; a view loses wire or store.
Not simulated: damaged bytes, stores that forget what they acknowledged, clocks that run at different speeds.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any, TypeAlias

from blake3 import blake3

from mielin_cells.substrate.ports import Entry
from mielin_cells.testing.loop import Process, VirtualLoop
from mielin_cells.testing.store import Store
from mielin_cells.testing.view import View

OnAppend: TypeAlias = Callable[[str, Entry, View], None]
OnPublish: TypeAlias = Callable[[str, bytes, View], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How likely each fault is, per call or message; times are virtual seconds."""

    append_lost: float = 0.0
    """It landed, the caller hears Unknown."""
    append_late: float = 0.0
    """The caller hears Unknown; it lands up to `late_s` later."""
    append_never: float = 0.0
    """The caller hears Unknown; it does not land."""
    append_busy: float = 0.0
    """`StoreBusy`: it does not land, for certain."""
    false_conflict: float = 0.0
    """A conditional append is refused though nothing is in its way."""
    read_stale: float = 0.0
    """What landed in the last `stale_s` is missing."""
    read_fails: float = 0.0
    """`StoreUnreachable` from a call that only reads."""
    trim_lost: float = 0.0
    trim_late: float = 0.0
    """The trim takes effect up to `late_s` later, and then again."""
    wire_drop: float = 0.0
    wire_repeat: float = 0.0
    wire_late: float = 0.0
    slow: float = 0.0
    """A step takes up to `slow_s` instead of `delay_s`."""
    delay_s: float = 0.003
    slow_s: float = 0.3
    late_s: float = 5.0
    stale_s: float = 0.5
    timeout_s: float = 1.0
    """How long a store takes to say Unknown, at most."""

    @classmethod
    def drawn(cls, rng: Random, most: float = 0.12) -> Faults:
        """An environment: each fault is off in half of them, so that no fault always hides another."""
        chances = {f.name: rng.random() * most for f in fields(cls) if f.default == 0.0 and rng.random() < 0.5}
        return cls(**chances, delay_s=rng.choice((0.001, 0.003, 0.02)), late_s=rng.choice((0.5, 5.0, 15.0)))

    def healed(self) -> Faults:
        """The same speed, without faults."""
        return replace(self, **{f.name: 0.0 for f in fields(self) if f.default == 0.0})


class World:
    """Made inside a running `VirtualLoop`.  `connect` gives a process its view; `crash`, `pause` and `cut` harm it."""

    def __init__(self, seed: int = 0, faults: Faults | None = None, *, budget: int = 1_000_000) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop), "a World lives in virtual time: use testing.loop.run"
        self.loop = loop
        self.seed = seed
        self.faults = faults if faults is not None else Faults()
        self.budget = budget
        """Faults left; when it is used up nothing fails any more."""
        self.rng = Random(f"world {seed}")
        self.store = Store()
        self.views: dict[str, View] = {}
        """The newest incarnation of each name."""
        self.counts: Counter[str] = Counter()
        """Faults that happened, by kind."""
        self.calls = 0
        self.trace: list[str] = []
        self.landed: list[tuple[float, int]] = []
        """When the store reached which sequence, for reads of the past."""
        self._digest = blake3()
        self._observers: list[OnAppend] = []
        self._listeners: list[OnPublish] = []
        self._context = contextvars.copy_context()

    # ---- processes -------------------------------------------------------------------------------------------

    def connect(self, name: str) -> View:
        """A view for a new incarnation of `name`, with a `process` to run its code in.  The one before is crashed."""
        before = self.views.get(name)
        if before is not None:
            self.crash(name)
        number = before.number + 1 if before is not None else 1
        view = View(self, name, number, Process(self.loop, f"{name}#{number}"))
        self.views[name] = view
        self.note(f"connect {view.label}")
        return view

    def crash(self, name: str) -> None:
        """As `kill -9`: the incarnation takes no further step, its tails and subscriptions end.

        What it had sent may still land, now or later, or never.  A call on the dead view, by whomever, hangs for ever.
        """
        view = self.views[name]
        if view.process.is_dead:
            return
        self.note(f"crash {view.label}")
        self.counts["crash"] += 1
        view.process.kill()
        view.hang_up()

    def pause(self, name: str, seconds: float) -> None:
        """As SIGSTOP: no step, timer or delivery of it until `seconds` have passed; then all that are due, in order.

        Appends that it had sent land meanwhile.
        """
        view = self.views[name]
        if view.process.is_dead or view.process.is_paused:
            return
        self.note(f"pause {view.label} {seconds:.3f}")
        self.counts["pause"] += 1
        view.process.pause()
        self.later(seconds, self._resume, view)

    def _resume(self, view: View) -> None:
        if view.process.is_paused:
            self.note(f"resume {view.label}")
            view.process.resume()

    def cut(self, name: str, seconds: float, *, store: bool = False) -> None:
        """The view has no wire for `seconds`: messages from and to it are lost.  With `store`, no store either."""
        view = self.views[name]
        self.note(f"cut {view.label} {seconds:.3f} store={store}")
        self.counts["cut"] += 1
        view.no_wire_until = max(view.no_wire_until, self.loop.time() + seconds)
        if store:
            view.no_store_until = max(view.no_store_until, self.loop.time() + seconds)

    def heal(self) -> None:
        """No further faults; who is paused or cut off goes on.  What is late still lands, within `late_s`."""
        self.note("heal")
        self.faults = self.faults.healed()
        for view in self.views.values():
            self._resume(view)
            view.no_wire_until = view.no_store_until = 0.0

    # ---- chance and time -------------------------------------------------------------------------------------

    def happens(self, kind: str) -> bool:
        """Draws whether the fault happens now, and counts it."""
        chance: float = getattr(self.faults, kind)
        if chance <= 0 or self.rng.random() >= chance or self.budget <= 0:
            return False
        self.budget -= 1
        self.counts[kind] += 1
        return True

    def delay(self) -> float:
        """One way between a process and the store, or between two processes."""
        longest = self.faults.slow_s if self.happens("slow") else self.faults.delay_s
        return longest * (0.1 + 0.9 * self.rng.random())

    def late(self) -> float:
        return self.faults.late_s * self.rng.random()

    def later(self, seconds: float, callback: Callable[..., None], *args: Any) -> None:
        """Calls back as the world itself, which no crash or pause stops."""
        self.loop.call_later(seconds, callback, *args, context=self._context)

    # ---- what happened ---------------------------------------------------------------------------------------

    def on_append(self, observer: OnAppend) -> None:
        """Calls `observer(subject, entry, author)` at the instant an entry lands, before anybody can know of it."""
        self._observers.append(observer)

    def on_publish(self, listener: OnPublish) -> None:
        """Calls `listener(subject, data, author)` when a message is given to the wire, whether it arrives or not."""
        self._listeners.append(listener)

    def was_published(self, subject: str, data: bytes, author: View) -> None:
        for listener in self._listeners:
            listener(subject, data, author)

    def has_landed(self, subject: str, entry: Entry, author: View) -> None:
        self.landed.append((self.loop.time(), entry.seq))
        self.note(f"append {subject} {entry.seq} {author.label} {blake3(entry.data).hexdigest(8)}")
        for observer in self._observers:
            observer(subject, entry, author)

    def known_before(self, seconds: float) -> int:
        """The store's sequence as of `seconds` ago."""
        horizon = self.loop.time() - seconds
        for at, seq in reversed(self.landed):
            if at <= horizon:
                return seq
        return 0

    def note(self, line: str) -> None:
        line = f"{self.loop.time():.6f} {line}"
        self.trace.append(line)
        self._digest.update(line.encode())

    def digest(self) -> str:
        """Of everything noted so far."""
        return self._digest.hexdigest()
