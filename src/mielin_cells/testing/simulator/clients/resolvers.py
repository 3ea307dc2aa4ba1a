"""People outside of a simulated world's agents, who have tokens of waits and say a word, each in his own time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from random import Random
from typing import Any

from mielin_cells.agents.reports import WaitOutcome
from mielin_cells.client.client import Client
from mielin_cells.errors import CellError, WaitOver
from mielin_cells.log.ids import inbox_subject
from mielin_cells.log.inboxes.lines import priority_of
from mielin_cells.log.message import decode_mail, is_client
from mielin_cells.log.waits.tokens import wait_of
from mielin_cells.testing.checkers.scene import Call, Observed, Told
from mielin_cells.testing.checkers.waits.outcomes import WaitsStand, pleas
from mielin_cells.testing.simulator.deployment import Deployment

WRONG = 0.15
"""How often somebody says first what is of another type."""

OVER = frozenset(("AgentTerminated", "NoSuchWait", "WaitOver"))
"""After a power cut that has taken the wait."""


def applicants(
    scenario: Deployment, client: Client, cls: type[Any], agents: list[str], name: str
) -> list[Coroutine[Any, Any, None]]:
    """In some worlds a client has accounts wait for a word."""
    return [_apply(scenario, client, cls, agents, name)]


async def _apply(scenario: Deployment, client: Client, cls: type[Any], agents: list[str], name: str) -> None:
    numbers: dict[str, int] = {}
    for plea in pleas(scenario.swarm.seed, name, agents):
        await asyncio.sleep(plea.rest_s)
        n = numbers[plea.agent] = numbers.get(plea.agent, 0) + 1
        call = Call(plea.agent, name, n, False)
        scenario.scene.calls.append(call)
        try:
            await getattr(client.get(cls, plea.agent), plea.kind).tell(name, n, plea.deadline_s)
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
                _ = await _answered(scenario, token, lambda: scenario.operator.resolve(token, "no number"))
            except CellError as error:
                if error.code != "BadArguments":
                    raise
                scene.counts["words of a wrong type"] += 1
        if word % 4:
            told = await _answered(scenario, token, lambda: scenario.operator.resolve(token, word))
        else:
            told = await _answered(scenario, token, lambda: scenario.operator.reject(token, f"no {word}"))
    except CellError as error:
        if error.code in OVER and scenario.world.power:
            scene.counts[f"word: {error.code}"] += 1
            return
        scenario.violate(f"I38: somebody resolved a wait, and got {error.code}: {error}")
        return
    scene.counts["words said"] += 1
    scene.told.append(
        Told(told.agent, wait_of(token).key, told.accepted, said, _text_of(told), scenario.world.loop.time())
    )


async def _answered(
    scenario: Deployment, token: str, call: Callable[[], Coroutine[Any, Any, WaitOutcome]]
) -> WaitOutcome:
    """Calls until there is an answer.  Raises `WaitOver` if a power cut has taken the message that would wait: then there is none."""

    async def once() -> WaitOutcome:
        if scenario.is_healed and _is_taken_away(scenario, token):
            raise WaitOver("A power cut has taken the message whose turn was to wait.")
        return await call()

    return await scenario.until_done(once)


def _is_taken_away(scenario: Deployment, token: str) -> bool:
    """Its sender, a client, has died with its process, and stores it no more."""
    wait, fold = wait_of(token), scenario.scene.folds.get(wait_of(token).agent)
    if not scenario.world.power or not is_client(wait.sender) or fold is None:
        return False
    stored = scenario.world.store.read(inbox_subject(wait.agent, priority_of(wait.sender)), 0, sys.maxsize)
    mails = [decode_mail(entry.data, wait.agent) for entry in stored]
    is_stored = any(mail.sender == wait.sender and any(one.n == wait.n for one in mail.messages) for mail in mails)
    return not is_stored and not fold.ledger.has_taken(wait.sender, wait.n)


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
