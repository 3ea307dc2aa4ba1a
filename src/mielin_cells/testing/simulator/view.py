"""One process's view of the simulated world: `Log`, `Wire` and `Substrate` in one, with faults in every call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, TypeVar

from blake3 import blake3

from mielin_cells.errors import MessageTooLarge, NoResponder, StoreBusy, StoreUnreachable, WireTimeout
from mielin_cells.log.ids import LOGS, SCANNED
from mielin_cells.substrate.patterns import Watch
from mielin_cells.substrate.ports import (
    ENTRY_BYTES_MAX,
    Appended,
    Conflict,
    Entry,
    Found,
    Log,
    Outcome,
    Subscription,
    Unknown,
    Wire,
)
from mielin_cells.testing.checkers.history import Operation
from mielin_cells.testing.checkers.scene import STORE_WALL_S
from mielin_cells.testing.simulator.environment import STORE_CALLS
from mielin_cells.testing.simulator.link import Indexed, Sent, Tail, Wired, fail_with, resolve

T = TypeVar("T")

TICK_S = 1e-7
"""Between two appends of one caller to one subject, so that they land in order."""

FATES = ("fail", "time out", "lose the answer", "land late", "crash before", "crash after", "crash answered")
"""What `Network.on_call` may say of a call.  fail: it has no effect, and raises.  time out: it has none, and the outcome is unknown.
lose the answer: it has effect, and the outcome is unknown.  land late: an append or a trim has its effect up to `late_s` later; any
other call times out.  crash before it left, after, or when its answer is there."""

UNANSWERED = ("fail", "time out", "lose the answer", "land late")


class View(Indexed):
    """What one incarnation of one process sees.  Calls of a dead process hang for ever without effect."""

    tail_type: ClassVar[type[Tail]] = Tail

    @property
    def log(self) -> Log:
        return self

    @property
    def wire(self) -> Wire:
        return self

    async def close(self) -> None:
        while self._in_flight:
            await asyncio.wait([*self._in_flight])
        self._closed = True
        self.hang_up()

    # ---- every call ------------------------------------------------------------------------------------------

    async def _enter(self, what: str, subject: str) -> str:
        """Every call begins here; what is to become of it, "" if it is left to chance."""
        if self.process.is_dead:
            await self.world.loop.create_future()
        if self._closed:
            raise StoreUnreachable(f"{self.name} called {what} on a connection that it had closed; connect again.")
        world = self.world
        world.calls += 1
        if what in STORE_CALLS:
            error = world.refusal(self.refuses, self, what, subject)
            if error is not None:
                await asyncio.sleep(2 * self.delay())
                raise error
        fate = ""
        if self.fuse is not None:
            left, how = self.fuse
            self.fuse = (left - 1, how) if left > 1 else None
            fate = how if left <= 1 else ""
        if self.network.on_call is not None:
            fate = self.network.on_call(self, what, subject) or fate
        if not fate.startswith("crash"):
            return fate
        world.counts[fate] += 1
        if fate == "crash before":
            self._die()
            await world.loop.create_future()
        if fate == "crash after":
            world.later(0.0, self._die)
        return fate

    def _die(self) -> None:
        if not self.process.is_dead and not self.is_spared:
            self.crash()

    # ---- log -------------------------------------------------------------------------------------------------

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        if not subject.startswith(LOGS) or not self.world.records:
            return await self._append(subject, data, expect, owner, None)
        loop = self.world.loop
        operation = Operation(self.label, False, loop.time(), expect=expect)
        self.world.history.operations.setdefault(subject, []).append(operation)
        outcome = await self._append(subject, data, expect, owner, operation)
        if isinstance(outcome, Appended):
            operation.ended, operation.seq = loop.time(), outcome.seq
        return outcome

    async def _append(
        self, subject: str, data: bytes, expect: int | None, owner: str | None, operation: Operation | None
    ) -> Outcome:
        fate = await self._enter("append", subject)
        if len(data) > ENTRY_BYTES_MAX:
            raise MessageTooLarge(
                f"An entry of {len(data)} bytes for {subject} is above {ENTRY_BYTES_MAX}; send it in parts.",
                limit=ENTRY_BYTES_MAX, size=len(data),
            )  # fmt: skip
        world = self.world
        answer: asyncio.Future[Outcome] = world.loop.create_future()
        self._in_flight[answer] = None
        answer.add_done_callback(self._in_flight.pop)
        if fate == "crash answered":
            answer.add_done_callback(lambda _: self._die())
        way, sent = self.delay(), Sent(subject, bytes(data), expect, owner, world.power, operation)
        if fate == "fail" or world.happens("append_busy", self):
            world.later(way, fail_with, answer, StoreBusy(f"The store did not take an entry for {subject}; try again."))
            return await answer
        if fate == "land late" or (fate != "lose the answer" and world.happens("append_late", self)):
            world.belated(way + world.late(), self._land, sent, None)
            self._no_answer(answer)
            return await answer
        if fate == "time out" or not self.reaches_store or world.happens("append_never", self):
            self._no_answer(answer)
            return await answer
        if expect is not None and world.happens("false_conflict", self):
            last = world.store.last(subject)
            world.later(way + self.delay(), resolve, answer, Conflict(last.seq if last else 0))
            return await answer
        at = max(world.loop.time() + way, self._lanes.get(subject, 0.0) + TICK_S)
        self._lanes[subject] = at
        world.later(at - world.loop.time(), self._land, sent, answer, fate)
        return await answer

    def _no_answer(self, answer: asyncio.Future[Outcome]) -> None:
        world = self.world
        world.later(world.faults.timeout_s * world.rng.random(), resolve, answer, Unknown("no answer in time"))

    def _land(self, sent: Sent, answer: asyncio.Future[Outcome] | None, fate: str = "") -> None:
        world, subject = self.world, sent.subject
        if sent.power != world.power:
            return
        if answer is not None and self.process.is_dead:  # sent before the crash: now, later or never
            answer = None
            chance = world.rng.random()
            if chance < 0.25:
                world.counts["zombie_append_lost"] += 1
                return
            if chance < 0.5:
                world.counts["zombie_append_late"] += 1
                world.belated(world.late(), self._land, sent, None)
                return
        outcome = world.store.append(subject, sent.data, sent.expect, sent.owner)
        if isinstance(outcome, Appended):
            if sent.owner is not None:
                self.has_owner(subject, outcome.seq, sent.owner)
            if sent.operation is not None:
                world.history.places.setdefault(subject, []).append((outcome.seq, sent.operation))
            world.has_landed(subject, Entry(outcome.seq, sent.data), self)
            for tail in self.network.tails.get(subject, ()):
                tail.reveal_soon(outcome.seq)
            if subject.startswith(SCANNED):
                for watch in [*self.network.watches]:
                    if watch.matches(subject):
                        watch.wake()
        if answer is None:
            return
        if fate == "lose the answer" or not self.hears_store or world.happens("append_lost", self):
            self._no_answer(answer)
        else:
            world.later(self.delay(), resolve, answer, outcome)

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        store = self.world.store
        entries: list[Entry] = await self._look(
            "read", subject, lambda: store.read(subject, after, limit, self._horizon())
        )
        if entries and self.world.happens("read_torn", self):
            entries[-1] = Entry(entries[-1].seq, self.tear(entries[-1].data))
        return entries

    async def last(self, subject: str) -> Entry | None:
        store, world = self.world.store, self.world
        if world.happens("last_stale", self):
            upto = world.known_before(world.faults.cut_off_s * world.rng.random())
            entry: Entry | None = await self._look("last", subject, lambda: store.last_at(subject, upto))
            return self.maybe_torn(entry)
        return self.maybe_torn(await self._newest("last", subject))

    async def settled(self, subject: str) -> Entry | None:
        return self.maybe_torn(await self._newest("settled", subject))

    async def _newest(self, what: str, subject: str) -> Entry | None:
        store, loop = self.world.store, self.world.loop
        if not subject.startswith(LOGS) or not self.world.records:
            return await self._look(what, subject, lambda: store.last(subject))
        operation = Operation(self.label, True, loop.time())
        self.world.history.operations.setdefault(subject, []).append(operation)
        entry = await self._look(what, subject, lambda: store.last(subject))
        operation.ended, operation.seq = loop.time(), entry.seq if entry is not None else 0
        return entry

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        store = self.world.store
        entries: dict[str, Entry] = await self._look("lasts", "", lambda: store.lasts(subjects, self._horizon()))
        return {name: self.maybe_torn(entry) or entry for name, entry in entries.items()}

    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        listed: list[tuple[str, int]] = await self._look("subjects", prefix, lambda: self.world.store.subjects(prefix))
        upto = self._horizon()
        return listed if upto is None else [(name, seq) for name, seq in listed if seq <= upto]

    async def position(self) -> tuple[int, ...]:
        world = self.world
        answer: tuple[int, ...] = await self._look("position", "", lambda: (world.power, world.store.seq))
        upto = self._horizon()
        return answer if upto is None else (answer[0], min(answer[1], upto))

    async def now(self) -> float:
        return await self._look("now", "", lambda: STORE_WALL_S + self.world.loop.time())

    async def topic_ends(self) -> tuple[int, ...]:
        return await self._look("topic_ends", "", lambda: (self._known(self._horizon()),))

    def _known(self, upto: int | None) -> int:
        return self.world.store.seq if upto is None else min(upto, self.world.store.seq)

    async def scan(self, pattern: str, shard: int, after: int = 0, limit: int = 1000) -> list[Found]:
        store = self.world.store
        found: list[Found] = await self._look(
            "scan", pattern, lambda: store.scan(pattern, after, limit, self._horizon())
        )
        if found and self.world.happens("read_torn", self):
            found[-1] = found[-1]._replace(data=self.tear(found[-1].data))
        return found

    def watch(self, pattern: str, wake: Callable[[], None]) -> Watch:
        """Wakes come late, and some never."""

        def wake_soon() -> None:
            if self.process.is_dead or not self.hears_store or self.world.happens("wire_drop", self):
                return
            self.world.later(self.delay(), awake)

        def awake() -> None:
            if watch in self.watches and not self.process.is_dead:
                self.world.loop.call_soon(wake, context=self.process.context.copy())

        watch = Watch(pattern, wake_soon, self._unwatch)
        if not self.process.is_dead:
            self.watches[watch] = self.network.watches[watch] = None
        return watch

    async def _look(self, what: str, subject: str, find: Callable[[], T]) -> T:
        """A call that reads: `find` is asked half-way, where the store is."""
        fate = await self._enter(what, subject)
        world = self.world
        answer: asyncio.Future[T] = world.loop.create_future()
        if fate == "crash answered":
            answer.add_done_callback(lambda _: self._die())
        world.later(self.delay(), self._answer_read, answer, what, find, fate)
        return await answer

    def _answer_read(self, answer: asyncio.Future[Any], what: str, find: Callable[[], Any], fate: str) -> None:
        world = self.world
        if answer.done():
            return
        if fate in UNANSWERED or not self.reaches_store or not self.hears_store or world.happens("read_fails", self):
            fail_with(answer, StoreUnreachable(f"The store did not answer {what} of {self.name}; try again."))
        else:
            world.later(self.delay(), resolve, answer, find())

    def _horizon(self) -> int | None:
        if self.world.happens("read_stale", self):
            return self.world.known_before(self.world.faults.stale_s * self.world.rng.random())
        return None

    def tail(self, subject: str, after: int = 0) -> Tail:
        tail = self.tail_type(self, subject, after)
        if not self.process.is_dead:
            self.tails[tail] = None
            self.network.tails.setdefault(subject, {})[tail] = None
            tail.catch_up()
        return tail

    async def trim(self, subject: str, before: int) -> None:
        fate = await self._enter("trim", subject)
        world = self.world
        if fate == "fail":
            raise StoreUnreachable(f"The store did not answer trim of {self.name}; try again.")
        if fate == "time out" or not self.reaches_store or world.happens("trim_lost", self):
            pass
        elif fate == "land late" or world.happens("trim_late", self):
            world.belated(world.late(), self._trim, subject, before, world.power)
            world.belated(world.late(), self._trim, subject, before, world.power)
        else:
            world.later(self.delay(), self._trim, subject, before, world.power)
        await asyncio.sleep(2 * self.delay())

    def _trim(self, subject: str, before: int, power: int) -> None:
        if power == self.world.power and self.world.store.trim(subject, before):
            self.world.note(f"trim {subject} {before} {self.label}")

    # ---- wire ------------------------------------------------------------------------------------------------

    async def publish(self, subject: str, data: bytes) -> None:
        fate = await self._enter("publish", subject)
        self.world.was_published(subject, data, self)
        if fate in UNANSWERED:
            return
        for wired in [*self.network.subscriptions.get(subject, ())]:
            self.carry(wired.view, self._deliver, wired, data)

    def _deliver(self, wired: Wired, data: bytes) -> None:
        view, world = wired.view, self.world
        if wired.is_open and world.loop.time() >= view.deaf_until:
            if world.records:
                world.note(f"deliver {wired.subject} {view.label} {blake3(data).hexdigest(8)}")
            world.loop.call_soon(wired.receive, data, context=view.process.context.copy())

    async def subscribe(self, subject: str, receive: Callable[[bytes], None]) -> Subscription:
        await self._enter("subscribe", subject)
        await asyncio.sleep(self.delay())
        return Wired(self, subject, receive, self.subscriptions, self.network.subscriptions)

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        fate = await self._enter("request", subject)
        world = self.world
        servers = [*self.network.servers.get(subject, ())]
        if fate == "fail" or (not servers and world.loop.time() >= max(self.mute_until, self.deaf_until)):
            await asyncio.sleep(self.delay())
            raise NoResponder(f"Nobody serves {subject} now.", subject=subject)
        answer: asyncio.Future[bytes] = world.loop.create_future()
        if fate == "crash answered":
            answer.add_done_callback(lambda _: self._die())
        if servers and fate not in ("time out", "land late"):
            wired = servers[world.rng.randrange(len(servers))] if len(servers) > 1 else servers[0]
            self.carry(wired.view, self._ask, wired, data, None if fate == "lose the answer" else answer)
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise WireTimeout(f"No answer from {subject} in {timeout:g} s.", subject=subject) from None

    def _ask(self, wired: Wired, data: bytes, answer: asyncio.Future[bytes] | None) -> None:
        view, world = wired.view, self.world
        if not wired.is_open or world.loop.time() < view.deaf_until:
            return
        if world.records:
            world.note(f"ask {wired.subject} {view.label} {blake3(data).hexdigest(8)}")

        async def serve() -> None:
            result = await wired.receive(data)
            if answer is not None:
                view.carry(self, resolve, answer, result)

        def start() -> None:
            _ = view.process.start(serve())

        world.loop.call_soon(start, context=view.process.context.copy())

    async def serve(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]]) -> Subscription:
        await self._enter("serve", subject)
        await asyncio.sleep(self.delay())
        return Wired(self, subject, answer, self.servers, self.network.servers)
