"""`mielin deploy` against a running `mielin up`, with calls that go on: processes are killed, apps are bad, operators are two."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import Deployment, Running, deployment, wait_for

from mielin_cells.client.operator import Operator
from mielin_cells.deployment.connect import Address, connected
from mielin_cells.errors import HandlerFailed

OLD = """
import mielin_cells as cells


class DeployedTill(cells.Agent):
    n: int = 0

    @cells.handler
    async def add(self, n: int) -> int:
        self.n += n
        return self.n
"""
NEW = """
import mielin_cells as cells


class DeployedTill(cells.Agent, version=2):
    total: int = 0

    @cells.upgrade(from_version=1)
    def newer(cls, old):
        return {"total": old["n"]}

    @cells.handler
    async def add(self, n: int) -> int:
        self.total += n
        return self.total
"""
BAD = NEW.replace("        self.total += n\n", "        raise ValueError('a bad version')\n")
AGENTS = 10
QUICK = ("--canary", "20", "--batch", "80", "--json")


class Traffic:
    """Calls every agent again and again; knows what each has acknowledged."""

    def __init__(self) -> None:
        self.added: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def call(self, operator: Operator, agent: str) -> None:
        while True:
            try:
                total = await operator.ask(agent, "add", ["1"])
            except HandlerFailed:
                self.failed[agent] += 1
            else:
                self.added[agent] += 1
                if total != self.added[agent]:
                    self.wrong.append(f"{agent} answered {total} to call {self.added[agent]}")
            await asyncio.sleep(0.02)

    @contextlib.asynccontextmanager
    async def flowing(self, up: Deployment) -> AsyncIterator[Operator]:
        """At its end every agent holds exactly what it has acknowledged."""
        address = json.loads((up.folder / ".mielin" / "address.json").read_text())
        async with connected(Address(address["url"]), makes=False) as client:
            operator = Operator(client)
            for number in range(AGENTS):
                await operator.spawn("DeployedTill", f"t{number}", [])
            calls = [asyncio.create_task(self.call(operator, f"t{number}")) for number in range(AGENTS)]
            try:
                yield operator
            finally:
                for call in calls:
                    call.cancel()
                ends = await asyncio.gather(*calls, return_exceptions=True)
            assert [end for end in ends if not isinstance(end, asyncio.CancelledError)] == []
            assert self.wrong == []
            for agent, added in self.added.items():
                assert await operator.ask(agent, "add", ["0"]) in (added, added + 1), (
                    agent
                )  # the last call was cancelled

    async def goes_on(self) -> None:
        """Returns once each agent has acknowledged more."""
        before = self.added.copy()
        async with asyncio.timeout(120):
            while any(self.added[agent] <= before[agent] for agent in before):
                await asyncio.sleep(0.02)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Deployment]:
    for name, text in (("app", OLD), ("new", NEW), ("bad", BAD)):
        (tmp_path / f"{name}.py").write_text(text)
    with deployment(tmp_path, nodes=2) as running:
        yield running


def is_in(phase: str, stage: int | None = None) -> Callable[[str], bool]:
    def fits(line: str) -> bool:
        event = json.loads(line)
        return event.get("phase") == phase and stage in (None, event["stage"])

    return fits


async def at(running: Running, phase: str, stage: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await asyncio.to_thread(running.out.wait, is_in(phase, stage)))
    return found


async def status(up: Deployment) -> dict[str, Any]:
    found: dict[str, Any] = await asyncio.to_thread(up.value, "deploy", "--status")
    return found


async def homes(operator: Operator) -> set[str]:
    return {info.node for info in await operator.agents()}


async def test_all_agents_come_to_new_code_though_a_new_node_is_killed_and_a_bad_version_is_undone_by_itself(
    up: Deployment,
) -> None:
    traffic = Traffic()
    async with traffic.flowing(up) as operator:
        going = up.start("deploy", "--app", "new.py", "--watch", "2", *QUICK)
        new = (await at(going, "watching", 1))["new"]
        up.process_of(new[0]).kill()
        assert (await at(going, "done"))["why"] == ""
        assert await asyncio.to_thread(going.end) == 0
        assert await homes(operator) <= set(new)
        assert {info.version for info in await operator.agents()} == {2}
        await traffic.goes_on()
        assert not traffic.failed
        table = {node.name: node.state for node in await operator.nodes()}
        assert (table["node-1"], table["node-2"]) == ("stopped", "stopped")
        # As `mielin up --app app.py` would start it the next time.
        older = await asyncio.to_thread(up.run, "node", "--name", "late", "--app", "app.py")
        assert (older.returncode, older.stdout) == (2, "")
        assert "--app app.py is older than the code of deploy" in older.stderr
        assert "DeployedTill in version 1, and the deployment runs version 2" in older.stderr
        assert "late" not in {node.name for node in await operator.nodes()}

        going = up.start("deploy", "--app", "bad.py", "--watch", "60", *QUICK)
        undone = await at(going, "undone")
        assert await asyncio.to_thread(going.end) == 4
        assert "turns of DeployedTill failed in the new code (100.0%)" in undone["why"]
        assert (undone["back"]["moved"], undone["back"]["rewound"], undone["back"]["stay"]) == (2, 0, 0)
        assert await homes(operator) <= set(new)
        assert len(traffic.failed) == 2  # the canary's agents
        await traffic.goes_on()
        assert up.process.poll() is None


async def test_a_deploy_goes_on_and_back_from_other_terminals_also_when_its_operator_was_killed(up: Deployment) -> None:
    traffic = Traffic()
    async with traffic.flowing(up) as operator:
        going = up.start("deploy", "--app", "new.py", "--watch", "60", *QUICK)
        new = (await at(going, "watching", 1))["new"]
        other = await asyncio.to_thread(up.run, "deploy", "--app", "new.py", "--no-check")
        assert other.returncode == 3
        assert "is watching; end it first" in other.stderr
        assert (await asyncio.to_thread(up.run, "deploy", "--resume")).returncode == 3
        assert (await asyncio.to_thread(up.value, "deploy", "--pause"))["paused"] is True
        await asyncio.to_thread(going.out.wait, lambda line: json.loads(line).get("paused") is True)
        assert (await asyncio.to_thread(up.value, "deploy", "--resume"))["paused"] is False
        await asyncio.to_thread(going.out.wait, is_in("watching", 1), 3)

        going.signal(signal.SIGKILL)
        await asyncio.to_thread(going.end)
        assert (await status(up))["driven"] is False
        assert "nobody drives it" in (await asyncio.to_thread(up.run, "deploy", "--status")).stdout
        again = up.start("deploy", "--resume", "--json")
        assert (await at(again, "watching", 1))["new"] == new
        await traffic.goes_on()
        again.signal(signal.SIGKILL)
        await asyncio.to_thread(again.end)

        # The new code has raised the version: old nodes cannot load what it has stored.
        undoing = up.start("deploy", "--undo", "--json")
        undone = await at(undoing, "undone")
        assert await asyncio.to_thread(undoing.end) == 4
        assert (undone["back"]["moved"], undone["back"]["rewound"], undone["back"]["stay"]) == (0, 2, 0)
        assert await homes(operator) <= {"node-1", "node-2"}
        assert {info.version for info in await operator.agents()} == {1}
        assert (await asyncio.to_thread(up.run, "deploy", "--undo")).returncode == 3
        await traffic.goes_on()
    assert not traffic.failed


async def test_an_app_that_cannot_be_used_begins_nothing_or_is_undone_and_the_old_nodes_go_on(up: Deployment) -> None:
    traffic = Traffic()
    async with traffic.flowing(up):
        broken, endless = up.folder / "broken.py", up.folder / "endless.py"
        broken.write_text("import nothing_of_this_name\n")
        endless.write_text("import time\ntime.sleep(1000)\n")
        done = await asyncio.to_thread(up.run, "deploy", "--app", "broken.py")
        assert (done.returncode, done.stdout) == (2, "")
        lacks = up.folder / "lacks.py"
        lacks.write_text("import mielin_cells as cells\nclass DeployedOther(cells.Agent):\n    n: int = 0\n")
        done = await asyncio.to_thread(up.run, "deploy", "--app", "lacks.py")
        assert done.returncode == 3
        assert "has no class 'DeployedTill'" in done.stdout
        assert "There was no deploy" in (await asyncio.to_thread(up.run, "deploy", "--status")).stderr

        done = await asyncio.to_thread(up.run, "deploy", "--app", "broken.py", "--no-check", "--json")
        assert done.returncode == 4
        assert "cannot be started: --app" in json.loads(done.stdout.splitlines()[-1])["why"]
        words = ("deploy", "--app", "endless.py", "--no-check", "--start-timeout", "3", "--json")
        done = await asyncio.to_thread(up.run, *words)
        assert done.returncode == 4
        assert "did not serve within 3 s" in json.loads(done.stdout.splitlines()[-1])["why"]
        await traffic.goes_on()
        assert up.process.poll() is None
    assert not traffic.failed
    wait_for(lambda: len(up.tree()) == 4, "the end of the new nodes' processes")  # up, its server and two nodes
