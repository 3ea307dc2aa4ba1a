"""One process's view of the simulated world: `Log`, `Wire` and `Substrate` in one, with faults in every call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from blake3 import blake3

from mielin_cells.errors import MessageTooLarge, NoResponder, StoreBusy, StoreUnreachable, WireTimeout
from mielin_cells.substrate.ports import (
    ENTRY_BYTES_MAX,
    Appended,
    Conflict,
    Entry,
    Log,
    Outcome,
    Subscription,
    Tail,
    Unknown,
    Wire,
)
from mielin_cells.testing.loop import Process

if TYPE_CHECKING:
    from mielin_cells.testing.world import World

F = TypeVar("F", bound=Callable[..., Any])

TICK_S = 1e-7
"""Between two appends of one caller to one subject, so that they land in order."""


class View:
    """What one incarnation of one process sees.  Calls of a dead process, by whomever, hang for ever without effect."""

    def __init__(self, world: World, name: str, number: int, process: Process) -> None:
        self.world = world
        self.name = name
        self.number = number
        self.label = process.name
        self.process = process
        self.no_wire_until = 0.0
        self.no_store_until = 0.0
        self.subscriptions: dict[_Subscription[Callable[[bytes], None]], None] = {}
        self.servers: dict[_Subscription[Callable[[bytes], Awaitable[bytes]]], None] = {}
        self.tails: dict[_Tail, None] = {}
        self.sync = "power"
        self._in_flight: dict[asyncio.Future[Any], None] = {}
        self._lanes: dict[str, float] = {}
        self._closed = False

    @property
    def log(self) -> Log:
        return self

    @property
    def wire(self) -> Wire:
        return self

    @property
    def has_wire(self) -> bool:
        return self.world.loop.time() >= self.no_wire_until

    @property
    def has_store(self) -> bool:
        return self.world.loop.time() >= self.no_store_until

    def hang_up(self) -> None:
        self.subscriptions.clear()
        self.servers.clear()
        for tail in [*self.tails]:
            tail.close()

    async def close(self) -> None:
        while self._in_flight:
            await asyncio.wait([*self._in_flight])
        self._closed = True
        self.hang_up()

    async def _enter(self, what: str) -> None:
        """Every call begins here."""
        if self.process.is_dead:
            await self.world.loop.create_future()
        if self._closed:
            raise StoreUnreachable(f"{self.name} called {what} on a connection that it had closed; connect again.")
        self.world.calls += 1

    # ---- log -------------------------------------------------------------------------------------------------

    async def append(self, subject: str, data: bytes, expect: int | None = None) -> Outcome:
        await self._enter("append")
        if len(data) > ENTRY_BYTES_MAX:
            raise MessageTooLarge(
                f"An entry of {len(data)} bytes for {subject} is above {ENTRY_BYTES_MAX}; send it in parts.",
                limit=ENTRY_BYTES_MAX, size=len(data),
            )  # fmt: skip
        world = self.world
        answer: asyncio.Future[Outcome] = world.loop.create_future()
        self._in_flight[answer] = None
        answer.add_done_callback(self._in_flight.pop)
        way = world.delay()
        if world.happens("append_busy"):
            world.later(way, _fail, answer, StoreBusy(f"The store did not take an entry for {subject}; try again."))
            return await answer
        if world.happens("append_late"):
            world.later(way + world.late(), self._land, subject, bytes(data), expect, None)
            world.later(world.faults.timeout_s * world.rng.random(), _resolve, answer, Unknown("no answer in time"))
            return await answer
        if world.happens("append_never") or not self.has_store:
            world.later(world.faults.timeout_s * world.rng.random(), _resolve, answer, Unknown("no answer in time"))
            return await answer
        if expect is not None and world.happens("false_conflict"):
            last = world.store.last(subject)
            world.later(way + world.delay(), _resolve, answer, Conflict(last.seq if last else 0))
            return await answer
        at = max(world.loop.time() + way, self._lanes.get(subject, 0.0) + TICK_S)
        self._lanes[subject] = at
        world.later(at - world.loop.time(), self._land, subject, bytes(data), expect, answer)
        return await answer

    def _land(self, subject: str, data: bytes, expect: int | None, answer: asyncio.Future[Outcome] | None) -> None:
        world = self.world
        if answer is not None and self.process.is_dead:  # sent before the crash: now, later or never
            answer = None
            fate = world.rng.random()
            if fate < 0.25:
                world.counts["zombie_append_lost"] += 1
                return
            if fate < 0.5:
                world.counts["zombie_append_late"] += 1
                world.later(world.late(), self._land, subject, data, expect, None)
                return
        outcome = world.store.append(subject, data, expect)
        if isinstance(outcome, Appended):
            world.has_landed(subject, Entry(outcome.seq, data), self)
            for view in world.views.values():
                for tail in view.tails:
                    if tail.subject == subject:
                        world.later(world.delay(), tail.reveal, outcome.seq)
        if answer is None:
            return
        if world.happens("append_lost") or not self.has_store:
            world.later(world.faults.timeout_s * world.rng.random(), _resolve, answer, Unknown("the answer was lost"))
        else:
            world.later(world.delay(), _resolve, answer, outcome)

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        await self._look("read")
        found = self.world.store.read(subject, after, limit, self._horizon())
        await asyncio.sleep(self.world.delay())
        return found

    async def last(self, subject: str) -> Entry | None:
        await self._look("last")
        found = self.world.store.last(subject)
        await asyncio.sleep(self.world.delay())
        return found

    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        await self._look("subjects")
        upto = self._horizon()
        found = self.world.store.subjects(prefix)
        await asyncio.sleep(self.world.delay())
        return [(name, seq) for name, seq in found if upto is None or seq <= upto]

    async def _look(self, what: str) -> None:
        await self._enter(what)
        await asyncio.sleep(self.world.delay())
        if self.world.happens("read_fails") or not self.has_store:
            raise StoreUnreachable(f"The store did not answer {what} of {self.name}; try again.")

    def _horizon(self) -> int | None:
        if self.world.happens("read_stale"):
            return self.world.known_before(self.world.faults.stale_s * self.world.rng.random())
        return None

    def tail(self, subject: str, after: int = 0) -> Tail:
        tail = _Tail(self, subject, after)
        if not self.process.is_dead:
            self.tails[tail] = None
            last = self.world.store.last(subject)
            if last is not None:
                self.world.later(self.world.delay(), tail.reveal, last.seq)
        return tail

    async def trim(self, subject: str, before: int) -> None:
        await self._enter("trim")
        world = self.world
        if world.happens("trim_lost") or not self.has_store:
            pass
        elif world.happens("trim_late"):
            world.later(world.late(), self._trim, subject, before)
            world.later(world.late(), self._trim, subject, before)
        else:
            world.later(world.delay(), self._trim, subject, before)
        await asyncio.sleep(2 * world.delay())

    def _trim(self, subject: str, before: int) -> None:
        if self.world.store.trim(subject, before):
            self.world.note(f"trim {subject} {before} {self.label}")

    # ---- wire ------------------------------------------------------------------------------------------------

    def _carry(self, other: View, deliver: Callable[..., None], *args: Any) -> None:
        """Brings something over the wire to `other`: dropped, once or twice, soon or late."""
        world = self.world
        if world.happens("wire_drop") or not (self.has_wire and other.has_wire):
            return
        for _ in range(2 if world.happens("wire_repeat") else 1):
            way = world.delay() + (world.late() if world.happens("wire_late") else 0.0)
            world.later(way, deliver, *args)

    async def publish(self, subject: str, data: bytes) -> None:
        await self._enter("publish")
        self.world.was_published(subject, data, self)
        for view in [*self.world.views.values()]:
            for subscription in [*view.subscriptions]:
                if subscription.subject == subject:
                    self._carry(view, self._deliver, view, subscription, data)

    def _deliver(self, view: View, subscription: _Subscription[Callable[[bytes], None]], data: bytes) -> None:
        if subscription in view.subscriptions and view.has_wire:
            self.world.note(f"deliver {subscription.subject} {view.label} {blake3(data).hexdigest(8)}")
            self.world.loop.call_soon(subscription.receive, data, context=view.process.context.copy())

    async def subscribe(self, subject: str, receive: Callable[[bytes], None]) -> Subscription:
        await self._enter("subscribe")
        await asyncio.sleep(self.world.delay())
        subscription = _Subscription(subject, receive, self.subscriptions)
        self.subscriptions[subscription] = None
        return subscription

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        await self._enter("request")
        world = self.world
        servers = [(view, s) for view in world.views.values() for s in view.servers if s.subject == subject]
        if not servers and self.has_wire:
            await asyncio.sleep(world.delay())
            raise NoResponder(f"Nobody serves {subject} now.", subject=subject)
        answer: asyncio.Future[bytes] = world.loop.create_future()
        if servers:
            view, server = servers[world.rng.randrange(len(servers))]
            self._carry(view, self._ask, view, server, data, answer)
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise WireTimeout(f"No answer from {subject} in {timeout:g} s.", subject=subject) from None

    def _ask(
        self, view: View, server: _Subscription[Callable[[bytes], Awaitable[bytes]]], data: bytes,
        answer: asyncio.Future[bytes],
    ) -> None:  # fmt: skip
        if server not in view.servers or not view.has_wire:
            return
        self.world.note(f"ask {server.subject} {view.label} {blake3(data).hexdigest(8)}")

        async def serve() -> None:
            found = await server.receive(data)
            view._carry(self, _resolve, answer, found)

        def start() -> None:
            _ = view.process.start(serve())

        self.world.loop.call_soon(start, context=view.process.context.copy())

    async def serve(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]]) -> Subscription:
        await self._enter("serve")
        await asyncio.sleep(self.world.delay())
        server = _Subscription(subject, answer, self.servers)
        self.servers[server] = None
        return server


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


class _Subscription(Generic[F]):
    def __init__(self, subject: str, receive: F, home: dict[Any, None]) -> None:
        self.subject = subject
        self.receive: F = receive
        self._home = home

    def close(self) -> None:
        self._home.pop(self, None)


class _Tail:
    """Shows entries up to what has been revealed to it, and that grows a while after the entries have landed."""

    def __init__(self, view: View, subject: str, after: int) -> None:
        self.subject = subject
        self._view = view
        self._after = after
        self._upto = 0
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<tail of {self.subject}>"

    def reveal(self, seq: int) -> None:
        self._upto = max(self._upto, seq)
        if self._waiter is not None:
            _resolve(self._waiter, None)

    def __aiter__(self) -> _Tail:
        return self

    async def __anext__(self) -> list[Entry]:
        world = self._view.world
        while not self._closed and not self._view.process.is_dead:
            limit = world.rng.choice((1, 3, 1000))
            batch = world.store.read(self.subject, self._after, limit, self._upto)
            if batch:
                self._after = batch[-1].seq
                return batch
            self._waiter = world.loop.create_future()
            await self._waiter
        if self._view.process.is_dead:
            await world.loop.create_future()
        raise StopAsyncIteration

    def close(self) -> None:
        self._closed = True
        self._view.tails.pop(self, None)
        if self._waiter is not None and not self._view.process.is_dead:
            _resolve(self._waiter, None)
