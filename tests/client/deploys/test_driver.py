"""Drives deploys on nodes in this process: what an undo does to agents that the new code has made, broken or raised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.nodes import Deployment, deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells.agents.agent import Agent
from mielin_cells.agents.reference import classes
from mielin_cells.client.deploys.driver import Driver, lives
from mielin_cells.client.deploys.moving import migration_prefix
from mielin_cells.client.deploys.plan import begin_at
from mielin_cells.errors import ConfigError, DeployRefused, Fenced, HandlerFailed
from mielin_cells.membership.announcement import Announcement
from mielin_cells.node.moves.admission import Room
from mielin_cells.policy.deploys.events import Began, Failed, Wished
from mielin_cells.policy.deploys.health import Limits
from mielin_cells.policy.deploys.machine import Deploy, Phase
from mielin_cells.store import journal
from mielin_cells.store.deploys import Deploys

LABELS = {"release": "2"}
LABEL = ("release", "2")
AGENTS = 8


class DrivenOld(cells.Agent, name="DrivenTill"):
    n: int = 0

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.n += n
        return self.n


_ = classes.pop("DrivenTill")  # a process knows one class by a name; nodes of this test know one or the other


class DrivenBroken(DrivenOld, name="DrivenTill"):
    @cells.handler
    async def add(self, n: int = 1) -> int:
        raise ValueError("the new code is wrong")


_ = classes.pop("DrivenTill")


class DrivenLess(cells.Agent, name="DrivenTill"):
    """The new code has another name for the handler."""

    n: int = 0

    @cells.handler
    async def increase(self, n: int = 1) -> int:
        self.n += n
        return self.n


_ = classes.pop("DrivenTill")


class DrivenUnhealthy(DrivenOld, name="DrivenTill"):
    async def healthy(self) -> bool:
        return False


_ = classes.pop("DrivenTill")


class DrivenNew(DrivenOld, name="DrivenTill", version=2):
    level: int = 0

    @cells.upgrade(from_version=1)
    def to_2(cls, old: dict[str, object]) -> dict[str, object]:
        return {**old, "level": 1}


_ = classes.pop("DrivenTill")
classes["DrivenTill"] = DrivenOld


def code(cls: type[Agent]) -> Callable[[str], type[Agent] | None]:
    return lambda name: cls if name == "DrivenTill" else classes.get(name)


def about(new: type[Agent]) -> Announcement:
    """What a new node says of itself."""
    return Announcement(classes={"DrivenTill": new.__mielin_version__}, labels=LABELS, is_reserved=True)


@asynccontextmanager
async def world(new: type[Agent], **options: Any) -> AsyncIterator[tuple[Deployment, list[DrivenOld]]]:
    """Two old nodes with agents, and one reserved node with the new code, which is given `options`."""
    async with deployment() as made:
        for name in ("old-1", "old-2"):
            await made.start(name, known=code(DrivenOld), about=Announcement(classes={"DrivenTill": 1}))
        await made.start("new-1", known=code(new), about=about(new), **options)
        tills = [await made.client.spawn(DrivenOld, f"t{number}") for number in range(AGENTS)]
        for till in tills:
            await till.add()
        yield made, tills


async def began(made: Deployment, **options: Any) -> Deploys:
    deploys = Deploys(made.substrate.log)
    await deploys.read_to_end()
    options = {"stages": [25, 100], "watch_s": 0.2, **options}
    assert await deploys.append(await begin_at(made.client, "new.py", label=LABEL, **options)) == ""
    return deploys


class Said:
    """What a driver has said; `phase` waits for a phase."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def has(self, phase: Phase, paused: bool = False) -> bool:
        return any(one.get("phase") == phase.value and one["paused"] == paused for one in self.events)


async def driven(made: Deployment, deploys: Deploys, said: Said | None = None) -> Deploy:
    async with asyncio.timeout(60):
        return await Driver(made.client, deploys, said or Said()).run()


class Scarce:
    """What a node has for agents that move there."""

    left: int | None = 0

    def __call__(self) -> Room:
        return Room(memory_bytes=self.left)


async def moves_begun(made: Deployment, count: int, going: asyncio.Task[Deploy]) -> None:
    """Returns once so many moves were begun in all; fails if the deploy ends before."""
    async with asyncio.timeout(30):
        while len(await journal.listed(made.substrate.log)) < count:
            assert not going.done(), going.result().why
            await asyncio.sleep(0.01)


async def homes(made: Deployment) -> list[str]:
    return sorted(info.node for info in await made.client.agents())


