"""Node processes and a store that is away: when they start, and when everything dies under load and starts again."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import signal
from pathlib import Path
from typing import Any

from support.nats_servers import WAIT_S, NatsServer, free_ports, opened
from support.processes import APP, Running

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.client.operator import Operator
from mielin_cells.substrate.jetstream import JetStream

AGENTS = 12
KILLS = 2


def event(line: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line)
    return found


@contextlib.contextmanager
def node(folder: Path, name: str, url: str, *options: str) -> Any:
    if not (folder / "app.py").exists():
        (folder / "app.py").write_text(APP)
    running = Running(folder, "node", "--name", name, "--app", "app.py", "--connect", url, "--json", *options)
    try:
        yield running
    finally:
        running.close()


async def test_a_node_that_starts_before_its_server_says_so_once_and_serves_when_it_is_there(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "server", {})
    (server.port,) = free_ports(1)
    with node(tmp_path, "n1", server.url) as running:
        waiting = event(await asyncio.to_thread(running.out.wait, lambda line: event(line)["event"] == "waiting"))
        assert "does not answer" in waiting["reason"]
        try:
            await server.start()
            await asyncio.to_thread(running.out.wait, lambda line: event(line)["event"] == "serving")
            assert [event(line)["event"] for line in running.out.all()] == ["waiting", "serving"]
            running.signal(signal.SIGTERM)
            await asyncio.to_thread(running.must_end, 0)
        finally:
            server.kill()


def test_waiting_has_a_limit_if_one_is_given_and_ends_at_a_signal(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = f"nats://127.0.0.1:{port}"
    with node(tmp_path, "n1", url, "--wait", "0.3") as limited, node(tmp_path, "n2", url) as told:
        limited.must_end(1)
        assert "does not answer" in limited.out.all()[-1]
        told.out.wait(lambda line: event(line)["event"] == "waiting")
        told.signal(signal.SIGTERM)
        told.must_end(0)


async def test_a_node_ends_at_once_if_waiting_cannot_help(tmp_path: Path) -> None:
    locked = {"authorization": {"user": "u", "password": "secret"}}
    for folder, settings in (("locked", locked), ("plain", {"jetstream": None})):
        server = NatsServer(tmp_path / folder, settings)
        await server.start()
        try:
            with node(tmp_path, "n1", server.url) as running:
                await asyncio.to_thread(running.must_end, 1)
                last = event(running.out.all()[-1])
                assert last["error"]["code"] == ("AuthFailed" if folder == "locked" else "JetStreamDisabled")
                assert not any("waiting" in line for line in running.out.all())
        finally:
            server.kill()


# ---- everything dies, under load -----------------------------------------------------------------------------------


class Tally(cells.Agent):
    n: int = 0

    @cells.handler
    async def add(self) -> int:
        self.n += 1
        return self.n

    @cells.handler
    async def count(self) -> int:
        return self.n


class Load:
    """Calls agents from several clients at once, and keeps what was acknowledged and what was sent at all."""

    def __init__(self, substrate: JetStream) -> None:
        self.client = Client(substrate.log, substrate.wire)
        self.acknowledged: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self.tasks = [asyncio.create_task(self._call(f"a{n}")) for n in range(AGENTS)]

    async def _call(self, agent: str) -> None:
        while True:
            self.sent[agent] = self.sent.get(agent, 0) + 1
            before = self.acknowledged.get(agent, 0)
            n = await self.client.get(Tally, agent).add.options(timeout=WAIT_S * 2)()
            assert n > before  # an acknowledged effect that is gone would be counted again
            self.acknowledged[agent] = n

    async def until(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S * 2):
            while sum(self.acknowledged.values()) < count or len(self.acknowledged) < AGENTS:
                await asyncio.wait(self.tasks, timeout=0.01)
                for task in self.tasks:
                    if task.done():
                        task.result()


async def test_after_everything_was_killed_under_load_every_acknowledged_effect_is_there(tmp_path: Path) -> None:
    """Nodes and server, by `kill -9`, in mid-work; a client that lives sees late answers, and none that are wrong."""
    server = NatsServer(tmp_path / "server", {})
    await server.start()
    nodes: list[Running] = []
    (tmp_path / "app.py").write_text(f"import mielin_cells as cells\n\n\n{inspect.getsource(Tally)}")

    def start(name: str) -> Running:
        return Running(tmp_path, "node", "--name", name, "--app", "app.py", "--connect", server.url, "--json")

    names = ("n1", "n2", "n3")
    try:
        async with opened(server.url) as substrate:
            nodes = [start(name) for name in names]
            for running in nodes:
                await asyncio.to_thread(running.out.wait, lambda line: '"serving"' in line)
            load = Load(substrate)
            await load.client.open()
            for n in range(AGENTS):
                await load.client.on(names[n % 3]).spawn(Tally, f"a{n}")
            load.start()
            for kill in range(1, KILLS + 1):
                await load.until(200 * kill)
                for running in nodes:
                    running.process.kill()
                server.kill()
                for running in nodes:
                    await asyncio.to_thread(running.close)
                nodes = [start(name) for name in names]  # before their server: they wait for it
                await server.start()
            await load.until(200 * (KILLS + 1))
            for task in load.tasks:
                task.cancel()
            await asyncio.gather(*load.tasks, return_exceptions=True)
            for agent, acknowledged in load.acknowledged.items():
                found = await load.client.get(Tally, agent).count()
                assert acknowledged <= found <= load.sent[agent]
            await load.client.close()
        async with opened(server.url) as substrate:
            fresh = Operator(Client(substrate.log, substrate.wire))
            infos = await fresh.agents()
            assert [info.state for info in infos] == ["Running"] * AGENTS
    finally:
        for running in nodes:
            running.close()
        server.kill()
