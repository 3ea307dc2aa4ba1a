"""Watching an agent: its committed states as its log tells them, the newest at each time."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import NamedTuple

from mielin_cells.agents.shared.frozen import Frozen
from mielin_cells.agents.shared.watched import Watched
from mielin_cells.agents.spec import Spec
from mielin_cells.errors import AgentTerminated, RecordInvalid, RetryError, StateUnloadable, WrongClass
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import AnyRecord, Terminated, Undone
from mielin_cells.log.rules import commit_of
from mielin_cells.log.state import StoredState
from mielin_cells.store.follower import LogFollower
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Log
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.client")


class Stored(NamedTuple):
    """A committed state of an agent, as it is stored."""

    revision: int
    at: float
    """When the record was written, in wall seconds."""
    state: StoredState
    cls: str
    version: int


async def watch_log(log: Log, agent: str, after: int = 0) -> AsyncIterator[Stored]:
    """The committed states behind record `after`, the newest first of all; a reader that is slow misses those in between.

    Ends when the agent does.  While the store does not answer it waits.  Raises `NoSuchAgent`, `AgentTerminated`.
    """
    shown, backoff, has_begun = after, Backoff(), False
    while True:
        follower: LogFollower | None = None
        try:
            fold = await load(log, agent)
            if fold.phase is Phase.TERMINATED:
                if has_begun:
                    return
                raise AgentTerminated.of(agent)
            has_begun = True
            if fold.seq > shown:
                shown = fold.seq
                yield _stored(fold)
            follower = LogFollower(log, fold)
            is_new = False
            while (record := await follower.next()) is not None:
                backoff.reset()
                is_new = is_new or changes_state(record)
                if is_new and not follower.has_more and fold.seq > shown:
                    shown, is_new = fold.seq, False
                    yield _stored(fold)
                if isinstance(record, Terminated):
                    return
            return
        except (
            RetryError,
            RecordInvalid,
        ) as error:  # the store is away, or what follows was trimmed: the log is read anew
            logger.info("agent %s: the watch reads its log again: %s", agent, error)
        finally:
            if follower is not None:
                follower.close()
        await backoff.wait()


def changes_state(record: AnyRecord) -> bool:
    commit = commit_of(record)
    return isinstance(record, Undone) or (commit is not None and commit.state is not None)


def _stored(fold: Fold) -> Stored:
    return Stored(fold.seq, fold.written, fold.state.frozen(), fold.cls, fold.version)


async def watch_agent(log: Log, spec: Spec, agent: str, after: int) -> AsyncIterator[Watched[object]]:
    """As `watch_log`, as instances of the class.  Raises also `WrongClass`, and `StateUnloadable` for another class version."""
    async for stored in watch_log(log, agent, after):
        if stored.cls != spec.name:
            raise WrongClass(
                f"Agent {agent!r} is a {stored.cls}, not a {spec.name}.", agent=agent, have=stored.cls, need=spec.name
            )
        if stored.version != spec.version:
            raise StateUnloadable(
                f"The state of agent {agent!r} is of version {stored.version} of {spec.name}, and this program has version "
                f"{spec.version}; watch it with the version that runs.", agent=agent, path=spec.name,
            )  # fmt: skip
        yield Watched(stored.revision, Frozen(spec, stored.state, agent, f"Who watches a {spec.name}").agent)
