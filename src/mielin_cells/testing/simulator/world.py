"""A world for production code to fail in: one true store, and a faulty view of it for every process.

What may go wrong, and how often, is a `Faults`; what did is counted in `World.counts`.

The faults are those that the ports permit, and a few more that brokers show: an answer is lost after the append landed;
an append lands seconds after its `Unknown`, or never; a conflict is reported though nothing moved; a read misses the
newest, or brings damaged bytes; a trim is late, lost or repeated; messages are dropped, repeated, reordered.  Processes crash
between any two calls, pause, slow down, lose wire or store in one direction or both, and have clocks that jump.
Not simulated: bytes that are damaged where they are stored, and clocks that run at different speeds.
"""

from __future__ import annotations

from random import Random
from typing import ClassVar

from mielin_cells.testing.simulator.engine import AFTERMATH_S, Engine
from mielin_cells.testing.simulator.environment import Faults
from mielin_cells.testing.simulator.link import Network
from mielin_cells.testing.simulator.loop import Process
from mielin_cells.testing.simulator.view import View


class World(Engine):
    """`connect` gives a process its view; `crash`, `pause`, `cut`, ... harm it."""

    view_type: ClassVar[type[View]] = View

    def __init__(
        self, seed: int = 0, faults: Faults | None = None, *, budget: int = 1_000_000, records: bool = True
    ) -> None:
        super().__init__(seed, faults, budget=budget, records=records)
        self.network = Network()
        self.views: dict[str, View] = {}
        """The newest incarnation of each name."""

    # ---- processes -------------------------------------------------------------------------------------------

    def connect(self, name: str) -> View:
        """A view for a new incarnation of `name`, with a `process` to run its code in.  The one before is crashed."""
        before = self.views.get(name)
        if before is not None:
            self.crash(name)
        number = before.number + 1 if before is not None else 1
        view = self.view_type(self, self.network, name, number, Process(self.loop, f"{name}#{number}"))
        self.views[name] = view
        self.note(f"connect {view.label}")
        return view

    def crash(self, name: str) -> None:
        """As `kill -9`: the incarnation takes no further step, its tails and subscriptions end.

        What it had sent may still land, now or later, or never.  A call on the dead view hangs for ever.
        """
        self.views[name].crash()

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
        self.harmed("pause", view, seconds)
        view.process.pause()
        self.later(seconds, self._resume, view)

    def starve(self, name: str, seconds: float, rng: Random) -> None:
        """As on an overloaded machine: the process is late by up to seconds, again and again."""
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
        until = self.harmed("cut" if ways == "both" else f"cut {ways}", view, seconds)
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
        until = self.harmed("store cut" if ways == "both" else f"store cut {ways}", view, seconds)
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
        """The store refuses the name, or everybody (""), for `seconds` (`environment.REFUSALS`)."""
        self.note(f"refuse {name or 'all'} {how} {seconds:.3f}")
        until = self.loop.time() + seconds
        self.troubled_for(seconds + AFTERMATH_S)
        if name:
            self.views[name].refuses = how, until
            self.harmed("store refuses", self.views[name])
        else:
            self.refuses = how, until
            self.counts["store refuses all"] += 1

    def part(self, some: list[str], others: list[str], seconds: float, *, one_way: bool = False) -> None:
        """A partition of the wire: nothing passes from `some` to `others`, nor, unless `one_way`, back.  All reach the store."""
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
        """Everything to and from the process takes `factor` times as long."""
        view = self.views[name]
        self.note(f"slow {view.label} {seconds:.3f} {factor:g}")
        view.slowness, view.slow_until = factor, self.harmed("slow node", view, seconds)

    def step_clock(self, name: str, seconds: float) -> None:
        """The wall clock of the process jumps ahead or back, and stays so."""
        self.note(f"clock {name} {seconds:+.3f}")
        self.harmed("clock step", self.views[name])
        history = self.history
        history.clocks[name] += int(seconds)
        history.clock_error_max = max(history.clock_error_max, abs(history.clocks[name]))

    def cut_power(self, seconds: float) -> tuple[float, int]:
        """Every process dies, and the store forgets what landed in the last `seconds`; what was on its way never lands.

        Returns the time from which on the store forgot, and its last sequence.
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
        self.history.operations.clear()  # a register that has forgotten is another one
        for places in self.history.places.values():
            places[:] = [(seq, None) for seq, _ in places if seq <= last]
        return since, last

    def heal(self, *but: str) -> None:
        """Ends all faults; processes that are paused or cut off go on, except `but`.  Late effects still land, within `late_s`."""
        self.note("heal")
        self.use(self.faults.healed())
        self.refuses = "", 0.0
        self.links = {pair: until for pair, until in self.links.items() if pair[0] in but or pair[1] in but}
        for name, view in self.views.items():
            if name not in but:
                view.heal()
                self._resume(view)
