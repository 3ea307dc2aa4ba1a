"""The log of deploys: of two that append, one is first; an append whose outcome is not known counts once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mielin_cells.policy.deploys.events import Began, Drives, Served, Wished
from mielin_cells.policy.deploys.machine import Phase
from mielin_cells.store.deploys import Deploys
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Log, Unknown

BEGAN = Began(deploy="d", app="new.py", old=["o"], new=["n"], stages=[50, 100])


class Silent:
    """A log that does not say what became of the first appends; `stores`: whether it stored them."""

    def __init__(self, log: Log, stores: bool, times: int) -> None:
        self._log = log
        self._stores = stores
        self._left = times
        self.appends = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append(self, subject: str, data: bytes, expect: int | None = None) -> Any:
        self.appends += 1
        assert expect is not None  # every append stands under a condition
        if self._left > 0:
            self._left -= 1
            if self._stores:
                await self._log.append(subject, data, expect)
            return Unknown("for the test")
        return await self._log.append(subject, data, expect)


async def test_of_two_operators_one_begins_and_the_other_is_told() -> None:
    store = await Embedded.open()
    one, two = Deploys(store.log), Deploys(store.log)
    await one.read_to_end()
    await two.read_to_end()
    said = await asyncio.gather(
        one.append(BEGAN), two.append(Began(deploy="e", app="x", old=["o"], new=["n"], stages=[100]))
    )
    assert sorted(map(bool, said)) == [False, True]
    assert "end it first" in "".join(said)
    first = await Deploys(store.log).read_to_end()
    assert first is not None
    assert one.deploy == two.deploy == first
    await store.close()


@pytest.mark.parametrize("stores", [True, False])
async def test_an_append_whose_outcome_is_not_known_counts_once(stores: bool) -> None:
    store = await Embedded.open()
    log = Silent(store.log, stores, times=2)
    deploys: Any = Deploys(log)  # type: ignore[arg-type]
    assert await deploys.append(BEGAN) == ""
    assert await deploys.append(Served(deploy="d")) == ""
    found = await Deploys(store.log).read_to_end()
    assert found is not None
    assert found.phase is Phase.MOVING
    assert len(await store.log.read("deploys")) == 2
    await store.close()


async def test_nothing_is_appended_that_cannot_follow_or_that_its_writer_does_not_want_any_more() -> None:
    store = await Embedded.open()
    deploys, other = Deploys(store.log), Deploys(store.log)
    assert await deploys.append(Served(deploy="d")) == "there is no deploy"
    assert await deploys.append(BEGAN) == ""
    assert "is not paused" in await deploys.append(Wished(deploy="d", wish="resume"))
    await other.read_to_end()
    assert await other.append(Drives(deploy="d", driver="other")) == ""
    said = await deploys.append(Served(deploy="d"), lambda deploy: "replaced" if deploy and deploy.driver else "")
    assert said == "replaced"  # it has read what came in between
    assert deploys.deploy == other.deploy
    assert len(await store.log.read("deploys")) == 2
    await store.close()


async def test_whoever_follows_the_log_has_the_same_deploy() -> None:
    store = await Embedded.open()
    deploys, follower, changed = Deploys(store.log), Deploys(store.log), asyncio.Event()
    following = asyncio.create_task(follower.follow(changed.set))
    assert await deploys.append(BEGAN) == ""
    async with asyncio.timeout(30):
        await changed.wait()
    assert follower.deploy == deploys.deploy
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await store.close()
