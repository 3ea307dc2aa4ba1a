"""`mielin demo --deploy`: while the main job runs its app is upgraded, and then again, to a bad version that is undone by itself."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mielin_cells.client.client import Client
from mielin_cells.client.deploys.driver import Driver
from mielin_cells.client.deploys.plan import begin_at
from mielin_cells.demo.job import Job
from mielin_cells.deployment.check.check import check_app
from mielin_cells.deployment.fleet import Fleet
from mielin_cells.errors import CellError, DeployRefused, HandlerFailed
from mielin_cells.policy.deploys.machine import Deploy, Phase
from mielin_cells.store.deploys import Deploys

APPS = ("mielin_cells.demo.newer", "mielin_cells.demo.bad")
WANTED = [Phase.DONE, Phase.UNDONE]

STAGES = [5, 50, 100]
WATCH_S = 3.0

EVENTS_PER_S = 150
"""While deploys go on, so that there is something to watch; the others flow behind them."""

FIRST_SHARE = 0.5
"""Of the events, for the first deploy: what nobody calls cannot be seen to fail."""

AGAIN_S = 0.05
"""Before a call that failed is made again."""


@dataclass(slots=True)
class Deploying:
    ends: ClassVar[bool] = True
    ended: list[Deploy] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    checked: int = 0
    """Agents that were loaded in new code before it was deployed."""
    failed: Counter[str] = field(default_factory=Counter)
    """Calls that failed and were made again, by aircraft."""
    _began: float = 0.0
    """When the first agents moved in the deploy that goes on; 0: they have not, and nothing is sent."""
    _sent: int = 0
    """Events that were sent before the deploy began that goes on."""
    _is_over: bool = False
    _order: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    def may_send(self, job: Job) -> bool:
        if self._is_over or self._began == 0.0:
            return self._is_over
        share = FIRST_SHARE if not self.ended else 1.0
        paced = self._sent + EVENTS_PER_S * (time.monotonic() - self._began)
        return job.sent < min(paced, share * job.to_send)

    def answered(self, agent: str) -> None:
        """A call waits no longer than for any move."""

    async def calling(self, agent: str, call: Callable[[], Awaitable[None]]) -> None:
        """Makes a call again that fails in bad code.  Those behind it wait, since their order is compared."""
        async with self._order[agent]:
            while True:
                try:
                    await call()
                    return
                except HandlerFailed:
                    self.failed[agent] += 1
                await asyncio.sleep(AGAIN_S)

    async def run(self, client: Client, fleet: Fleet, job: Job) -> None:
        ticking = asyncio.create_task(_tick(job))
        try:
            for app in APPS:
                began, self._began = time.monotonic(), 0.0
                self.ended.append(await self._deploy(client, app, job))
                self.seconds.append(time.monotonic() - began)
        finally:
            self._is_over = True  # also if a deploy cannot be driven: the flow ends, and the error is raised behind it
            ticking.cancel()
            job.notify()

    async def _deploy(self, client: Client, app: str, job: Job) -> Deploy:
        report = await check_app(client.log, app)
        if not report.ok:
            raise CellError(f"{app}: {report.troubles[0].agent}: {report.troubles[0].why}")
        self.checked += report.agents
        deploys = Deploys(client.log)
        began = await begin_at(client, app, stages=STAGES, watch_s=WATCH_S)
        await deploys.read_to_end()
        if why := await deploys.append(began):
            raise DeployRefused(why, deploy=began.deploy)

        def said(event: dict[str, Any]) -> None:
            _print(event)
            if self._began == 0.0 and event.get("phase") == Phase.MOVING.value:
                self._began, self._sent = time.monotonic(), job.sent

        return await Driver(client, deploys, said).run()

    def is_good(self, job: Job) -> bool:
        """No call was lost, and the bad version did not get beyond the first agents."""
        return [one.phase for one in self.ended] == WANTED and not job.unanswered

    async def report(self, client: Client) -> dict[str, Any]:
        deploys = [
            {
                "app": one.began.app, "phase": one.phase.value, "why": one.why, "moved": one.moved,
                "taken_back": one.back.moved + one.back.rewound if one.back is not None else 0, "seconds": round(seconds, 1),
            }
            for one, seconds in zip(self.ended, self.seconds, strict=True)
        ]  # fmt: skip
        return {
            "deploys": deploys, "checked": self.checked, "failed_and_called_again": self.failed.total(),
            "agents_with_failures": len(self.failed),
        }  # fmt: skip


def _print(event: dict[str, Any]) -> None:
    if event["event"] == "deploy":
        why = f": {event['why']}" if event["why"] else ""
        stuck = f" {event['back']['stuck']}" if event["back"] else ""
        print(
            f"deploy of {event['app']} is {event['phase']}, step {event['stage']}{why}{stuck}",
            file=sys.stderr,
            flush=True,
        )


async def _tick(job: Job) -> None:
    while True:
        await asyncio.sleep(0.02)
        job.notify()
