"""A world for production code to fail in: one true store, and a faulty view of it for every process.

All chance comes from one seed and all waiting is virtual, so a seed is a story that can be told again: `World.digest`
is the same for the same seed.  What may go wrong, and how often, is a `Faults`; what did is counted in `World.counts`.

The faults are those that the ports permit, and a few more that brokers show: an answer is lost after the append landed;
an append lands seconds after its `Unknown`, or never; a conflict is reported though nothing moved; a read misses the
newest, or brings damaged bytes; a trim is late, lost or repeated; messages are dropped, repeated, reordered.  Processes crash
between any two calls, pause, slow down, lose wire or store in one direction or both, and have clocks that jump.
Not simulated: bytes that are damaged where they are stored, and clocks that run at different speeds.
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

from mielin_cells.errors import CellError, never
from mielin_cells.substrate.ports import STALE_S, Entry
from mielin_cells.testing.simulator.loop import Process, VirtualLoop
from mielin_cells.testing.simulator.refusals import REFUSALS, refused
from mielin_cells.testing.simulator.register import Operation
from mielin_cells.testing.simulator.store import Store
from mielin_cells.testing.simulator.view import Tail, View, Wired

OnAppend: TypeAlias = Callable[[str, Entry, View], None]
OnPublish: TypeAlias = Callable[[str, bytes, View], None]
OnHarm: TypeAlias = Callable[[str, View | None], None]
OnCall: TypeAlias = Callable[[View, str, str], str]


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
    last_stale: float = 0.0
    """The same, of `last`: a leader that was cut off answers, and what landed in the last `cut_off_s` is missing."""
    tail_late: float = 0.0
    """An entry is shown up to `stale_s` later."""
    read_fails: float = 0.0
    """`StoreUnreachable` from a call that only reads."""
    read_torn: float = 0.0
    """The last entry that a read brings is cut short, or has a bit changed.  What is stored is right."""
    look_torn: float = 0.0
    """The same, of `last`, `settled`, `lasts` and tails, whichever of their entries it is."""
    refused: float = 0.0
    """A call of the store raises what no retry mends (`testing.refusals`), and the next one does not."""
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
    cut_off_s: float = 3.0
    timeout_s: float = 1.0
    """How long a store takes to say Unknown, at most."""

    @classmethod
    def drawn(cls, rng: Random, most: float = 0.12) -> Faults:
        """An environment: each fault is off in half of them, so that no fault always hides another."""
        chances = {
            f.name: rng.random() * most for f in fields(cls)
            if f.default == 0.0 and f.name not in WIDER and rng.random() < 0.5
        }  # fmt: skip
        return cls(**chances, delay_s=rng.choice((0.001, 0.003, 0.02)), late_s=rng.choice((0.5, 5.0, 15.0)))

    def wider(self, rng: Random, most: float = 0.12) -> Faults:
        """With more kinds of faults, drawn apart: so that what a seed has told without them it tells again."""
        chances = {name: rng.random() * most for name in WIDER if rng.random() < 0.5}
        return replace(self, **chances, cut_off_s=rng.choice((0.5, 3.0, STALE_S)))

    def without(self, *names: str) -> Faults:
        """The same environment with some of its faults off."""
        return replace(self, **dict.fromkeys(names, 0.0))

    def healed(self) -> Faults:
        """The same speed, without faults."""
        return self.without(*CHANCES)

    def chances(self) -> dict[str, float]:
        return {name: chance for name in CHANCES if (chance := getattr(self, name)) > 0}


WIDER = ("last_stale", "tail_late", "look_torn", "refused")
"""Of them, those that came later than the others."""

CHANCES = tuple(f.name for f in fields(Faults) if f.default == 0.0)
"""Names of the faults that are drawn per call or message."""


AFTERMATH_S = 10.0
"""After a crash or a cut others still wait, try again, or look for the process."""


class World:
    """Made inside a running `VirtualLoop`.  `connect` gives a process its view; `crash`, `pause`, `cut`, ... harm it."""

    def __init__(self, seed: int = 0, faults: Faults | None = None, *, budget: int = 1_000_000) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            raise never("a World lives in virtual time: use testing.loop.run does not hold")
        self.loop = loop
        self.seed = seed
        self.budget = budget
        """Faults left; when it is used up nothing fails any more."""
        self.rng = Random(f"world {seed}")
        self._dice = {name: Random(f"{name} {seed}") for name in CHANCES}
        """One for each fault, so that a world without one of them is else much the same."""
        self.use(faults if faults is not None else Faults())
        self.store = Store()
        self.views: dict[str, View] = {}
        """The newest incarnation of each name."""
        self.counts: Counter[str] = Counter()
        """Faults that happened, by kind."""
        self.troubled_until = 0.0
        """What was done to processes and links has its consequences until then, about."""
        self.calls = 0
        self.pending = 0
        """What is late and still to come."""
        self.power = 0
        """How often it was cut: what is on its way to the store then never comes there."""
        self.refuses: tuple[str, float] = ("", 0.0)
        """How the store refuses everybody, and until when."""
        self.torn: set[bytes] = set()
        """What reads have brought instead of what is stored."""
        self.errors: dict[int, CellError] = {}
        """Those that refusals have raised, by `id`."""
        self.clocks: Counter[str] = Counter()
        """By name, by how many seconds its wall clock is wrong."""
        self.clock_error_max = 0
        """By how many seconds one ever was."""
        self.links: dict[tuple[str, str], float] = {}
        """Which name hears nothing of which, over the wire, until when: (from, to)."""
        self.on_call: OnCall | None = None
        """Asked at each call of the substrate what is to become of it; see `View`."""
        self.tails: dict[str, dict[Tail, None]] = {}
        self.subscriptions: dict[str, dict[Wired, None]] = {}
        self.servers: dict[str, dict[Wired, None]] = {}
        self.history: dict[str, list[Operation]] = {}
        """Appends to each agent's log, and reads of its end, as their callers saw them."""
        self.places: dict[str, list[tuple[int, Operation | None]]] = {}
        """Each agent's log: sequences, and the appends that took effect there."""
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
        self.harmed("crash", view)
        view.process.kill()
        view.hang_up()

    def crash_at_call(self, name: str, calls: int, how: str) -> None:
        """`how`: "crash before" the call, "crash after" it has left, or "crash answered" before its answer is heard."""
        self.views[name].fuse = calls, how

    def pause(self, name: str, seconds: float) -> None:
        """As SIGSTOP: no step, timer or delivery of it until `seconds` have passed; then all that are due, in order.

        Appends that it had sent land meanwhile.
        """
        view, until = self.views[name], self.loop.time() + seconds
        if view.process.is_dead or until <= view.paused_until:
            return
        view.paused_until = until
        self.note(f"pause {view.label} {seconds:.3f}")
        self.harmed("pause", view)
        view.process.pause()
        self.troubled_for(seconds + AFTERMATH_S)
        self.later(seconds, self._resume, view)

    def starve(self, name: str, seconds: float, rng: Random) -> None:
        """As on a machine that has too much to do: the process is late by up to seconds, again and again."""
        self.note(f"starve {self.views[name].label} {seconds:.3f}")
        self.harmed("starved", self.views[name])
        at = 0.0
        while at < seconds:
            late_s = rng.random() * rng.choice((0.1, 0.1, 1.0, 3.0))
            self.later(at, self._late, name, late_s)
            at += late_s + rng.random() * 0.5

    def _late(self, name: str, seconds: float) -> None:
        view = self.views[name]
        if not view.process.is_dead and not view.is_spared:
            self.pause(name, seconds)

    def _resume(self, view: View) -> None:
        if view.process.is_paused and self.loop.time() >= view.paused_until:
            self.note(f"resume {view.label}")
            view.process.resume()

    def cut(self, name: str, seconds: float, *, store: bool = False, ways: str = "both") -> None:
        """The view has no wire for `seconds`: messages from and to it are lost.  With `store`, no store either.

        `ways`: "out": it hears and is not heard, and what it sends to the store does not come there; "in": it is heard and does
        not hear, and what it appends lands without an answer.
        """
        view = self.views[name]
        self.note(f"cut {view.label} {seconds:.3f} store={store} {ways}")
        self.harmed("cut" if ways == "both" else f"cut {ways}", view)
        until = self.loop.time() + seconds
        self.troubled_for(seconds + AFTERMATH_S)
        if ways != "in":
            view.mute_until = max(view.mute_until, until)
        if ways != "out":
            view.deaf_until = max(view.deaf_until, until)
        if store:
            self.cut_store(name, seconds, ways=ways, is_part=True)

    def cut_store(self, name: str, seconds: float, *, ways: str = "both", is_part: bool = False) -> None:
        """The view has no store for `seconds`, and its wire as before; `ways` as in `cut`."""
        view = self.views[name]
        if not is_part:
            self.note(f"cut store {view.label} {seconds:.3f} {ways}")
        self.harmed("store cut" if ways == "both" else f"store cut {ways}", view)
        until = self.loop.time() + seconds
        self.troubled_for(seconds + AFTERMATH_S)
        if ways != "in":
            view.no_store_until = max(view.no_store_until, until)
        if ways != "out":
            view.no_answer_until = max(view.no_answer_until, until)

    def outage(self, seconds: float) -> None:
        """Nobody has a store for `seconds`."""
        self.note(f"outage {seconds:.3f}")
        self.counts["outage"] += 1
        for name in self.views:
            self.cut_store(name, seconds, is_part=True)

    def refuse(self, name: str, how: str, seconds: float) -> None:
        """The store refuses one of them, or everybody (""), as `testing.refusals` says, for `seconds`."""
        self.note(f"refuse {name or 'all'} {how} {seconds:.3f}")
        until = self.loop.time() + seconds
        self.troubled_for(seconds + AFTERMATH_S)
        if name:
            self.views[name].refuses = how, until
            self.harmed("store refuses", self.views[name])
        else:
            self.refuses = how, until
            self.counts["store refuses all"] += 1

    def refusal(self, view: View, what: str, subject: str) -> CellError | None:
        """What a call of the store raises now, if it is refused."""
        now = self.loop.time()
        for how, until in (view.refuses, self.refuses):
            if now < until and what in REFUSALS[how].calls:
                break
        else:
            if not self.happens("refused", view):
                return None
            how = self.rng.choice([how for how, refusal in REFUSALS.items() if what in refusal.calls])
        error = refused(how, what, subject)
        self.errors[id(error)] = error
        return error

    def part(self, some: list[str], others: list[str], seconds: float, *, one_way: bool = False) -> None:
        """A partition of the wire: nothing comes from `some` to `others`, nor, unless `one_way`, back; the store is reached by all."""
        self.note(f"part {some} {others} {seconds:.3f} one_way={one_way}")
        until = self.loop.time() + seconds
        self.troubled_for(seconds + AFTERMATH_S)
        for one in some:
            for other in others:
                self.links[one, other] = max(self.links.get((one, other), 0.0), until)
                if not one_way:
                    self.links[other, one] = max(self.links.get((other, one), 0.0), until)
            self.harmed("partition one way" if one_way else "partition", self.views[one])

    def slow_down(self, name: str, seconds: float, factor: float) -> None:
        """All that comes to and from the view takes `factor` times as long."""
        view = self.views[name]
        self.note(f"slow {view.label} {seconds:.3f} {factor:g}")
        self.harmed("slow node", view)
        self.troubled_for(seconds + AFTERMATH_S)
        view.slowness, view.slow_until = factor, self.loop.time() + seconds

    def step_clock(self, name: str, seconds: float) -> None:
        """The wall clock of the name jumps, ahead or back, and stays so."""
        self.note(f"clock {name} {seconds:+.3f}")
        self.harmed("clock step", self.views[name])
        self.clocks[name] += int(seconds)
        self.clock_error_max = max(self.clock_error_max, abs(self.clocks[name]))

    def cut_power(self, seconds: float) -> tuple[float, int]:
        """Every process dies, and the store forgets what landed in the last `seconds`; what was on its way never lands.

        The time from which on it forgot, and its last sequence.
        """
        self.note(f"power {seconds:.3f}")
        self.counts["power cut"] += 1
        for name in self.views:
            self.crash(name)
        since = self.loop.time() - seconds
        while self.landed and self.landed[-1][0] > since:
            self.landed.pop()
        self.power += 1
        self.store.forget(self.landed[-1][2] if self.landed else 0)
        last = self.store.seq
        self.history.clear()  # a register that has forgotten is another one
        self.places = {name: [(seq, None) for seq, _ in some if seq <= last] for name, some in self.places.items()}
        return since, last

    def heal(self, *but: str) -> None:
        """No further faults; who is paused or cut off goes on, `but` some.  What is late still lands, within `late_s`."""
        self.note("heal")
        self.use(self.faults.healed())
        self.refuses = "", 0.0
        self.links = {pair: until for pair, until in self.links.items() if pair[0] in but or pair[1] in but}
        for name, view in self.views.items():
            if name not in but:
                view.heal()
                self._resume(view)

    # ---- chance and time -------------------------------------------------------------------------------------

    def happens(self, kind: str, view: View | None = None) -> bool:
        """Draws whether the fault happens now, and counts it."""
        chance = self._chances.get(kind)
        if chance is None or self._dice[kind].random() >= chance or self.budget <= 0:
            return False
        self.budget -= 1
        self.harmed(kind, view)
        return True

    def harmed(self, kind: str, view: View | None) -> None:
        """Counts a fault, and tells who wants to know of it; `view`: the one that suffers it."""
        self.counts[kind] += 1
        if kind not in CHANCES:
            self.troubled_for(AFTERMATH_S)
        for witness in self._witnesses:
            witness(kind, view)

    def troubled_for(self, seconds: float) -> None:
        self.troubled_until = max(self.troubled_until, self.loop.time() + seconds)

    def delay(self, view: View | None = None) -> float:
        """One way between a process and the store, or between two processes."""
        longest = self.faults.slow_s if self.happens("slow", view) else self.faults.delay_s
        seconds = longest * (0.1 + 0.9 * self.rng.random())
        if view is not None and view.slow_until > self.loop.time():
            seconds *= view.slowness
        return seconds

    def late(self) -> float:
        return self.faults.late_s * self.rng.random()

    def later(self, seconds: float, callback: Callable[..., None], *args: Any) -> None:
        """Calls back as the world itself, which no crash or pause stops."""
        self.loop.call_later(seconds, callback, *args, context=self._context)

    def belated(self, seconds: float, callback: Callable[..., None], *args: Any) -> None:
        """As `later`, for what nobody waits for any more: `pending` counts it."""
        self.pending += 1
        self.later(seconds, self._belated, callback, args)

    def _belated(self, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.pending -= 1
        callback(*args)

    def passes(self, sender: View, receiver: View) -> bool:
        """Whether a message on the wire gets from one view to another now."""
        now = self.loop.time()
        if now < sender.mute_until or now < receiver.deaf_until:
            return False
        return not self.links or now >= self.links.get((sender.name, receiver.name), 0.0)

    # ---- what happened ---------------------------------------------------------------------------------------

    def on_append(self, observer: OnAppend) -> None:
        """Calls `observer(subject, entry, author)` at the instant an entry lands, before anybody can know of it."""
        self._observers.append(observer)

    def on_publish(self, listener: OnPublish) -> None:
        """Calls `listener(subject, data, author)` when a message is given to the wire, whether it arrives or not."""
        self._listeners.append(listener)

    def on_harm(self, witness: OnHarm) -> None:
        """Calls `witness(kind, view)` at the instant a fault happens."""
        self._witnesses.append(witness)

    def was_published(self, subject: str, data: bytes, author: View) -> None:
        for listener in self._listeners:
            listener(subject, data, author)

    def has_landed(self, subject: str, entry: Entry, author: View) -> None:
        self.landed.append((self.loop.time(), entry.seq, len(self.store.changes)))
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

    def note(self, line: str) -> None:
        line = f"{self.loop.time():.6f} {line}"
        self.trace.append(line)
        self._digest.update(line.encode())

    def digest(self) -> str:
        """Of everything noted so far."""
        return self._digest.hexdigest()
