"""Cells of the fault matrix with real processes: a process stops itself at a moment of a move, and then something goes wrong.

`Site` is a server, a node that nothing happens to, and a client; it lasts for many cells.  A `Cell` has two nodes of its own, each
behind a proxy, and an agent that is to move from the one to the other while it is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from math import inf
from pathlib import Path
from typing import Any

from torture.agents import TOKENS, Purse
from torture.check import Check, Recording, Report, Timed, entries_of, has_arrived
from torture.nodes import NodeProcess

from mielin_cells.agents.reports import MigrationReport
from mielin_cells.client.client import Client
from mielin_cells.client.moves import plan_move, watch_move
from mielin_cells.deployment.connect import Address, connected
from mielin_cells.errors import Fenced, NoSuchAgent, RetryError
from mielin_cells.log.ids import inbox_subject, log_subject
from mielin_cells.log.records import Accepted, AnyRecord, Claimed, HandedOff, decode_record
from mielin_cells.migration.journal import Journal, attempt_id
from mielin_cells.settings import Settings
from mielin_cells.store import journal
from mielin_cells.substrate.jetstream import JetStream
from mielin_cells.substrate.ports import Conflict
from mielin_cells.testing.checkers.scene import Call, Observed
from support.nats_servers import NatsServer, Proxy, nats_server, opened, proxied

HANDOVER_S, PROBATION_S = 1.0, 3.0

CONFIG = f"""
[settings]
prepare_s = 5.0
pause_s = 5.0
handover_s = {HANDOVER_S}
probation_s = {PROBATION_S}
reconcile_s = 0.3
migration_s = 20.0
snapshot_records = 1000000  # behind snapshots logs are trimmed, and the checkers read them whole
snapshot_bytes = 1000000000
heartbeat_misses = 60  # who goes on is the cell's to say, and no keeper's

