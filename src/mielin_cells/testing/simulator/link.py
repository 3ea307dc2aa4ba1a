"""What connects one incarnation of a process to the simulated world: its state, its subscriptions and its tails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

from mielin_cells.errors import StoreUnreachable
from mielin_cells.log.ids import LOGS
from mielin_cells.substrate.patterns import Watch
from mielin_cells.substrate.ports import Entry, Outside, Source
from mielin_cells.testing.checkers.history import Operation
from mielin_cells.testing.simulator.engine import Engine
from mielin_cells.testing.simulator.environment import INDEX_FILLS_S
from mielin_cells.testing.simulator.loop import Process
from mielin_cells.testing.simulator.outside.seen import SeenStream

T = TypeVar("T")


@dataclass(slots=True)
class Network:
    """By subject: the tails, subscriptions and request servers of all processes."""

    tails: dict[str, dict[Tail, None]] = field(default_factory=dict)
    hearers: dict[str, dict[Hearer, None]] = field(default_factory=dict)
    """By owner."""
    subscriptions: dict[str, dict[Wired, None]] = field(default_factory=dict)
    servers: dict[str, dict[Wired, None]] = field(default_factory=dict)
    watches: dict[Watch, None] = field(default_factory=dict)
    on_call: Callable[[Link, str, str], str] | None = None
    """Called with process, call and subject at each call of the substrate; returns one of `view.FATES`, or "" for chance."""


class Sent(NamedTuple):
    """An append on its way to the store."""

    subject: str
    data: bytes
    expect: int | None
    owner: str | None
    power: int
    """If it was cut meanwhile, the append never comes there."""
    operation: Operation | None


class Link:
    """The state of one incarnation of a process, and what it has open.  `View` adds its calls."""

    def __init__(self, world: Engine, network: Network, name: str, number: int, process: Process) -> None:
        self.world = world
        self.network = network
        self.name = name
        self.number = number
        self.label = process.name
        self.process = process
        self.mute_until = self.deaf_until = 0.0
        """Until then nothing comes from it, or to it, on the wire."""
        self.no_store_until = self.no_answer_until = 0.0
        """Until then its calls do not reach the store, or the store's answers do not reach it."""
        self.refuses: tuple[str, float] = ("", 0.0)
        """How the store refuses it, and until when."""
        self.slow_until, self.slowness = 0.0, 1.0
        self.paused_until = 0.0
        self.is_spared = False
        """Set when the world heals: a call that was made before must not crash the process."""
        self.fuse: tuple[int, str] | None = None
        """How many more calls it makes before it crashes, and how."""
        self.subscriptions: dict[Wired, None] = {}
        self.servers: dict[Wired, None] = {}
        self.tails: dict[Tail, None] = {}
        self.watches: dict[Watch, None] = {}
        self.sync = "power"
        self.hearers: dict[Hearer, None] = {}
        self._in_flight: dict[asyncio.Future[Any], None] = {}
        self._lanes: dict[str, float] = {}
        self._closed = False

    @property
    def reaches_store(self) -> bool:
        return self.world.loop.time() >= self.no_store_until

    @property
    def hears_store(self) -> bool:
        return self.world.loop.time() >= self.no_answer_until

    def heal(self) -> None:
        self.mute_until = self.deaf_until = self.no_store_until = self.no_answer_until = self.slow_until = 0.0
        self.paused_until = 0.0
        self.refuses = "", 0.0
        self.fuse, self.is_spared = None, True
        for tail in self.tails:
            tail.catch_up()

    def hang_up(self) -> None:
        for wired in [*self.subscriptions, *self.servers]:
            wired.close()
        for tail in [*self.tails]:
            tail.close()
        for watch in [*self.watches]:
            watch.close()
        for hearer in [*self.hearers]:
            hearer.close()

    def _unwatch(self, watch: Watch) -> None:
        self.watches.pop(watch, None)
        self.network.watches.pop(watch, None)

    def crash(self) -> None:
        """As `kill -9` (`World.crash`)."""
        if self.process.is_dead:
            return
        self.world.note(f"crash {self.label}")
        self.world.harmed("crash", self)
        self.process.kill()
        self.hang_up()

    def delay(self) -> float:
        """One way between this process and the store, or another process."""
        seconds = self.world.delay(self)
        return seconds * self.slowness if self.slow_until > self.world.loop.time() else seconds

    def passes(self, receiver: Link) -> bool:
        """Whether a message on the wire gets from this process to another one now."""
        now, links = self.world.loop.time(), self.world.links
        if now < self.mute_until or now < receiver.deaf_until:
            return False
        return not links or now >= links.get((self.name, receiver.name), 0.0)

    def carry(self, other: Link, deliver: Callable[..., None], *args: Any) -> None:
        """Brings something over the wire to `other`: dropped, once or twice, soon or late."""
        world = self.world
        if not self.passes(other) or world.happens("wire_drop", other):
            return
        for _ in range(2 if world.happens("wire_repeat", other) else 1):
            way = self.delay()
            if world.happens("wire_late", other):
                world.belated(way + world.late(), deliver, *args)
            else:
                world.later(way, deliver, *args)

    def tear(self, data: bytes) -> bytes:
        """As it comes over a bad way: cut short, or with one bit changed."""
        rng = self.world.rng
        if not data or rng.random() < 0.5:
            torn = data[: rng.randrange(len(data) + 1)]
        else:
            changed = bytearray(data)
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            torn = bytes(changed)
        if torn != data:
            self.world.torn.add(torn)
        return torn

    def maybe_torn(self, entry: Entry | None) -> Entry | None:
        """As it is, or torn."""
        if entry is None or not self.world.happens("look_torn", self):
            return entry
        return Entry(entry.seq, self.tear(entry.data))


def resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def fail_with(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


class Wired:
    """A subscription, or a server of requests."""

    def __init__(
        self, view: Link, subject: str, receive: Callable[[bytes], Any], mine: dict[Wired, None],
        all_of: dict[str, dict[Wired, None]],
    ) -> None:  # fmt: skip
        self.view = view
        self.subject = subject
        self.receive = receive
        self.is_open = True
        self._homes = mine, all_of.setdefault(subject, {})
        for home in self._homes:
            home[self] = None

    def close(self) -> None:
        self.is_open = False
        for home in self._homes:
            home.pop(self, None)


class Tail:
    """Shows entries up to the sequence that was revealed to it, which grows a while after the entries have landed."""

    limits: ClassVar[tuple[int, ...]] = (1, 3, 1000)
    """Entries in one batch, at most; one of these is drawn for each."""

    def __init__(self, view: Link, subject: str, after: int) -> None:
        self.subject = subject
        self._view = view
        self._after = after
        self._upto = 0
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._come: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<tail of {self.subject}>"

    def catch_up(self) -> None:
        last = self._view.world.store.last(self.subject)
        if last is not None:
            self.reveal_soon(last.seq)

    def reveal_soon(self, seq: int) -> None:
        world, view = self._view.world, self._view
        away = max(0.0, view.no_answer_until - world.loop.time(), view.no_store_until - world.loop.time())
        if world.happens("tail_late", view):
            away += world.faults.stale_s * world.rng.random()
        world.later(away + view.delay(), self.reveal, seq)

    def reveal(self, seq: int) -> None:
        if self._closed:
            return
        if not self._view.hears_store or not self._view.reaches_store:
            self.reveal_soon(seq)
            return
        self._upto = max(self._upto, seq)
        if self._waiter is not None:
            resolve(self._waiter, None)
        if self._come is not None and self._has_more():
            come, self._come = self._come, None
            come()

    def _has_more(self) -> bool:
        return bool(self._view.world.store.read(self.subject, self._after, 1, self._upto))

    def watch(self, come: Callable[[], None]) -> bool:
        if self._closed or self._has_more():
            return False
        self._come = come
        return True

    def __aiter__(self) -> Tail:
        return self

    async def __anext__(self) -> list[Entry]:
        world, self._come = self._view.world, None
        while not self._closed and not self._view.process.is_dead:
            limit = world.rng.choice(self.limits)
            batch = world.store.read(self.subject, self._after, limit, self._upto)
            if batch:
                self._after = batch[-1].seq
                return [self._view.maybe_torn(entry) or entry for entry in batch]
            self._waiter = world.loop.create_future()
            await self._waiter
        if self._view.process.is_dead:
            await world.loop.create_future()
        raise StopAsyncIteration

    def close(self) -> None:
        self._closed, self._come = True, None
        self._view.tails.pop(self, None)
        self._view.network.tails.get(self.subject, {}).pop(self, None)
        if self._waiter is not None and not self._view.process.is_dead:
            resolve(self._waiter, None)


class Hearer:
    """Hears of records that name one owner: once, twice, late or never, and of some that do not."""

    def __init__(self, view: Link, owner: str, receive: Callable[[str | None], None]) -> None:
        self._view = view
        self._receive = receive
        self._is_open = True
        self._homes = view.hearers, view.network.hearers.setdefault(owner, {})
        if not view.process.is_dead:
            for home in self._homes:
                home[self] = None

    def tell(self, subject: str) -> None:
        """A record in the log `subject` has landed."""
        world, view = self._view.world, self._view
        if not view.hears_store:  # it hears once its connection is back
            self._later(max(0.0, view.no_answer_until - world.loop.time()), None)
            return
        if world.happens("hint_made_up", view):
            self._later(0.0, world.rng.choice(world.store.subjects(LOGS))[0])
        if not world.happens("hint_lost", view):
            self._later(0.0, subject)
        if world.happens("hint_repeated", view):
            self._later(world.late(), subject)

    def _later(self, seconds: float, subject: str | None) -> None:
        self._view.world.later(seconds + self._view.delay(), self._pass_on, subject)

    def _pass_on(self, subject: str | None) -> None:
        if self._is_open:
            self._view.world.loop.call_soon(self._receive, subject, context=self._view.process.context.copy())

    def close(self) -> None:
        self._is_open = False
        for home in self._homes:
            home.pop(self, None)


class Indexed(Link):
    """The index of owners as a process sees it: always late, by up to `index_s`, with former owners, and without what it has lost."""

    @property
    def outside(self) -> Outside | None:
        """In some worlds another system writes a stream."""
        foreign = self.world.foreign
        return None if foreign is None else SeenStream(foreign, self, self._look)

    def watch(self, pattern: str, wake: Callable[[], None]) -> Watch:
        """What is stored wakes, late or not at all."""
        raise NotImplementedError

    async def _look(self, what: str, subject: str, find: Callable[[], T]) -> T:
        """A call that reads."""
        raise NotImplementedError

    def has_owner(self, subject: str, seq: int, owner: str) -> None:
        """An ownership record has landed."""
        if self.world.happens("index_lost", self):
            self.world.store.lost.add((subject, seq))
        if self.world.happens("index_anew", self):
            self.world.remake_index()
        for hearer in [*self.network.hearers.get(owner, ())]:
            hearer.tell(subject)

    async def owned(self, owner: str, source: Source = "index") -> list[str]:
        """An index that was made anew is filled from the oldest record on."""
        world = self.world
        upto = world.known_before(world.faults.index_s * world.rng.random()) if source == "index" else None
        if source == "settled index":
            await asyncio.sleep(world.faults.index_s * world.rng.random() + world.index_fills_s)
            if world.happens("marker_late", self):
                raise StoreUnreachable("The index of owners is behind; try again.")
        if upto is not None and world.index_fills_s:
            upto = min(upto, round(world.store.seq * (1 - world.index_fills_s / INDEX_FILLS_S)))
        by_logs = source == "logs"
        return await self._look("owned", owner, lambda: world.store.owned(owner, upto, by_logs=by_logs))

    async def owned_by_others(self, nodes: Collection[str]) -> list[str]:
        return await self._look("owned_by_others", "", lambda: self.world.store.owned_by_others(nodes))

    def hear_owned(self, owner: str, receive: Callable[[str | None], None]) -> Hearer:
        return Hearer(self, owner, receive)

    async def forget_owned(self, owner: str, subject: str, seq: int) -> None:
        await self._look("forget_owned", subject, lambda: self.world.store.forget_owned(owner, subject, seq))

    async def mend_owned(self) -> int:
        return await self._look("mend_owned", "", self._mend)

    def _mend(self) -> int:
        if lacks := self.world.store.lacks_owned():
            self.world.counts["index mended"] += 1
            self.world.remake_index()
        return lacks
