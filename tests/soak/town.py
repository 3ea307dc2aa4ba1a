"""What goes on in a soak: a few agents that stay, and around them all that comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from types import ModuleType

import mielin_cells as cells
from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.client.operator import Operator
from mielin_cells.errors import CellError
from mielin_cells.log import ledger
from mielin_cells.log.codec import pack
from mielin_cells.log.ids import JOURNALS, LOGS, agent_of
from mielin_cells.membership import heartbeat, vacant, watch
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.heartbeat import Listener, Speaker
from mielin_cells.migration.audit import MigrationAuditLog
from mielin_cells.node import failover
from mielin_cells.node.failover import Failover
from mielin_cells.node.moves import manager, settling
from mielin_cells.node.node import Node
from mielin_cells.settings import Settings
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.tasks import recent
from soak.sizes import Series, resident, settled, size_of

SETTINGS = Settings(
    reconcile_s=0.3, retention_s=1.0, heartbeat_s=0.2, heartbeat_misses=3, snapshot_records=64, probation_s=2.0,
    turn_deadline_s=5.0, retry_first_s=0.01, tries=2, prepare_s=2.0,
)  # fmt: skip

STAY = 8
"""Agents that stay."""
SESSIONS, GUESTS, MOVES = 12, 10, 6
"""Of each kind, so many in a round."""
ANSWER_BYTES = 50_000


AUDIT = 40
"""Entries that a node's audit keeps."""

BOUNDS: dict[ModuleType, dict[str, float]] = {
    ledger: {"ANSWERS_BYTES_MAX": 300_000, "SESSIONS_MAX": 40},
    manager: {"REPORTS_MAX": 8},
    recent: {"AGENTS_MAX": 40},
    settling: {"JOURNALS_KEPT": 3},
    failover: {"FORGET_STOPPED_S": 10.0, "FORGET_SILENT_S": 15.0},
    vacant: {"RETRY_S_MAX": 5.0},
    watch: {"LATE_KEPT_S": 5.0},
    heartbeat: {"FORGET_S": 10.0},
}
"""What is bounded by a number or a time that a short run does not come to, by a smaller one."""


class Resident(cells.Agent, name="SoakResident"):
    count: int = 0
    last: dict[str, int] = {}
    rung: int = 0

    @cells.handler
    async def add(self, n: int) -> int:
        self.count += n
        self.last[f"k{self.count % 50}"] = self.count
        cells.after(0.02, id=f"t{self.count % 20}").ring()
        return self.count

    @cells.handler
    async def ring(self) -> None:
        self.rung += 1

    @cells.handler
    async def large(self) -> bytes:
        """An answer that is kept for as long as its session may ask for it again."""
        self.count += 1
        return b"x" * ANSWER_BYTES

    @cells.handler
    async def fail(self) -> None:
        raise ValueError("as it always does")

    @cells.handler
    async def send(self, to: str) -> None:
        self.count += 1
        await cells.this().cluster.get(Resident, to).add.tell(1)


class Guest(cells.Agent, name="SoakGuest"):
    ticks: int = 0

    @cells.handler
    async def begin(self) -> None:
        cells.every(0.1, id="tick").tick()

    @cells.handler
    async def tick(self) -> None:
        self.ticks += 1


