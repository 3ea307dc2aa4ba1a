"""What a node gives the agents that it runs: connections, settings, and tasks that end with the node."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from mielin_cells.errors import OF_STORE, UNUSABLE, AgentInError, CellError, Fenced, InternalError, NotInTurn, from_wire
from mielin_cells.log.fold import Fold
from mielin_cells.node.activation.priorities.unrun import Unrun
from mielin_cells.node.topics.reader import Reader
from mielin_cells.policy.deploys.health import Turns
from mielin_cells.redaction import scrubbed
from mielin_cells.settings import Settings
from mielin_cells.store.clock import StoreClock
from mielin_cells.store.secret import Secret
from mielin_cells.substrate.ports import Log, Wire

if TYPE_CHECKING:
    from mielin_cells.agents.agent import Agent
    from mielin_cells.agents.cluster import Cluster

logger = logging.getLogger("mielin_cells.node")


class Hosted(Protocol):
    """An activation, as far as a node needs to know one that it forgets."""

    @property
    def fold(self) -> Fold: ...


@dataclass(slots=True)
class NodeContext:
    """One incarnation of one node, as its activations see it."""

    name: str
    incarnation: int
    log: Log
    wire: Wire
    rng: Random
    wall: Callable[[], float]
    settings: Settings
    reply_to: str
    lost: Callable[[Hosted, Exception], None]
    """An activation has found that it may not go on: the node forgets it and reads the log again."""
    step: Callable[[str], Awaitable[None]] | None = None
    """Awaited at named steps of moves: a test's way to make them fail.  What it raises fails the step."""
    cluster: Cluster | None = None
    """What handlers call other agents by.  Without it there are no references in handlers, and no orders to move."""
    resolve: Callable[[str], type[Agent] | None] | None = None
    """The class of a name, as it was defined last in this process."""
    obey: Callable[[str, str, str], Awaitable[object]] | None = None
    """Carries out an order for an agent that runs here: agent, order, reason."""
    topics: Reader | None = None
    """Reads topics for all agents of the node."""
    turns: dict[str, Turns] = field(default_factory=dict)
    """By class, how the turns of its agents have fared."""
    gone_records: int = 0
    gone_bytes: int = 0
    """What activations that have ended had appended to their agents' logs."""
    unrun: Unrun = field(default_factory=Unrun)
    """What is logged of messages that are taken without a run."""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    clock: StoreClock = field(init=False)
    """The store's time."""
    secret: Secret = field(init=False)
    """The deployment's, of which the tokens of waits are made."""
    _context: Context = field(default_factory=copy_context)
    """What runs at the end of a task runs in this context: one copy of a context for each task would take 64 bytes an agent."""

    def __post_init__(self) -> None:
        self.clock = StoreClock(self.log)
        self.secret = Secret(self.log)

    async def at(self, step: str) -> None:
        """A named step of a move begins: prepare, copy and probe on the target, pause on the source."""
        if self.step is not None:
            await self.step(step)

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """As `start`, for work that nobody waits for."""
        self.tasks.add(self.start(work))

    def start(
        self, work: Coroutine[Any, Any, Any], ended: Callable[[asyncio.Task[Any]], None] | None = None
    ) -> asyncio.Task[Any]:
        """Runs `work` in a task that is kept, and whose failure is logged with its traceback: such a failure is a bug.

        A task may also find that its agent has another owner, which the activation reports once (`lost`), or that the turn has ended
        for which it was to write a record.  Neither is a bug.  `ended` is called in place of `self.ended`, and must call it.
        """
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(ended or self.ended, context=self._context)
        return task

    def ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, (Fenced, NotInTurn)):
            logger.debug("node %s: a task ended: %s", self.name, error)
        elif isinstance(error, OF_STORE) and not isinstance(error, InternalError):
            logger.info("node %s: a task ended: %s", self.name, error)
        else:
            logger.error("node %s: a task failed: %r", self.name, error, exc_info=error)


LATER = "Your message waits, and may still take effect"
"""The end of a refusal that is no stored answer."""


def error_of(fold: Fold, node: str) -> CellError | None:
    """The error with which asks of an agent fail that is in ERROR on this node; None if it is not."""
    agent, error = fold.agent, fold.lifecycle.error
    if error is None:
        return None
    cause = scrubbed(error.message)
    if error.code in UNUSABLE:
        return from_wire(error.code, cause, {"agent": agent})
    return AgentInError(
        f"Agent {agent!r} is in ERROR on {node} and runs nothing: {cause.rstrip('.')}. {LATER}, once it is "
        f"resumed: `mielin resume {agent}`.",
        agent=agent, node=node, cause=cause,
    )  # fmt: skip


async def renewed(agent: str, order: Awaitable[object]) -> None:
    """Waits for the order to load an agent again, with the newer definition of its class."""
    try:
        await order
    except CellError as error:
        logger.warning("agent %s still runs the earlier definition of its class: %s", agent, error)


class StreamOwner:
    """An activation as the writers of its streams know it."""

    __slots__ = ("_core", "_runs")

    def __init__(self, core: Any) -> None:
        self._core = core
        self._runs = 0

    @property
    def log(self) -> Log:
        log: Log = self._core.home.log
        return log

    @property
    def agent(self) -> str:
        return str(self._core.fold.agent)

    @property
    def epoch(self) -> int:
        return int(self._core.fold.epoch)

    @property
    def is_open(self) -> bool:
        return bool(self._core.is_open)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._core.start(work)
        return task

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        _ = self.start(work)

    def next_run(self) -> int:
        self._runs += 1
        return self._runs

    async def check(self) -> None:
        """Raises `Fenced`, after closing the activation, if the log has another owner, or a `RetryError`."""
        try:
            await self._core.writer.reaches(self._core.fold.seq + 1)
        except Fenced as error:
            self._core.lose(error)
            raise