async def test_all_agents_come_to_the_new_nodes_which_are_opened_and_the_old_ones_closed() -> None:
    async with world(DrivenNew) as (made, tills):
        done = await driven(made, await began(made))
        assert (done.phase, done.moved) == (Phase.DONE, AGENTS)
        assert await homes(made) == ["new-1"] * AGENTS
        assert [await till.add() for till in tills] == [2] * AGENTS
        table = {info.name: info.is_cordoned for info in await made.client.nodes()}
        assert table == {"new-1": False, "old-1": True, "old-2": True}


async def test_agents_that_the_new_code_fails_are_brought_back_with_what_they_have_done() -> None:
    async with world(DrivenBroken) as (made, tills):
        deploys = await began(made, watch_s=30.0)
        going = asyncio.create_task(driven(made, deploys))
        failed = 0
        while not going.done():
            for till in tills:
                try:
                    await till.add()
                except HandlerFailed:
                    failed += 1
        undone = going.result()
        assert undone.phase is Phase.UNDONE
        assert "turns of DrivenTill failed in the new code (100.0%)" in undone.why
        assert undone.back is not None
        assert (undone.back.moved, undone.back.rewound, undone.back.stay) == (2, 0, 0)
        assert set(await homes(made)) == {"old-1", "old-2"}
        assert failed >= 20
        assert all([await till.add() for till in tills])


@pytest.mark.parametrize("new", [DrivenBroken, DrivenLess])
async def test_dead_letters_undo_a_deploy_and_are_sent_again_to_the_old_code(new: type[Agent]) -> None:
    async with world(new) as (made, tills):
        deploys = await began(made, watch_s=30.0, limits=Limits(errors=None))
        said = Said()
        going = asyncio.create_task(driven(made, deploys, said))
        await until(lambda: said.has(Phase.WATCHING))
        for till in tills:
            await till.add.tell(10)
        undone = await going
        assert "became dead letters" in undone.why
        assert undone.back is not None
        assert undone.back.replayed >= 1

        async def sums() -> list[int]:
            return [await till.add(0) for till in tills]

        async with asyncio.timeout(30):
            while await sums() != [11] * AGENTS:
                await asyncio.sleep(0.02)


async def test_an_agent_that_does_not_move_undoes_the_deploy_and_goes_on_where_it_was() -> None:
    async with world(DrivenUnhealthy) as (made, tills):
        undone = await driven(made, await began(made))
        assert undone.phase is Phase.UNDONE
        assert "2 agents could not be moved to new nodes" in undone.why
        assert "healthy() answered False" in undone.why
        assert [await till.add() for till in tills] == [2] * AGENTS


async def test_a_new_node_that_dies_is_waited_for_and_its_agents_go_to_the_process_that_follows_it() -> None:
    async with world(DrivenNew) as (made, tills):
        said = Said()
        going = asyncio.create_task(driven(made, await began(made, watch_s=1.0), said))
        await until(lambda: said.has(Phase.WATCHING))
        made.kill("new-1")  # the table says that it serves, and each move to it fails at once
        await moves_begun(made, 2 + 4 * (AGENTS - 2), going)
        await made.start("new-1", known=code(DrivenNew), about=about(DrivenNew))
        done = await going
        assert (done.phase, done.why) == (Phase.DONE, "")
        assert await homes(made) == ["new-1"] * AGENTS
        assert [await till.add() for till in tills] == [2] * AGENTS


async def test_a_new_node_that_has_no_room_for_a_while_is_waited_for() -> None:
    room = Scarce()
    async with world(DrivenNew, room=room) as (made, _):
        going = asyncio.create_task(driven(made, await began(made, stages=[100])))
        await moves_begun(made, 4 * AGENTS, going)
        room.left = None
        done = await going
        assert (done.phase, done.why, done.moved) == (Phase.DONE, "", AGENTS)


async def test_an_agent_that_ends_while_it_is_waited_for_fails_no_deploy() -> None:
    room = Scarce()
    async with world(DrivenNew, room=room) as (made, tills):
        going = asyncio.create_task(driven(made, await began(made, stages=[100])))
        await moves_begun(made, AGENTS, going)
        await made.client.terminate(tills[0])
        room.left = None
        done = await going
        assert (done.phase, done.why, done.moved) == (Phase.DONE, "", AGENTS - 1)


