"""Clients of a simulated world whose messages have priorities."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from mielin_cells.testing.checkers.lines.priorities import urges
from mielin_cells.testing.checkers.scene import Call
from mielin_cells.testing.simulator.deployment import Deployment
from mielin_cells.testing.simulator.swarm import CallPlan


def hurried(
    scenario: Deployment, agents: list[str], sender: str, called: Callable[[CallPlan, Call], Coroutine[Any, Any, None]]
) -> list[Coroutine[Any, Any, None]]:
    """In some worlds a client calls with priorities beside its other calls, and has agents send with priorities."""
    plans, numbers = list[tuple[CallPlan, str, int]](), Counter[tuple[str, str]]()
    for number, urge in enumerate(urges(scenario.swarm.seed, sender, agents)):
        numbers[urge.agent, urge.priority] += 1
        plan = CallPlan(
            number, urge.rest_s, urge.agent, urge.kind, urge.to, int(urge.asks), False, 0.0, urge.priority, urge.patience_s,
            urge.inner,
        )  # fmt: skip
        plans.append((plan, f"{sender}.{urge.priority}", numbers[urge.agent, urge.priority]))
    return [_hurry(scenario, plans, called)] if plans else []


GIVEN_UP = object()
"""In place of an answer, of a call that was cancelled."""


async def urged(ref: Any, plan: CallPlan, call: Call) -> Any:
    """The answer of a call with a priority; `GIVEN_UP` once its caller's patience is over."""
    args: tuple[Any, ...] = (call.sender, call.n)
    if plan.kind == "dawdle":
        args = *args, plan.to, plan.inner, min(plan.patience_s * 2, 3.0), bool(plan.amount)
    elif plan.kind == "urge":
        args = *args, plan.to, plan.inner, bool(plan.amount)
    bound = getattr(ref, plan.kind).options(priority=plan.priority)
    return await (patient(bound(*args), plan.patience_s) if plan.patience_s else bound(*args))


async def patient(call: Coroutine[Any, Any, Any], seconds: float) -> Any:
    """What the call returns; `GIVEN_UP`, and it is cancelled, after so long."""
    task = asyncio.ensure_future(call)
    try:
        done, _ = await asyncio.wait((task,), timeout=seconds)
        if not done:
            task.cancel()
            _ = await asyncio.wait((task,))
    finally:
        task.cancel()
    return GIVEN_UP if task.cancelled() else task.result()


async def _hurry(
    scenario: Deployment, plans: list[tuple[CallPlan, str, int]],
    called: Callable[[CallPlan, Call], Coroutine[Any, Any, None]],
) -> None:  # fmt: skip
    """Calls without waiting for those before: else nothing would wait that others could pass."""
    async with asyncio.TaskGroup() as group:
        for plan, sender, n in plans:
            await asyncio.sleep(plan.rest_s)
            call = Call(plan.agent, sender, n, True)
            scenario.scene.calls.append(call)
            _ = group.create_task(called(plan, call))


async def all_of(works: list[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for work in works:
            _ = group.create_task(work)
