"""People outside of a simulated world's agents, who have tokens of waits and say a word, each in his own time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import copy_context
from random import Random
from typing import Any

from mielin_cells.agents.reports import WaitOutcome
from mielin_cells.client.client import Client
from mielin_cells.errors import CellError
from mielin_cells.log.waits.tokens import wait_of
from mielin_cells.testing.checkers.scene import Call, Observed, Told
from mielin_cells.testing.checkers.waits.outcomes import WaitsStand, pleas
from mielin_cells.testing.simulator.clients.hurried import GIVEN_UP, patient
from mielin_cells.testing.simulator.deployment import Deployment

WRONG = 0.15
"""How often somebody says first what is of another type."""

UNDONE = 0.4
"""How often a client that has accounts wait takes a move of one back."""

OVER = frozenset(("AgentTerminated", "NoSuchWait", "WaitOver"))
"""After a power cut that has taken the wait, or once its call was cancelled."""


def applicants(
    scenario: Deployment, client: Client, cls: type[Any], agents: list[str], name: str
) -> list[Coroutine[Any, Any, None]]:
    """In some worlds a client has accounts wait for a word."""
    works = [_apply(scenario, client, cls, agents, name)]
    if pleas(scenario.swarm.seed, name, agents):
        works.append(_undo(scenario, client, agents, Random(f"waits undone {scenario.swarm.seed} {name}")))
    return works


async def _undo(scenario: Deployment, client: Client, agents: list[str], rng: Random) -> None:
    """In some worlds an account is moved while it waits, and goes back: what it was told stands."""
    if rng.random() > UNDONE:
        return
    await asyncio.sleep(rng.random())
    try:
        report = await client.migrate(rng.choice(agents))
        await asyncio.sleep(1.0 + 3 * rng.random())
        if report.ok:
            _ = await client.rollback(report.migration)
            scenario.scene.counts["waits: undo"] += 1
    except CellError as error:
        scenario.scene.counts[f"waits: undo: {error.code}"] += 1


async def _apply(scenario: Deployment, client: Client, cls: type[Any], agents: list[str], name: str) -> None:
    numbers: dict[str, int] = {}
    for plea in pleas(scenario.swarm.seed, name, agents):
        await asyncio.sleep(plea.rest_s)
        n = numbers[plea.agent] = numbers.get(plea.agent, 0) + 1
        call = Call(plea.agent, name, n, plea.patience_s > 0)
        scenario.scene.calls.append(call)
        bound = getattr(client.get(cls, plea.agent), plea.kind)
        try:
            if plea.patience_s:
                answer = await patient(bound(name, n, plea.deadline_s), plea.patience_s)
                if answer is GIVEN_UP:
                    scenario.scene.counts["plea cancelled"] += 1
                    continue
                call.answer = answer
            else:
                await bound.tell(name, n, plea.deadline_s)
        except CellError as error:
            if (
                not scenario.is_passing(error)
                and not scenario.is_torn(error)
                and error.code not in ("NoSuchAgent", *OVER)
            ):
                scenario.violate(f"I38: {name} called {plea.agent}.{plea.kind} and got {error.code}: {error}")
            scenario.scene.counts[f"plea: {error.code}"] += 1
            continue
        call.acked, call.at = True, scenario.world.loop.time()


def begin(scenario: Deployment) -> None:
    """Tokens that are given out reach somebody.  After a power cut, which may have taken words, all of them do so again."""
    given, context = scenario.scene.tokens_given, copy_context()

    def said_soon(token: str, rng: Random) -> None:
        for number in range(rng.choice((1, 1, 2))):
            rest_s = rng.choice((0.0, 0.2, 2.0)) * rng.random()
            person = _say(scenario, token, rest_s, rng.random() < WRONG, rng.randint(0, 100) + number)
            scenario.world.loop.call_soon(scenario.job, person, context=context)

    def mailed(token: str) -> None:
        if token not in given:
            given[token] = None
            said_soon(token, Random(f"words {scenario.swarm.seed} {len(given)}"))

    for number, token in enumerate(given):
        said_soon(token, Random(f"words again {scenario.swarm.seed} {number}"))
    WaitsStand.mails_by(mailed)


async def _say(scenario: Deployment, token: str, rest_s: float, is_wrong: bool, word: int) -> None:
    """Says a word until it is known what stands."""
    await asyncio.sleep(rest_s)
    scene = scenario.scene
    said = f"value {word}" if word % 4 else f"rejected no {word}"
    try:
        if is_wrong:
            try:
                _ = await scenario.until_done(lambda: scenario.operator.resolve(token, "no number"))
            except CellError as error:
                if error.code != "BadArguments":
                    raise
                scene.counts["words of a wrong type"] += 1
        if word % 4:
            told = await scenario.until_done(lambda: scenario.operator.resolve(token, word))
        else:
            told = await scenario.until_done(lambda: scenario.operator.reject(token, f"no {word}"))
    except CellError as error:
        if error.code in OVER and (scenario.world.power or _is_given_up(scenario, token)):
            scene.counts[f"word: {error.code}"] += 1
            return
        scenario.violate(f"I38: somebody resolved a wait, and got {error.code}: {error}")
        return
    scene.counts["words said"] += 1
    scene.told.append(
        Told(told.agent, wait_of(token).key, told.accepted, said, _text_of(told), scenario.world.loop.time())
    )


def _is_given_up(scenario: Deployment, token: str) -> bool:
    return any(one.is_given_up(wait_of(token)) for one in scenario.checkers.all if isinstance(one, WaitsStand))


def _text_of(told: WaitOutcome) -> str:
    match told.outcome:
        case "value":
            return f"value {told.value}"
        case "rejected":
            return f"rejected {told.reason}"
        case _:
            return told.outcome


async def observe(scenario: Deployment, ref: Any, observed: Observed) -> None:
    """What an account has waited for, taken of topics, and sent and got by priorities."""
    observed.words = await scenario.until_done(ref.said)
    observed.came, observed.gaps = await scenario.until_done(ref.attended)
    observed.urged, observed.urgent, observed.wronged = await scenario.until_done(ref.urgencies)