[recovery]
max_retries = 2
initial_retry_delay_secs = 0.1
max_retry_delay_secs = 0.2
recovery_timeout_secs = 30
"""

WAIT_S = 120.0
"""Nothing here takes that long, also on a busy machine."""

POLL_S = 0.02

BUSY = 3
"""Calls of each kind that must have been answered before the move, and again behind it."""

SPARE = "spare"


class Site:
    """`site()` is the only way to make one."""

    def __init__(self, folder: Path, server: NatsServer, client: Client, raw: JetStream) -> None:
        self.folder = folder
        self.server = server
        self.client = client
        self.raw = raw
        self.numbers = itertools.count(1)
        self.config = folder / "mielin.toml"
        self.config.write_text(CONFIG)

        self.options = ("--config", str(self.config))
        """Of a node that does not stop itself."""

    def node(self, name: str, url: str, *options: str) -> NodeProcess:
        return NodeProcess(self.folder, name, url, *self.options, *options)


@contextlib.asynccontextmanager
async def site(folder: Path) -> AsyncIterator[Site]:
    settings = Settings(migration_s=20.0, probation_s=PROBATION_S, ask_timeout_s=WAIT_S)
    async with (
        nats_server(folder / "server") as server,
        opened(server.url) as raw,
        connected(Address(server.url), settings) as client,
    ):
        made = Site(folder, server, client, raw)
        spare = made.node(SPARE, server.url)
        try:
            await spare.start()
            await spare.serving()
            yield made
        finally:
            server.signal(signal.SIGCONT)
            await spare.kill()


class Cell:
    """`cell()` makes one."""

    def __init__(self, where: Site, source: NodeProcess, target: NodeProcess, links: tuple[Proxy, Proxy]) -> None:
        number = next(where.numbers)
        self.site, self.source, self.target = where, source, target
        self.source_link, self.target_link = links
        self.agent, self.peer = f"a{number}", f"b{number}"
        self.recording = Recording([self.agent, self.peer])
        self.migration = ""
        self.report: MigrationReport | None = None
        self._is_over = False
        self._acked = 0

    @property
    def client(self) -> Client:
        return self.site.client

    @property
    def attempt(self) -> str:
        """What the agent's log calls the first one."""
        return attempt_id(self.migration, 1)

    # ---- calls -----------------------------------------------------------------------------------------------

    async def _calls(self, sender: str, kind: str, agent: str, to: str) -> None:
        bound: Any = getattr(self.client.get(Purse, agent), kind)
        for n in itertools.count(1):
            if self._is_over:
                return
            call = Call(agent, sender, n, True)
            self.recording.calls.append(Timed(call, 0.0))
            with contextlib.suppress(RetryError):
                call.answer = await bound(sender, n, *((to, n % 5) if kind in ("give", "hand") else ()))
                call.acked = True
                self._acked += 1
            await asyncio.sleep(0.005)

    async def go_on(self) -> None:
        """Returns when more calls were answered, of each kind."""
        until = self._acked + 3 * BUSY
        await self.comes(lambda: self._acked >= until, "the calls are not answered any more")

    async def comes(self, is_so: Callable[[], bool | Awaitable[bool]], otherwise: str) -> None:
        """Watches for what processes do."""
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    found = is_so()
                    if found is True or (not isinstance(found, bool) and await found):
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise AssertionError(f"{otherwise}\n{self.source.logged()}\n{self.target.logged()}") from None

    # ---- the log ---------------------------------------------------------------------------------------------

    async def records(self) -> list[AnyRecord]:
        entries = await self.site.raw.log.read(log_subject(self.agent), 0, 10_000)
        return [decode_record(entry.data, self.agent) for entry in entries]

    async def has(self, kind: type[HandedOff] | type[Accepted]) -> bool:
        return any(isinstance(record, kind) and record.migration == self.attempt for record in await self.records())

    async def is_claimed(self) -> bool:
        return any(isinstance(record, Claimed) for record in await self.records())

    async def journal(self) -> Journal:
        journals, unreadable = await journal.all_of(self.site.raw.log, self.agent)
        assert (len(journals), unreadable) == (1, [])
        return journals[0]

    # ---- the move --------------------------------------------------------------------------------------------

    async def begin(self, watches: bool) -> asyncio.Task[None]:
        """Plans the move and tells the source; `watches`: until its end is told."""
        request, source = await plan_move(self.client, self.agent, self.target.name)
        assert source == self.source.name
        self.migration = request.migration

        async def moving() -> None:
            if watches:
                self.report = await watch_move(self.client, request, source)

        if not watches:
            await self.client.request(source, request, 5.0)
        return asyncio.create_task(moving())

    async def play(
        self, halted: NodeProcess, deed: Callable[[Cell, NodeProcess], Awaitable[None]], dies: bool
    ) -> Check:
        """The whole cell: calls, the move, the stop, the deed, and what is left then.  `dies`: the client that wanted the move."""
        client = self.client
        await client.on(self.source.name).spawn(Purse, self.agent)
        await client.on(SPARE).spawn(Purse, self.peer)
        pairs = ((self.agent, self.peer), (self.peer, self.agent))
        kinds = [("note", pairs[0]), ("give", pairs[0]), ("hand", pairs[1])]
        async with asyncio.TaskGroup() as group:
            for number, (kind, (agent, to)) in enumerate(kinds):
                group.create_task(self._calls(f"{self.agent}.{number}", kind, agent, to))
            await self.go_on()
            moving = await self.begin_from(dies, halted)
            await self.reaches(halted)
            await deed(self, halted)
            if moving is not None:
                async with asyncio.timeout(WAIT_S):
                    await moving
            await self.comes(self._is_served, "the agent is not served any more")
            await self.go_on()
            self._is_over = True
        return await self._checked()

    async def reaches(self, halted: NodeProcess) -> None:
        """Returns once the process has stopped itself at its step."""
        await self.comes(lambda: halted.is_stopped, f"{halted.name} does not come to its step")

    async def begin_from(self, dies: bool, halted: NodeProcess) -> asyncio.Task[None] | None:
        """The move's task; None if its client is a process that is killed as soon as the move has come to the stop."""
        if not dies:
            return await self.begin(watches=True)
        command = NodeProcess.command("migrate", self.agent, "--to", self.target.name)
        other = await asyncio.create_subprocess_exec(
            *command, env=NodeProcess.environment(self.site.server.url), stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            await self.reaches(halted)
            assert other.returncode is None
        finally:
            with contextlib.suppress(ProcessLookupError):
                other.kill()
            await other.wait()
        self.migration = (await self.journal()).migration
        return None

    async def _is_served(self) -> bool:
        """The log names an owner outside of any probation, and it hosts the agent."""
        with contextlib.suppress(RetryError, NoSuchAgent, Fenced):
            found = await self.client.show(self.agent)
            return (found.node, found.epoch) == await self.client.owner(self.agent)
        return False

    async def _checked(self) -> Check:
        shown: dict[str, Observed] = {}

        async def rests() -> bool:
            for agent in self.recording.agents:
                shown[agent] = Observed(*await self.client.get(Purse, agent).show())
            return has_arrived(shown)

        await self.comes(rests, "what the agents sent does not arrive")
        if self.report is not None:
            self.recording.reports.append(Report(self.report, 0.0, inf))
        check = Check(self.recording, TOKENS)
        log = self.site.raw.log
        await check.look(log, shown, await entries_of(log, self.recording.agents))
        return check

    # ---- deeds -----------------------------------------------------------------------------------------------

    async def claimed_by_spare(self) -> None:
        """An operator decides that whoever owns the agent is gone."""
        await self.client.claim(self.agent, to=SPARE)

    async def duplicate(self) -> None:
        """All that the agent was sent, its last record and the order to move come a second time."""
        log = self.site.raw.log
        for entry in await log.read(inbox_subject(self.agent), 0, 10_000):
            await log.append(inbox_subject(self.agent), entry.data)
        last = await log.last(log_subject(self.agent))
        assert last is not None
        again = await log.append(log_subject(self.agent), last.data, decode_record(last.data, self.agent).prev)
        assert isinstance(again, Conflict)


@contextlib.asynccontextmanager
async def cell(where: Site, step: str, side: str) -> AsyncIterator[tuple[Cell, NodeProcess]]:
    """A cell, and its process that stops at the step; both sides serve."""
    number = next(where.numbers)
    async with proxied(where.server) as source_link, proxied(where.server) as target_link:
        nodes = []
        for name, link in (("source", source_link), ("target", target_link)):
            options = ("--faults", f"{step}:1:1") if name == side else ()
            nodes.append(where.node(f"{name}-{number}", link.url, *options))
        source, target = nodes
        made = Cell(where, source, target, (source_link, target_link))
        try:
            await asyncio.gather(source.start(), target.start())
            await asyncio.gather(source.serving(), target.serving())
            yield made, source if side == "source" else target
            for agent in made.recording.agents:  # or the spare node would take them over, one after the other
                await where.client.terminate(agent)
        finally:
            where.server.signal(signal.SIGCONT)
            await asyncio.gather(source.kill(), target.kill())
