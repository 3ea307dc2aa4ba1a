"""Whether every stored agent would load in an app, and could take what waits for it.  Nothing is changed, and no node is asked."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from mielin_cells.deployment.check.frames import Trial, Verdict, Waiting
from mielin_cells.deployment.check.sandbox import AGENT_S, IMPORT_S, Sandbox
from mielin_cells.errors import JournalGap, NoSuchAgent, RecordInvalid, StateUnloadable
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import Phase
from mielin_cells.store.letters import read_unread
from mielin_cells.store.reader import list_agents, load
from mielin_cells.substrate.ports import Log
from mielin_cells.tasks.together import together

READS = 16
"""Agents that are read at the same time, and so at most in memory."""

CALLS_MAX = 1000
"""Messages of one inbox that are looked at."""


SYSTEM = "cells."
"""Handlers that agents of all classes have, and messages that no handler gets."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that the app cannot go on with."""

    agent: str
    cls: str
    node: str
    version: int
    """Of the class that its state is stored as."""
    code: str
    """Of the error that keeps it from loading; "Calls": it loads, and cannot take what waits for it."""
    why: str


class ClassCheck(msgspec.Struct, kw_only=True):
    """The agents of one class."""

    cls: str
    agents: int = 0
    stored: list[int] = []
    """The versions that their states are stored as."""
    version: int | None = None
    """The version that the app has; None: it has not the class."""
    fails: int = 0
    """Agents that would not load."""
    calls: int = 0
    """Agents that load, and have calls waiting that the app cannot take."""

    @property
    def rises(self) -> bool:
        """States that the app has upgraded no longer load in the code that stored them."""
        return self.version is not None and any(version < self.version for version in self.stored)


class CheckReport(msgspec.Struct, kw_only=True):
    """The result of `mielin check`."""

    app: str
    classes: list[ClassCheck]
    troubles: list[Trouble]
    """The agents that would not load, or cannot take what waits for them, by id."""
    unreadable: list[Trouble]
    """The agents whose logs no code can read; a deploy leaves them as they are."""

    @property
    def agents(self) -> int:
        return sum(one.agents for one in self.classes)

    @property
    def ok(self) -> bool:
        return not self.troubles


async def check_app(
    log: Log, app: str, config: Path | None = None, only: Collection[str] = (), *, import_s: float = IMPORT_S,
    agent_s: float = AGENT_S, seen: Callable[[int, int], None] = lambda done, of: None,
) -> CheckReport:  # fmt: skip
    """Loads each agent, as it is stored now, in a process that has imported `app`.  `only`: agents of these classes, if any.

    `seen` is called with the number of agents done, and how many there are.  Raises `ConfigError` if the app cannot be imported.
    """
    sandbox = Sandbox(app, config, import_s, agent_s)
    try:
        await sandbox.start()
        names = [agent for agent, _ in await list_agents(log)]
        classes, troubles, unreadable, queue, done = (
            dict[str, ClassCheck](),
            list[Trouble](),
            list[Trouble](),
            iter(names),
            0,
        )

        async def worker() -> None:
            nonlocal done
            for agent in queue:
                found = await _read(log, agent, only)
                if isinstance(found, Trouble):
                    unreadable.append(found)
                elif found is not None:
                    fold, trial = found
                    _count(classes, sandbox.classes, fold, await sandbox.judge(trial), troubles)
                done += 1
                seen(done, len(names))

        await together(worker() for _ in range(READS))
    finally:
        await sandbox.close()
    return CheckReport(
        app=app, classes=[classes[name] for name in sorted(classes)], troubles=sorted(troubles, key=lambda one: one.agent),
        unreadable=sorted(unreadable, key=lambda one: one.agent),
    )  # fmt: skip


async def _read(log: Log, agent: str, only: Collection[str]) -> tuple[Fold, Trial] | Trouble | None:
    """None: the agent has ended, or is of a class that is not wanted."""
    try:
        fold = await load(log, agent)
    except NoSuchAgent:
        return None
    except (RecordInvalid, JournalGap, StateUnloadable) as error:
        return Trouble(agent=agent, cls="", node="", version=0, code=error.code, why=error.message)
    if fold.phase is Phase.TERMINATED or (only and fold.cls not in only):
        return None
    calls = await _calls(log, fold)
    return fold, Trial(agent, fold.cls, fold.version, fold.state.encode_small(), calls)


async def _calls(log: Log, fold: Fold) -> list[Waiting]:
    """What waits in the agent's inboxes, and what it will call of itself."""
    calls, ledger = list[Waiting](), fold.ledger
    async for letter in read_unread(log, fold):
        if letter.handler and not letter.handler.startswith(SYSTEM):
            calls.append(Waiting("message", letter.handler, letter.args))
        if len(calls) >= CALLS_MAX:
            break
    calls += [Waiting("timer", timer.handler, timer.args) for timer in ledger.timers.values()]
    if ledger.topics is not None:
        calls += [Waiting("topic", sub.handler) for sub in ledger.topics.by_key.values() if not sub.parked]
    if ledger.waits is not None:
        laters = ledger.waits.later.values()
        calls += [Waiting("wait", name) for later in laters for name in (later.handler, later.other) if name]
    return calls


def _count(
    classes: dict[str, ClassCheck], have: dict[str, int], fold: Fold, verdict: Verdict, troubles: list[Trouble]
) -> None:
    one = classes.setdefault(fold.cls, ClassCheck(cls=fold.cls, version=have.get(fold.cls)))
    one.agents += 1
    one.stored = sorted({*one.stored, fold.version})
    if not verdict.code and not verdict.calls:
        return
    code, why = (verdict.code, verdict.why) if verdict.code else ("Calls", "; ".join(verdict.calls))
    if verdict.code:
        one.fails += 1
    else:
        one.calls += 1
    troubles.append(Trouble(agent=fold.agent, cls=fold.cls, node=fold.owner, version=fold.version, code=code, why=why))
