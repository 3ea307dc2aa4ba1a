"""`cli.fleet` with real processes: what it notices of them, whatever they leave behind, and what it tells."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mielin_cells.deployment import fleet as fleets
from mielin_cells.deployment.connect import Address
from mielin_cells.deployment.fleet import Child, Fleet

WAIT_S = 60.0
LINGERS = "import subprocess, sys; child = subprocess.Popen(['sleep', '30']); print(child.pid, flush=True); sys.exit(9)"
SERVES = """
import json, os, signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job begins with it ignored
child = subprocess.Popen(['sleep', '30'])
print(child.pid, flush=True)
print('{"event": "serving"}', '[1]', '{"error": "no object"}', '{"event": "serving", "node": "node-1"}', sep='\\n')
print(json.dumps({"event": "serving", "node": "node-1", "incarnation": 1, "process": os.getpid()}), flush=True)
sys.stdin.read()
"""


class Told:
    """What a fleet says, and a wait for it."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._came = asyncio.Event()

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self._came.set()

    async def wait(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            while not (found := [event for event in self.events if fits(event)]):
                self._came.clear()
                await self._came.wait()
        return found[0]


class Coded(Fleet):
    """Its children run the given code instead of a node."""

    code = ""

    def _command(self, child: Child) -> list[str]:
        return [sys.executable, "-c", self.code]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(fleets, "LAST_WORDS_S", 0.05)
    monkeypatch.setattr(fleets, "RESTART_S_MIN", 0.05)
    return Told()


def fleet_of(code: str, told: Told) -> Coded:
    fleet = Coded("app.py", Address("nats://user:secret@host:1"), told)
    fleet.code = code
    return fleet


async def end(pid: int) -> None:
    process = await asyncio.create_subprocess_exec("kill", "-9", str(pid))
    await process.wait()


async def test_a_node_that_has_ended_is_noticed_while_its_own_children_hold_its_pipes(told: Told) -> None:
    child, fleet = Child("node-1"), fleet_of(LINGERS, told)
    async with asyncio.timeout(WAIT_S):
        assert await fleet._run(child) == 9
    await end(int(told.events[0]["line"]))


async def test_a_fleet_stops_though_children_of_its_nodes_live_on(told: Told) -> None:
    fleet = fleet_of(SERVES, told)
    fleet.start(1)
    grandchild = int((await told.wait(lambda event: event["event"] == "log"))["line"])
    async with asyncio.timeout(WAIT_S):
        await fleet.serving()
        await fleet.stop()
    assert [child.state for child in fleet.children] == ["stopped"]
    lines = [event["line"] for event in told.events if event["event"] == "log"]
    assert '{"error": "no object"}' in lines  # what handlers print is nobody's event, and ends nothing
    assert '{"event": "serving", "node": "node-1"}' in lines
    await end(grandchild)


async def test_a_process_that_cannot_be_started_is_reported_and_tried_again(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = asyncio.create_subprocess_exec, 0

    async def refuses_twice(*words: Any, **options: Any) -> asyncio.subprocess.Process:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await real(*words, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuses_twice)
    fleet = fleet_of(SERVES, told)
    fleet.start(1)
    async with asyncio.timeout(WAIT_S):
        await fleet.serving()
    crashes = [event for event in told.events if event.get("state") == "crashed"]
    assert ["Resource temporarily unavailable" in event["reason"] for event in crashes] == [True, True]
    await fleet.stop()
    await end(int(next(event["line"] for event in told.events if event["event"] == "log")))


async def test_a_node_that_has_crashed_and_is_replaced_is_not_started_again(told: Told) -> None:
    fleet = fleet_of("import sys; sys.exit(9)", told)
    fleet.start(2)
    first, second = fleet.children
    await told.wait(lambda event: event.get("node") == "node-1" and event.get("state") == "crashed")
    fleet.code = SERVES.replace("node-1", "node-3")
    fleet.replace(first)
    await told.wait(lambda event: event.get("node") == "node-3" and event.get("state") == "serving")
    fleet.code = SERVES.replace("node-1", "node-4")
    async with asyncio.timeout(WAIT_S):
        code = await fleet.retire(second)
    assert code in (9, -signal.SIGTERM)
    assert [child.name for child in fleet.children] == ["node-3", "node-4"]
    assert (first.state, second.state) == ("stopped", "stopped")
    async with asyncio.timeout(WAIT_S):
        await fleet.stop()
    assert not [child for child in (first, second, *fleet.children) if child.lives]
    for event in told.events:
        if event["event"] == "log" and event["line"].isdecimal():
            await end(int(event["line"]))


async def test_nodes_do_not_import_what_stands_beside_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('not Python's own')\n")
    (tmp_path / "nats.py").write_text("raise RuntimeError('not ours')\n")
    (tmp_path / "neighbour.py").write_text("N = 1\n")
    (tmp_path / "app.py").write_text(
        "import random\nfrom neighbour import N\nimport mielin_cells as cells\n\n\nclass Good(cells.Agent):\n    n: int = N\n"
    )
    monkeypatch.chdir(tmp_path)
    told = Told()
    fleet = Fleet("app.py", Address("nats://user:secret@127.0.0.1:1"), told)
    fleet.start(1)
    line = (await told.wait(lambda event: event["event"] == "log"))["line"]
    assert line.startswith("waits until its server answers: ")
    assert "secret" not in str(told.events)
    await fleet.stop()
