"""A story in which the n-th call of the substrate goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.settings import Settings
from mielin_cells.testing.simulator.link import Link
from mielin_cells.testing.simulator.scenario import Scenario, play
from mielin_cells.testing.simulator.swarm import CallPlan, Life, Swarm

NODES = ("node-1", "node-2", "node-3")
AGENTS = ("a0", "a1")
BEGINS_S = 2.0
AGAIN_S = 1.0
"""After its crash a process is started again."""


def swarm() -> Swarm:
    """A world in which nothing goes wrong by itself, and two clients that call all the time."""
    kinds = ("note", "give", "hand", "settle")
    plans = [
        CallPlan(n, 0.25, AGENTS[n % 2], kinds[n // 2 % 4], AGENTS[1 - n % 2], 1 + n % 3, n % 3 == 0) for n in range(40)
    ]
    return Swarm(
        seed=1, nodes=NODES, agents=AGENTS,
        settings=Settings(
            ask_timeout_s=10.0, ask_repeat_s=0.5, turn_deadline_s=20.0, tries=20, prepare_s=3.0, pause_s=5.0,
            handover_s=0.5, probation_s=3.0, migration_s=20.0, reconcile_s=2.0, snapshot_records=12, heartbeat_s=0.5,
        ),
        recovery=RecoveryConfig(
            max_retries=2, initial_retry_delay_secs=0.2, max_retry_delay_secs=1.0, recovery_timeout_secs=30.0
        ),
        lives=[Life("client-0", [plans[:20]], None), Life("client-1", [plans[20:]], None)],
    )  # fmt: skip


class Nth(Scenario):
    """One story with one call struck.  Calls of clients that only use the agents are not counted."""

    def __init__(self, story: Callable[[Nth], Coroutine[Any, Any, None]], n: int, fate: str) -> None:
        super().__init__(swarm())
        self.n, self.fate = n, fate
        self.calls = 0
        self.was_struck = ""
        self.world.network.on_call = self._called
        self._counts = False
        self._nth_story = story

    def _called(self, view: Link, what: str, subject: str) -> str:
        if not self._counts or self.was_struck or view.name.startswith("client"):
            return ""
        self.calls += 1
        if self.calls != self.n:
            return ""
        self.was_struck = f"{what} of {view.label} to {subject}"
        self.world.harmed(self.fate, view)
        if self.fate.startswith("crash") and view.name != "operator":
            self.world.later(AGAIN_S, self.restart, view.name)
        return self.fate

    async def play(self) -> None:
        self.job(self._nth_story(self))
        await super().play()

    async def counted(self, work: Coroutine[Any, Any, Any]) -> None:
        self._counts = True
        await work
        self._counts = False


async def a_migration(nth: Nth) -> None:
    await asyncio.sleep(BEGINS_S)
    await nth.counted(nth.nemesis._move("a0", None))


async def an_undo(nth: Nth) -> None:
    await asyncio.sleep(BEGINS_S)
    await nth.nemesis._move("a0", None)
    await asyncio.sleep(1.0)
    await nth.counted(nth.nemesis._undo("a0", None, False))


async def a_claim(nth: Nth) -> None:
    await asyncio.sleep(BEGINS_S)
    to = next(name for name in NODES if name != nth.checkers.owner("a0"))
    await nth.counted(nth.nemesis._ordered("claim", lambda: nth.operator.claim("a0", to=to)))


STORIES: dict[str, tuple[Callable[[Nth], Coroutine[Any, Any, None]], int]] = {
    "migration": (a_migration, 20),
    "undo": (an_undo, 15),
    "claim": (a_claim, 8),
}
"""With how many calls each has at least, lest the loop be over before it has begun."""


def played(story: str, n: int, fate: str) -> Nth:
    return play(lambda: Nth(STORIES[story][0], n, fate), seed=n, steps_max=400_000)
