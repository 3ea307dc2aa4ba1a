"""Drives a deploy: does what its machine says is due, and appends what came of it.

Everything that a driver knows is in the log of deploys and in the agents' own logs.  So it may be killed at any time: whoever drives
next begins again what was due, and every effect can be begun again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec

from mielin_cells.client.client import Client
from mielin_cells.client.deploys.moving import Moving
from mielin_cells.client.deploys.watching import Watching
from mielin_cells.errors import (
    OF_STORE,
    CellError,
    DeployRefused,
    Fenced,
    InternalError,
    NoResponder,
    NotConnected,
    RetryError,
    WireTimeout,
)
from mielin_cells.log.ids import control_subject
from mielin_cells.membership import table
from mielin_cells.policy.deploys.events import (
    AnyEvent,
    Drives,
    Failed,
    Opened,
    Passed,
    Retired,
    Served,
    Stopped,
)
from mielin_cells.policy.deploys.machine import (
    AwaitNodes,
    Deploy,
    Effect,
    MoveAgents,
    OpenNodes,
    RetireNodes,
    StopNodes,
    TakeBack,
    WatchHealth,
)
from mielin_cells.store.deploys import Deploys
from mielin_cells.tasks.supervision import Backoff

POLL_S = 0.2

ANSWER_S = 1.0
"""For a driver to say that it lives."""

SAYS_S = 2.0
"""Between two words about moves that go on."""


def driver_subject(driver: str) -> str:
    """Where a driver answers that it lives."""
    return control_subject(f"deploy.{driver}")


async def lives(client: Client, driver: str) -> bool:
    """True if the driver answers."""
    try:
        await client.wire.request(driver_subject(driver), b"", ANSWER_S)
    except (NoResponder, WireTimeout):
        return False
    return True


class Driver:
    """`run` once; `say` is called with each event, a value to be printed."""

    def __init__(
        self, client: Client, deploys: Deploys, say: Callable[[dict[str, Any]], None],
        wall: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._client = client
        self._deploys = deploys
        self._say = say
        self._wall, self._clock = wall, clock
        self._name = client.rng.randbytes(6).hex()
        self._changed = asyncio.Event()
        self._said_at, self._said = 0.0, (-1, -1)

    async def run(self) -> Deploy:
        """Takes the deploy on, from whoever drove it before, and drives it to its end.

        Raises `Fenced` if another driver takes it on, and `DeployRefused` if there is none that goes on.
        """
        serving = await self._client.wire.serve(driver_subject(self._name), self._answer)
        following = asyncio.create_task(self._follow())
        try:
            by = f"{socket.gethostname()}, process {os.getpid()}"
            deploy = await self._deploys.read_to_end()
            name = deploy.name if deploy is not None else ""
            why = await self._deploys.append(Drives(deploy=name, at=self._wall(), driver=self._name, by=by))
            if why:
                raise DeployRefused(f"{why[:1].upper()}{why[1:]}; nothing was done.", deploy=name)
            return await self._drive(following)
        finally:
            serving.close()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _answer(self, _: bytes) -> bytes:
        return b"lives"

    async def _follow(self) -> None:
        backoff = Backoff()
        while True:
            with contextlib.suppress(RetryError):
                await self._deploys.follow(self._changed.set)
                return
            await backoff.wait()

    def _mine(self) -> Deploy:
        deploy = self._deploys.deploy
        if deploy is None or deploy.driver != self._name:
            by = deploy.driven_by if deploy is not None else "nobody"
            raise Fenced(f"This deploy is driven by another operator now ({by}); this one does no more.")
        return deploy

    async def _drive(self, following: asyncio.Task[None]) -> Deploy:
        shown: tuple[Any, ...] = ()
        while True:
            self._changed.clear()
            deploy = self._mine()
            if shown != (shown := (deploy.phase, deploy.stage, deploy.is_paused, deploy.why)):
                self._say(summary(deploy))
            if deploy.is_over:
                return deploy
            waiting = asyncio.create_task(self._changed.wait())
            working = [asyncio.create_task(self._persist(effect)) for effect in deploy.due]
            try:
                while self._mine().due == deploy.due and not any(task.done() for task in working):
                    await asyncio.wait((waiting, following, *working), return_when=asyncio.FIRST_COMPLETED)
                    if following.done():
                        following.result()
                        raise NotConnected(
                            "The store was closed while a deploy went on; `mielin deploy --resume` goes on with it."
                        )
                    if waiting.done() and not any(task.done() for task in working):
                        self._changed.clear()
                        waiting = asyncio.create_task(self._changed.wait())
            finally:
                for task in (waiting, *working):
                    task.cancel()
                await asyncio.gather(waiting, *working, return_exceptions=True)
            for task in working:
                if not task.cancelled() and self._mine().due == deploy.due:
                    await self._append(task.result(), deploy.due)

    async def _append(self, event: AnyEvent, due: tuple[Effect, ...]) -> None:
        """Unless an operator, another driver, or a failed node was first: then something else is due, and it is decided anew."""
        event, name = msgspec.structs.replace(event, at=self._wall()), self._name

        def unless(deploy: Deploy | None) -> str:
            return "" if deploy is not None and deploy.driver == name and deploy.due == due else "replaced"

        await self._deploys.append(event, unless)

    async def _persist(self, effect: Effect) -> AnyEvent:
        """The event that ends the effect.  While the store or a node does not answer, or refuses, it is begun again: that says nothing
        about the new code."""
        backoff, name = Backoff(cap_s=5.0), self._mine().name
        while True:
            try:
                return await self._do(effect)
            except CellError as error:
                if not isinstance(error, OF_STORE) or isinstance(error, InternalError):
                    return Failed(deploy=name, why=error.message)
                self._say({"event": "waiting", "deploy": name, "reason": error.message})
            await backoff.wait()

    async def _do(self, effect: Effect) -> AnyEvent:
        deploy = self._mine()
        began, name = deploy.began, deploy.name
        moving = Moving(self._client, began, self._progress)
        match effect:
            case AwaitNodes():
                missing = await self._await(moving, began.new, began.start_s)
                if missing:
                    return Failed(deploy=name, why=f"{', '.join(missing)} did not serve within {began.start_s:g} s")
                return Served(deploy=name)
            case MoveAgents():
                return await self._move(deploy, moving, effect)
            case WatchHealth(stage=stage, seconds=seconds):
                why = await Watching(self._client, began, self._clock).until(seconds)
                return Failed(deploy=name, why=why) if why else Passed(deploy=name, stage=stage)
            case OpenNodes():
                await self._open(began.new, began.old)
                return Opened(deploy=name)
            case RetireNodes():
                await self._await_gone(moving, began.old, began.fleet)
                await self._forget_cordons(began.old)
                return Retired(deploy=name)
            case TakeBack():
                await self._open(began.old, began.new)
                missing = await self._await(moving, began.old, began.start_s)
                if len(missing) == len(began.old):
                    return Failed(
                        deploy=name, why=f"no old node serves, so agents cannot go back: {', '.join(missing)}"
                    )
                return await moving.take_back()
            case StopNodes():
                await self._await_gone(moving, began.new, began.fleet)
                await self._forget_cordons(began.new)
                return Stopped(deploy=name)

    async def _move(self, deploy: Deploy, moving: Moving, effect: MoveAgents) -> AnyEvent:
        """The agents that have moved are watched while others move."""
        watching = Watching(self._client, deploy.began, self._clock)
        await watching.look()
        moves = asyncio.create_task(moving.move(effect))
        watch = asyncio.create_task(watching.until(float("inf")))
        try:
            await asyncio.wait((moves, watch), return_when=asyncio.FIRST_COMPLETED)
            return moves.result() if moves.done() else Failed(deploy=deploy.name, why=watch.result())
        finally:
            for task in (moves, watch):
                task.cancel()
            await asyncio.gather(moves, watch, return_exceptions=True)

    async def _open(self, opened: list[str], closed: list[str]) -> None:
        for nodes, is_closed in ((opened, False), (closed, True)):
            known = (await self._client.members.read_to_end()).members
            for name in nodes:
                if name in known:
                    await table.cordon(self._client.log, name, is_closed)

    async def _forget_cordons(self, nodes: list[str]) -> None:
        """Of nodes that have gone: others may be started under their names, and they are to be forgotten."""
        members = await self._client.members.read_to_end()
        for name in nodes:
            if (one := members.get(name)) is not None and not one.is_present:
                await table.cordon(self._client.log, name, False)

    async def _await(self, moving: Moving, nodes: list[str], seconds: float) -> list[str]:
        """The nodes that do not serve by then."""
        end = self._clock() + seconds
        while True:
            missing = sorted(set(nodes) - set(await moving.serving(nodes)))
            if not missing or self._clock() > end:
                return missing
            await asyncio.sleep(POLL_S)

    async def _await_gone(self, moving: Moving, nodes: list[str], fleet: str) -> None:
        """Waits until the nodes have gone and own nothing; until they own nothing, if nobody is known to stop them."""
        while True:
            members = await self._client.members.read_to_end()
            there = [name for name in nodes if (one := members.get(name)) is not None and one.is_present]
            if not (there and fleet) and not await moving.owned(nodes):
                return
            await asyncio.sleep(POLL_S)

    def _progress(self, moved: int, of: int) -> None:
        """Says it if it is news: agents that wait for a node are tried again and again."""
        now = self._clock()
        if (moved, of) != self._said and (now - self._said_at >= SAYS_S or moved == of):
            self._said_at, self._said = now, (moved, of)
            self._say({"event": "moving", "deploy": self._mine().name, "moved": moved, "of": of})


def summary(deploy: Deploy) -> dict[str, Any]:
    """What operators see of a deploy."""
    began, back = deploy.began, deploy.back
    names = ("moved", "rewound", "replayed", "stay", "stuck")
    return {
        "event": "deploy", "deploy": deploy.name, "app": began.app, "phase": deploy.phase.value, "paused": deploy.is_paused,
        "stage": deploy.stage + 1, "stages": began.stages, "old": began.old, "new": began.new, "moved": deploy.moved,
        "why": deploy.why, "driven_by": deploy.driven_by, "began": began.at, "rising": began.rising,
        "back": {name: getattr(back, name) for name in names} if back is not None else None,
    }  # fmt: skip
