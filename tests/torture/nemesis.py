"""What goes wrong: processes are killed and stopped, links are cut in one direction, servers die and fill up, and the index of
owners is deleted.

A node has one trouble at a time, and so has the store; two troubles of different ones may overlap.  Every deed undoes itself, and
`heal` undoes what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

from support.nats_servers import Proxy

from torture.nodes import NodeProcess
from torture.stores import Store

REST_S = 1.1
"""Mean time between two events: some last longer and keep others from happening."""

LEASE_S = 2.5
"""After so long a silence a node counts as gone, by default."""

NODE_DEEDS = {"kill": 8, "stop": 3, "stop past the lease": 4, "cut": 8, "claim": 1}
LEADER_DEEDS = {"kill": 1, "stop past the lease": 1}
"""To the node that leads failover, on purpose."""
LEADER_SHARE = 0.15

STORE_DEEDS = {
    "kill server": 3,
    "stop server": 3,
    "kill leader": 2,
    "kill index leader": 2,
    "kill all servers": 1,
    "delete index": 3,
    "stream full": 2,
    "disk full": 1,
}
"""By weight.  Of a server alone, which is the leader and all there are, it is always "kill server"."""

STORE_SHARE = 0.22
HARMED_MAX = 2
"""Nodes in trouble at the same time."""

RESTART_S = 0.5


class Nemesis:
    """`rage` until it is cancelled, then `heal`."""

    def __init__(
        self, store: Store, nodes: list[NodeProcess], links: dict[str, Proxy], rng: Random,
        claim: Callable[[str], Awaitable[None]], leading: Callable[[], Awaitable[str]], diary: Path,
    ) -> None:  # fmt: skip
        self._store = store
        self._nodes = nodes
        self._links = links
        self._rng = rng
        self._claim = claim
        self._leading = leading
        """Which node leads failover; "" if nobody says."""
        self._diary = diary
        """A line is added for each event."""
        self.events: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        """Nodes that ended without being killed, by exit code."""
        self.broken: list[str] = []
        """Deeds that failed themselves."""
        self._harmed: dict[str, asyncio.Task[None]] = {}
        """Who is in trouble: nodes by name, and the store."""
        self._raging: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._dead: set[str] = set()
        """Nodes that were killed and are to stay so for a moment."""
        self._sick: set[int] = set()
        """Servers that could not write, and have to be started again."""

    def begin(self) -> None:
        self._raging = asyncio.create_task(self._rage())
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep())

    async def _rage(self) -> None:
        while True:
            await asyncio.sleep(self._rng.random() * 2 * REST_S)
            if "store" not in self._harmed and self._rng.random() < STORE_SHARE:
                self._harm("store", self._store_deed())
                continue
            if len(self._harmed.keys() - {"store"}) >= HARMED_MAX:
                continue
            leader = await self._leading() if self._rng.random() < LEADER_SHARE else ""
            fit = [node for node in self._nodes if node.name not in self._harmed and node.is_serving]
            if leading := [node for node in fit if node.name == leader]:
                self._harm(leader, self._node_deed(leading[0], LEADER_DEEDS, " failover leader"))
            elif fit:
                node = self._rng.choice(fit)
                self._harm(node.name, self._node_deed(node, NODE_DEEDS))

    def _harm(self, who: str, deed: Awaitable[None]) -> None:
        async def harm() -> None:
            try:
                await deed
            except (
                OSError,
                AssertionError,
                TimeoutError,
            ) as error:  # a server that does not start again is a finding, too
                self.broken.append(f"{who}: {error!r}")
            finally:
                self._harmed.pop(who, None)

        self._harmed[who] = asyncio.create_task(harm())

    def _told(self, what: str, who: str) -> None:
        self.events[what] += 1
        now = time.time()
        with self._diary.open("a") as file:
            file.write(f"{time.strftime('%H:%M:%S', time.localtime(now))}.{int(now % 1 * 1000):03} {what}: {who}\n")

    # ---- nodes -----------------------------------------------------------------------------------------------

    async def _node_deed(self, node: NodeProcess, deeds: dict[str, int], who: str = "") -> None:
        rng = self._rng
        match rng.choices([*deeds], [*deeds.values()])[0]:
            case "kill":
                self._told(f"kill{who}", node.name)
                self._dead.add(node.name)
                try:
                    await node.kill()
                    await asyncio.sleep(rng.random() * rng.choice((0.1, 4.0)))
                finally:
                    self._dead.discard(node.name)
            case "stop":
                await self._stop(node, "stop", rng.random() * LEASE_S)
            case "stop past the lease":
                await self._stop(node, f"stop{who} past the lease", LEASE_S * (1 + rng.random() * 2))
            case "claim":
                await self._claim(node.name)
            case _:
                await self._cut(node)

    async def _stop(self, node: NodeProcess, what: str, seconds: float) -> None:
        self._told(what, node.name)
        try:
            node.signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
        finally:
            node.signal(signal.SIGCONT)

    async def _cut(self, node: NodeProcess) -> None:
        """One direction or both; then what waited is delivered late, or lost with its connections."""
        rng, link = self._rng, self._links[node.name]
        way = rng.choice(("to the store", "from the store", "both ways"))
        self._told(f"cut {way}", node.name)
        try:
            link.hold(to_server=way != "from the store", to_client=way != "to the store")
            await asyncio.sleep(rng.random() * rng.choice((1.0, 8.0)))
        finally:
            if rng.random() < 0.5:
                link.cut()
            link.release()

    # ---- the store -------------------------------------------------------------------------------------------

    async def _store_deed(self) -> None:
        rng, store = self._rng, self._store
        number, stream = rng.randrange(len(store.servers)), rng.choice(store.streams)
        match rng.choices([*STORE_DEEDS], [*STORE_DEEDS.values()])[0]:
            case "kill leader" | "kill index leader" | "kill server" | "kill all servers" if len(store.servers) == 1:
                await self._kill("kill server", [0])
            case "kill leader":
                await self._kill("kill leader", [await store.leader(stream)])
            case "kill index leader":
                await self._kill("kill index leader", [await store.leader(await store.index())])
            case "delete index":
                if await store.delete_index():
                    self._told("delete index", store.name)
            case "kill server":
                await self._kill("kill server", [number])
            case "kill all servers":
                await self._kill("kill all servers", [*range(len(store.servers))])
            case "stop server":
                self._told("stop server", f"s{number}")
                try:
                    store.servers[number].signal(signal.SIGSTOP)
                    await asyncio.sleep(rng.random() * rng.choice((0.5, 5.0)))
                finally:
                    store.servers[number].signal(signal.SIGCONT)
            case "stream full":
                await self._fill(stream)
            case _:
                self._told("disk full", f"s{number}")
                self._sick.add(number)
                store.limit_files(number)
                await asyncio.sleep(0.2 + rng.random() * 2)
                await self._cure()

    async def _cure(self) -> None:
        for number in [*self._sick]:
            await self._store.kill(number)
            await self._store.start(number)  # without the limit
            self._sick.discard(number)

    async def _kill(self, what: str, numbers: list[int]) -> None:
        self._told(what, ", ".join(f"s{number}" for number in numbers))
        for number in numbers:
            await self._store.kill(number)
        await asyncio.sleep(self._rng.random() * self._rng.choice((0.1, 3.0)))
        for number in numbers:
            await self._store.start(number)

    async def _fill(self, stream: str) -> None:
        if await self._store.fill(stream):
            self._told("stream full", stream)
            await asyncio.sleep(self._rng.random() * 2)
        for _ in range(20):
            if await self._store.empty(stream):
                return
            await asyncio.sleep(0.2)

    # ---- what mends ------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Whoever looks after the processes: a node that has ended is started again."""
        while True:
            for node in self._nodes:
                if not node.is_running and node.name not in self._dead:
                    if node.starts and node.code != -signal.SIGKILL:
                        self.ended[f"exit code {node.code}"] += 1
                    await node.start()
            await asyncio.sleep(RESTART_S / 5)

    async def heal(self) -> None:
        """No more goes wrong, and everything runs; returns when every node serves."""
        if self._raging is not None:
            self._raging.cancel()
        harmed = [*self._harmed.values()]
        for task in harmed:
            task.cancel()
        await asyncio.gather(*harmed, *filter(None, [self._raging]), return_exceptions=True)
        for node in self._nodes:
            node.signal(signal.SIGCONT)
        for link in self._links.values():
            link.release()
        for server in self._store.servers:
            server.signal(signal.SIGCONT)
        self._dead.clear()
        await self._cure()
        await self._store.heal()
        for node in self._nodes:
            await node.serving()

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        for node in self._nodes:
            await node.kill()
