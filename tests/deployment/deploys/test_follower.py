"""A fleet that follows a deploy: what it says of new nodes whose app cannot be used."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.nats_servers import WAIT_S, NatsServer
from support.waiting import until

from mielin_cells.deployment.connect import Address, open_substrate
from mielin_cells.deployment.deploys.follower import Follower, follow_deploys
from mielin_cells.deployment.fleet import Child, Fleet
from mielin_cells.errors import StoreUnreachable
from mielin_cells.policy.deploys.events import Began, Failed
from mielin_cells.policy.deploys.machine import Deploy, Phase
from mielin_cells.store.deploys import Deploys
from mielin_cells.substrate.embedded import Embedded

UNUSABLE = """
import sys
print('{"error": {"message": "--app new.py cannot be imported"}}', flush=True)
sys.stdin.readline()
sys.exit(2)
"""
"""A node whose app cannot be used, and which waits for a line before it says so."""

SERVES = "import sys; sys.stdin.read()"
BEGAN = Began(deploy="d-1", app="new.py", old=["o1"], new=["n1", "n2", "n3"], stages=[100], fleet="f")


class Gated(Fleet):
    """Its children run given code instead of a node; new nodes end once they are let."""

    def _command(self, child: Child) -> list[str]:
        return [sys.executable, "-c", UNUSABLE if child.app else SERVES]

    def let(self, *names: str) -> None:
        for child in self._all:
            if child.name in names and child.process is not None and child.process.stdin is not None:
                child.process.stdin.write(b"\n")


class Flaky:
    """A log whose next appends to the log of deploys raise."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.fails = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append(self, subject: str, data: bytes, expect: int | None = None) -> Any:
        if self.fails:
            self.fails -= 1
            raise StoreUnreachable("The store does not answer.")
        return await self._log.append(subject, data, expect)


@asynccontextmanager
async def followed() -> AsyncIterator[tuple[Gated, Flaky, Callable[[], Deploy]]]:
    """A fleet that has started the nodes of a deploy; the last value reads what has become of it."""
    substrate = await Embedded.open()
    log = Flaky(substrate.log)
    seen = Deploys(substrate.log)
    fleet = Gated("app.py", Address("nats://host:1"), lambda event: None, name="f")
    following = asyncio.create_task(Follower(fleet, log).run())  # type: ignore[arg-type]
    reading = asyncio.create_task(seen.follow(lambda: None))
    try:
        assert await Deploys(substrate.log).append(BEGAN) == ""
        names = {"o1", "n1", "n2", "n3"}
        await until(lambda: {child.name for child in fleet.children if child.lives} == names)

        def deploy() -> Deploy:
            assert seen.deploy is not None
            return seen.deploy

        yield fleet, log, deploy
    finally:
        for task in (following, reading):
            task.cancel()
        await asyncio.gather(following, reading, return_exceptions=True)
        fleet.kill()
        await fleet.stop()
        await substrate.close()


async def test_new_nodes_that_all_fail_for_one_reason_undo_the_deploy_and_do_not_pause_the_undo() -> None:
    async with followed() as (fleet, _, deploy):
        fleet.let("n1", "n2", "n3")
        await until(lambda: {child.name for child in fleet.children} == {"o1"})
        assert (deploy().phase, deploy().is_paused) == (Phase.TAKING_BACK, False)
        assert "cannot be started: --app new.py cannot be imported" in deploy().why


async def test_a_failure_that_the_store_did_not_take_is_said_again() -> None:
    async with followed() as (fleet, log, deploy):
        log.fails = 2
        fleet.let("n1")
        await until(lambda: deploy().phase is Phase.TAKING_BACK)
        assert log.fails == 0
        await until(lambda: {child.name for child in fleet.children} == {"o1", "n2", "n3"})


async def test_a_node_that_fails_while_its_deploy_is_undone_is_only_left_alone() -> None:
    async with followed() as (fleet, log, deploy):
        other = Deploys(log._log)
        await other.read_to_end()
        assert await other.append(Failed(deploy="d-1", why="by a test")) == ""
        fleet.let("n2")
        await until(lambda: {child.name for child in fleet.children} == {"o1", "n1", "n3"})
        assert (deploy().phase, deploy().is_paused, deploy().why) == (Phase.TAKING_BACK, False, "by a test")


async def test_a_fleet_that_looks_for_deploys_makes_no_deployment_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not know with how many shards; whoever makes one first decides."""
    caplog.set_level("DEBUG", logger="mielin_cells.process")
    server = NatsServer(tmp_path / "server", {})
    await server.start()
    address = Address(server.url)
    fleet: Any = None  # it is not asked for before there is a deployment
    following = asyncio.create_task(follow_deploys(fleet, replace(address, shards=2)))
    try:
        async with asyncio.timeout(WAIT_S):
            while "deploys are not followed yet: There is no deployment" not in caplog.text:
                await asyncio.sleep(0.01)
        made = await open_substrate(replace(address, shards=2))
        assert made.shards == 2
        await made.close()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        server.kill()