class Town:
    """`round` after `round`; what it measures is in `series`."""

    def __init__(self, substrate: Embedded, path: Path) -> None:
        self.series = Series()
        self.ended = 0
        """Agents that have ended: each keeps its id, for ever."""
        self.left = 0
        """Nodes that have come and gone."""
        self.leak: Callable[[Town], None] | None = None
        """Called in each round; for a test."""
        self.nodes: list[Node] = []
        self.client: Client
        self.listeners: dict[str, Listener] = {}
        self.keepers: dict[str, Failover] = {}
        self._substrate = substrate
        self._path = path
        self._rng = Random(1)
        self._names = itertools.count(1)

    # ---- who is there ----------------------------------------------------------------------------------------

    def connected(self) -> Client:
        return Client(self._substrate.log, self._substrate.wire, settings=SETTINGS, rng=Random(self._rng.random()))

    async def enter(self, name: str) -> Node:
        about = Announcement(classes={"SoakResident": 1, "SoakGuest": 1}, at=time.time())
        listener = self.listeners[name] = Listener()
        node = Node(
            name, self._substrate.log, self._substrate.wire, classes.get, settings=SETTINGS, rng=Random(name),
            wall=time.time, about=about, listener=listener, cluster=self.client,
        )  # fmt: skip
        node.migrations.manager.validator.audit = MigrationAuditLog(AUDIT)
        await node.start()
        self.keepers[name] = node.failover
        node.home.begin(self._beat(node, listener))
        return node

    async def _beat(self, node: Node, listener: Listener) -> None:
        speaker = Speaker(self._substrate.wire, listener)
        try:
            while not node.is_stopping:
                await speaker.beat(node.beat(), node.leads)
                await asyncio.sleep(SETTINGS.heartbeat_s)
        finally:
            speaker.close()

    async def leave(self, node: Node) -> None:
        await node.stop()
        del self.listeners[node.name], self.keepers[node.name]

    async def open(self) -> None:
        self.client = self.connected()
        await self.client.open()
        self.nodes = [await self.enter(f"node-{n}") for n in (1, 2)]
        for n in range(STAY):
            await self.client.spawn(Resident, f"r{n}")

    async def close(self) -> None:
        for node in self.nodes:
            await self.leave(node)
        await self.client.close()

    # ---- a round ---------------------------------------------------------------------------------------------

    async def round(self) -> None:
        visitor = await self.enter(f"visitor-{next(self._names)}")
        async with asyncio.TaskGroup() as group:
            for work in (self._sessions(), self._guests(), self._moves(visitor), self._letters()):
                _ = group.create_task(work)
        await self._emptied(visitor)
        await self.leave(visitor)
        self.left += 1
        if self.leak is not None:
            self.leak(self)
        await asyncio.sleep(2 * SETTINGS.reconcile_s)
        await self._measure()

    async def _sessions(self) -> None:
        for _ in range(SESSIONS):
            client = self.connected()
            await client.open()
            for n in self._rng.sample(range(STAY), 3):
                ref = client.get(Resident, f"r{n}")
                await ref.add(1)
                await ref.send.tell(f"r{(n + 1) % STAY}")
                await ref.large()
            await client.close()

    async def _guests(self) -> None:
        for _ in range(GUESTS):
            name = f"guest-{next(self._names)}"
            guest = await self.client.spawn(Guest, name)
            await guest.begin()
            await self.client.terminate(name)
            self.client.forget(self.client.session(name))
            self.ended += 1

    async def _moves(self, visitor: Node) -> None:
        for n in self._rng.sample(range(STAY), MOVES):
            to = self._rng.choice([*self.nodes, visitor]).name
            with contextlib.suppress(CellError):
                await self.client.migrate(f"r{n}", to=to)

    async def _letters(self) -> None:
        agent = f"r{self._rng.randrange(STAY)}"
        ref = self.client.get(Resident, agent)
        for _ in range(3):
            await ref.fail.tell()
        with contextlib.suppress(CellError):
            await ref.add.options(timeout=10.0)(1)
            await Operator(self.client).purge(agent, None)

    async def _emptied(self, visitor: Node) -> None:
        """Half of the visitors are drained, the others leave their agents to the keeper."""
        if self.left % 2:
            await self.client.drain(visitor.name, 5.0)
        for n in range(STAY):
            await self.client.get(Resident, f"r{n}").add.options(timeout=20.0)(1)

    # ---- measuring -------------------------------------------------------------------------------------------

    async def _measure(self) -> None:
        async with asyncio.timeout(30):
            while sum(len(node.activations.live) for node in self.nodes) < STAY:
                await asyncio.sleep(0.05)
        settled()
        note = self.series.note
        shared = [self._substrate, self._substrate.log, self._substrate.wire, self.client, *self.nodes]
        for node in self.nodes:
            live = list(node.activations.live.values())
            names = node.quarantine.seen, node.adoption.quiet  # one entry for each agent that ever was
            note(f"bytes of {node.name}", size_of(node, but=[*shared[:4], *live, *names]), 30_000)
            note(f"bytes of the keeper of {node.name}", size_of(self.keepers[node.name], but=shared), 20_000)
            note(f"bytes of the listener of {node.name}", size_of(self.listeners[node.name], but=shared), 20_000)
        note(
            "bytes of the agents",
            sum(size_of(h, but=shared) for n in self.nodes for h in n.activations.live.values()),
            300_000,
        )
        ledgers = [
            len(pack(activation.fold.ledger)) for node in self.nodes for activation in node.activations.live.values()
        ]
        note("bytes of the ledgers", sum(ledgers), 50_000)
        note("bytes of the client", size_of(self.client, but=[*shared[:3], *self.nodes]), 20_000)
        note("tasks", len(asyncio.all_tasks()), 10)
        await self._measure_store()
        note("resident bytes", resident(), 12_000_000)

    async def _measure_store(self) -> None:
        log, note = self._substrate.log, self.series.note
        subjects = await log.subjects("")
        journals = [name for name, _ in subjects if name.startswith(JOURNALS)]
        others = [
            name for name, _ in subjects
            if not name.startswith((JOURNALS, "inbox.guest-", "node.visitor-"))
            and not (name.startswith(LOGS) and agent_of(name).startswith("guest-"))
        ]  # fmt: skip
        note("journals", len(journals), 20)
        note("subjects of what is there", len(others), 5)
        entries = sum([await self._bytes_of(name) for name in (*others, *journals)])
        note("bytes stored of what is there", entries, 300_000)
        ended = [name for name, _ in subjects if "guest-" in name]
        note("bytes stored of an agent that has ended", sum([await self._bytes_of(n) for n in ended[-40:]]) / 20, 300)

    async def _bytes_of(self, subject: str) -> int:
        at, total = 0, 0
        while entries := await self._substrate.log.read(subject, at):
            at, total = entries[-1].seq, total + sum(len(entry.data) for entry in entries)
        return total


@asynccontextmanager
async def town(folder: Path) -> AsyncIterator[Town]:
    path = folder / "soak.db"
    with bounded():
        substrate = await Embedded.open(path)
        found = Town(substrate, path)
        try:
            await found.open()
            yield found
            await found.close()
        finally:
            await substrate.close()


@contextmanager
def bounded() -> Iterator[None]:
    """The smaller bounds hold until the end of the block."""
    usual = {module: {name: vars(module)[name] for name in bounds} for module, bounds in BOUNDS.items()}
    _set(BOUNDS)
    try:
        yield
    finally:
        _set(usual)


def _set(bounds: dict[ModuleType, dict[str, float]]) -> None:
    for module, values in bounds.items():
        for name, value in values.items():
            setattr(module, name, value)