async def test_an_undo_takes_agents_back_that_old_code_could_not_load_and_keeps_their_calls() -> None:
    async with world(DrivenNew) as (made, tills):
        deploys = await began(made, watch_s=30.0)
        said = Said()
        going = asyncio.create_task(driven(made, deploys, said))
        await until(lambda: said.has(Phase.WATCHING))
        assert [await till.add() for till in tills] == [2] * AGENTS
        assert await Deploys(made.substrate.log).append(Wished(deploy="", wish="undo")) != ""  # another deploy
        assert deploys.deploy is not None
        other = Deploys(made.substrate.log)
        await other.read_to_end()
        assert await other.append(Wished(deploy=deploys.deploy.name, wish="undo", why="by a test")) == ""
        undone = await going
        assert (undone.phase, undone.why) == (Phase.UNDONE, "by a test")
        assert undone.back is not None
        assert (undone.back.moved, undone.back.rewound) == (0, 2)
        assert [await till.add() for till in tills] == [3] * AGENTS
        assert {info.version for info in await made.client.agents()} == {1}


async def test_an_agent_that_the_new_code_has_made_stays_and_is_named() -> None:
    async with world(DrivenNew) as (made, _):
        deploys = await began(made, watch_s=30.0, stages=[50, 75, 100])
        said = Said()
        going = asyncio.create_task(driven(made, deploys, said))
        await until(lambda: said.has(Phase.WATCHING))
        assert deploys.deploy is not None
        await made.client.uncordon("new-1")
        await until(lambda: not made.nodes["new-1"].is_cordoned)
        classes["DrivenTill"] = DrivenNew
        try:
            born = await made.client.on("new-1").spawn(DrivenNew, "born")
        finally:
            classes["DrivenTill"] = DrivenOld
        other = Deploys(made.substrate.log)
        await other.read_to_end()
        assert await other.append(Wished(deploy=deploys.deploy.name, wish="undo")) == ""
        undone = await going
        assert undone.phase is Phase.PARTLY_UNDONE
        assert undone.back is not None
        assert (undone.back.rewound, undone.back.stay) == (4, 1)
        [(agent, why)] = undone.back.stuck
        assert agent == "born"
        assert "version 2, which old nodes cannot load" in why
        assert await born.add() == 1
        assert (await homes(made)).count("new-1") == 1


async def test_a_rewind_takes_agents_back_whose_version_is_the_same() -> None:
    async with world(DrivenOld) as (made, tills):
        deploys = await began(made, watch_s=30.0, rewinds=True)
        said = Said()
        going = asyncio.create_task(driven(made, deploys, said))
        await until(lambda: said.has(Phase.WATCHING))
        assert [await till.add() for till in tills] == [2] * AGENTS
        assert deploys.deploy is not None
        other = Deploys(made.substrate.log)
        await other.read_to_end()
        assert await other.append(Failed(deploy=deploys.deploy.name, why="by a test")) == ""
        undone = await going
        assert undone.back is not None
        assert (undone.back.moved, undone.back.rewound) == (0, 2)
        assert [await till.add() for till in tills] == [3] * AGENTS  # what they were told since is told again


async def test_the_driver_that_began_last_drives_and_the_other_appends_nothing_more() -> None:
    async with world(DrivenNew) as (made, _):
        first, second = await began(made, watch_s=30.0), Deploys(made.substrate.log)
        said, taken = Said(), Said()
        going = asyncio.create_task(driven(made, first, said))
        await until(lambda: said.has(Phase.WATCHING))
        assert first.deploy is not None
        assert await lives(made.client, first.deploy.driver)
        assert not await lives(made.client, "nobody")
        other = asyncio.create_task(driven(made, second, taken))
        with pytest.raises(Fenced, match="driven by another operator now"):
            await going
        await until(lambda: taken.has(Phase.WATCHING))
        pausing = Deploys(made.substrate.log)
        await pausing.read_to_end()
        assert await pausing.append(Wished(deploy=first.deploy.name, wish="pause")) == ""
        await until(lambda: taken.has(Phase.WATCHING, paused=True))
        assert await pausing.append(Wished(deploy=first.deploy.name, wish="undo")) == ""
        assert (await other).phase is Phase.UNDONE
        assert sum(isinstance(event, Began) for event in second.events) == 1


async def test_nothing_is_driven_that_was_not_begun_and_no_node_is_replaced_that_nobody_would_start() -> None:
    async with world(DrivenNew) as (made, _):
        with pytest.raises(DeployRefused, match="There is no deploy"):
            await driven(made, Deploys(made.substrate.log))
        with pytest.raises(ConfigError, match="not all started by one `mielin up`"):
            await begin_at(made.client, "new.py")
        with pytest.raises(ConfigError, match="No node with the label release=3"):
            await begin_at(made.client, "new.py", label=("release", "3"))
        assert migration_prefix("d-abc") == "m-abc"
