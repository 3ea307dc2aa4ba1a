"""An activation is one agent on its owner, from being loaded to being handed over or dropped; a node has many of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from random import Random
from types import MappingProxyType
from typing import Any, Protocol

from mielin_cells.agents.agent import Agent
from mielin_cells.agents.cluster import Cluster
from mielin_cells.agents.live import Cell
from mielin_cells.agents.reports import AgentInfo
from mielin_cells.agents.spec import Spec, spec_of
from mielin_cells.errors import (
    CellError,
    NoSuchAgent,
    StateUnloadable,
    StoreUnreachable,
    UnknownClass,
    described,
    never,
    storable,
)
from mielin_cells.log.fold import Fold
from mielin_cells.log.inboxes.lines import NORMAL
from mielin_cells.log.lifecycle import AgentError, AgentState
from mielin_cells.log.records import Failed
from mielin_cells.membership.table import Members
from mielin_cells.membership.whereabouts import Placer
from mielin_cells.node.activation.context import Hosted, NodeContext, StreamOwner
from mielin_cells.node.activation.effects import Effects
from mielin_cells.node.activation.inbox import Arrival
from mielin_cells.node.activation.intake import Intake
from mielin_cells.node.activation.presence.resting import Resting
from mielin_cells.node.activation.presence.sleeper import Owned, Sleeper
from mielin_cells.node.activation.priorities.inboxes import Inboxes
from mielin_cells.node.activation.run import is_failure
from mielin_cells.node.activation.runner import Runner
from mielin_cells.node.activation.timers import NO_DUE, Timers
from mielin_cells.node.activation.writer import Writer
from mielin_cells.node.attributes.announcer import announce_held
from mielin_cells.node.family.kinship import kinship_of
from mielin_cells.node.streams.ends import Ends
from mielin_cells.node.topics.reader import Reader
from mielin_cells.rpc.answers import InboxRoom
from mielin_cells.settings import Settings
from mielin_cells.substrate.ports import Log, Tail, Wire
from mielin_cells.tasks.supervision import supervised

logger = logging.getLogger("mielin_cells.node")

OVERFLOW = 10
"""An inbox that drops its oldest messages takes up to so many times its limit while a turn runs."""


class Activation(Resting):
    """The owner's side of one agent.  Made with a fold that is at the log's end; `open` starts it."""

    __slots__ = ("__weakref__", "_dues", "_reader", "cell", "timers")

    def __init__(
        self, home: NodeContext, spec: Spec, cell: Cell, writer: Writer, *, tail: Tail | None = None,
        dues: Mapping[str, float] = NO_DUE,
    ) -> None:  # fmt: skip
        """`tail`, `dues`: its inbox's tail and its timers' times, of an agent that left memory and comes back."""
        super().__init__(home, spec, writer)
        self.cell = cell
        self._dues = dues
        self.inbox = Inboxes(self, tail)
        if spec.when_full(home.settings) == "drop_oldest":
            self.inbox.limit(spec.inbox_limit(home.settings))
        self.timers = Timers(self)
        effects = Effects(self, cell, self.timers)
        self.runner = Runner(self, cell, effects)
        self.intake = Intake(self, self.inbox, self.runner, effects, self.timers)
        self._reader: asyncio.Task[Any] | None = None
        self._ending: asyncio.Task[None] | None = None
        if spec.has_streams:
            self.ends = Ends(StreamOwner(self), home.settings.stream_keep_s)

    def room(self, priority: str = NORMAL) -> InboxRoom:
        """What is in the inbox of this priority, for senders.  While no turn runs nothing can be dropped: then a full inbox
        refuses, and so does one that has many times what it may, behind a turn that lasts."""
        inbox = self.inbox if priority == NORMAL else (self.inbox.others or {}).get(priority)
        settings, waiting = self.home.settings, inbox.waiting if inbox is not None else 0
        limit, when_full = self.spec.inbox_limit(settings), self.spec.when_full(settings)
        if when_full == "drop_oldest" and (not self.fold.may_run or waiting >= OVERFLOW * limit):
            when_full = "refuse"
        return InboxRoom(waiting, limit, when_full)

    def kick(self) -> None:
        self.intake.kick()
        if self.desk is not None:
            self.desk.look()

    def notice(self, arrival: Arrival) -> None:
        self.intake.orders.notice(arrival)

    def open(self) -> None:
        """Begins to serve: re-sends every committed output that the log does not show as stored, and reads the inbox."""
        self.is_open = True
        self.deliver()
        self._reader = self.start(self.inbox.read())
        self.timers.open(self._dues)
        self._dues = NO_DUE
        self.topics.open()
        if self.fold.ledger.family is not None:
            kinship_of(self).open()
        announce_held(self)
        self.commit_soon()
        if self.ends is not None:
            self._ending = self.start(self.ends.resume(self.fold.ledger))
        if self.fold.wish is not None:  # its former owner did not carry the order out
            self.fulfil()

    def close(self) -> None:
        super().close()
        self.inbox.close()
        self.intake.close()
        self.timers.close()
        if self.ends is not None:
            self.ends.close()
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()

    async def failed(self, error: BaseException, *, has_started: bool = True) -> None:
        """A hook raised, or the probe failed: the agent is in ERROR until it is resumed.

        `has_started` False: `on_start` is still to run.  If the activation was lost meanwhile, the hook has not failed:
        this raises why it was lost.
        """
        if self.lost is not None:
            raise self.lost
        # A user's exception may hold what no record takes.
        message, code = described(error), storable(type(error).__name__)
        logger.error("agent %s is in ERROR: %s", self.fold.agent, message, exc_info=error)
        await self.flush()
        if self.fold.lifecycle.state is not AgentState.PAUSED:
            found = AgentError(message=message, code=code, has_started=has_started)
            await self.append(lambda head: Failed(**head, error=found))
            if self.fold.ledger.family is not None:
                kinship_of(self).tell()
                self.commit_soon()

    def seal_at_once(self) -> bool:
        """Commits no more, once the intake has stopped: the handover will seal what has run.  False if a commit is in flight."""
        self._sealing = True
        return self._committing is None and self.lost is None

    async def seal_ready(self) -> None:
        """As `seal_at_once`, but waits for the commit in flight."""
        self._sealing = True
        while self._committing is not None:
            await self._settled.wait()
        if self.lost is not None:
            raise self.lost
        self.writer.check()  # else an activation that was closed meanwhile would hand over without what was in flight

    def resume_intake(self) -> None:
        """Takes messages again.  Only right if this activation still owns the agent (rule 6)."""
        self._sealing = False
        self.intake.resume()

    def unseal(self) -> None:
        """The seal is not in the log: its turns go back into the batch."""
        batch, self.inflight = self.inflight, None
        if batch is not None:
            if self._batch:
                raise never("not self.batch")
            self._batch = batch
            if self.readers is not None:
                self.readers.unsealed()

    def handed_over(self) -> None:
        """The seal is in the log: its answers may leave.  The next owner sends its outputs."""
        batch, self.inflight = self.inflight, None
        if self.readers is not None:
            self.readers.acknowledged(self._batch)
        if batch is not None and batch.answers:
            self.home.begin(self._let_out(batch.answers))

    def deliver(self) -> None:
        """Delivers the outputs that the log holds and does not show as stored.  Those of the batch wait for its commit (rule 9)."""
        waiting = {(out.to, out.n) for out in self._batch.outs} if self._batch else ()
        self.outbox.push_missing([out for out in self.fold.ledger.unreleased() if (out.to, out.n) not in waiting])


def loop_time() -> float:
    """A clock for a node whose event loop is fine enough; a loop's own time may be in whole milliseconds."""
    return asyncio.get_running_loop().time()


class Ownership(Protocol):
    """Decides from the logs which agents run here, and is notified when one begins or ends."""

    def look(self, agent: str, error: Exception | None = None) -> None:
        """Reads soon who owns the agent, since the log may name this node.  After errors of the store it waits longer each time."""

    def served(self, activation: Activation) -> None:
        """The agent runs here now."""

    def lost(self, activation: Hosted, error: Exception | None) -> None:
        """An activation has closed itself.  Without an error, another had taken its place already."""


class Activations:
    """The agents that one node runs.  `live` holds those that are served; `serve` and `drop` are the only ways in and out."""

    def __init__(
        self, name: str, log: Log, wire: Wire, classes: Callable[[str], type[Agent] | None], ownership: Ownership, *,
        settings: Settings, rng: Random, wall: Callable[[], float], clock: Callable[[], float] = loop_time,
        cluster: Cluster | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.settings = settings
        self.clock = clock
        """Measures how long moves and claims take."""
        self._classes = classes
        self._ownership = ownership
        self.home = NodeContext(name, 0, log, wire, rng, wall, settings, "", self._lost, cluster=cluster)
        self.home.topics = Reader(lambda: self.home.log, self._read_topic, settings.topic_poll_s)
        self.members = Members(log)
        """The nodes that there are, as this one has read."""
        self.spread = Placer(log)
        """Where agents of this node go that are moved without a target."""
        self.home.resolve = lambda name: self._classes(name)  # noqa: PLW0108 - a test may give the node other ones
        self._looked_at = -1e9
        """When turns that take too long were looked for."""
        self.live: dict[str, Activation] = {}
        self.asleep: dict[str, Sleeper] = {}
        """Agents that run here, and have left memory until there is something for them to do."""
        self._starting: set[str] = set()
        self._unloadable: dict[str, AgentInfo] = {}
        self.is_stopping = False

    # ---- who runs here ---------------------------------------------------------------------------------------

    def running(self, agent: str) -> Activation:
        """Raises `NoSuchAgent` if the agent does not run here, `StateUnloadable` if it should and cannot."""
        activation = self.live.get(agent)
        if activation is not None:
            return activation
        if agent in self._unloadable:
            why = self._unloadable[agent].error
            raise StateUnloadable(
                f"Agent {agent!r} cannot run on {self.name}: {why} Fix the cause, then resume the agent.", agent=agent
            )
        raise NoSuchAgent(f"Node {self.name} does not run agent {agent!r}.", agent=agent)

    def owns(self, agent: str) -> bool:
        """True if the agent runs here, in memory or not."""
        return agent in self.live or agent in self.asleep

    @property
    def count(self) -> int:
        return len(self.live) + len(self.asleep)

    def owned(self) -> list[Owned]:
        here = [Owned.of(one.fold, one.inbox.waiting_in_all) for one in self.live.values()]
        return here + [Owned.of(one, 0) for one in self.asleep.values()]

    async def awake(self, agent: str) -> Activation:
        """As `running`, after waking the agent if it has left memory."""
        while agent not in self.live and (sleeper := self.asleep.get(agent)) is not None:
            sleeper.stir()
            try:
                async with asyncio.timeout(self.settings.turn_deadline_s):
                    await sleeper.woken.wait()
            except TimeoutError:
                raise StoreUnreachable(
                    f"Agent {agent!r} had left memory, and node {self.name} cannot read its log; it is tried again.",
                    agent=agent,
                ) from None
        return self.running(agent)

    def forget(self, agent: str) -> None:
        """An agent that has left memory is not this node's any more, or is to be claimed from its log."""
        sleeper = self.asleep.pop(agent, None)
        if sleeper is not None:
            sleeper.end()

    def spec(self, name: str) -> Spec:
        cls = self._classes(name)
        if cls is None:
            raise UnknownClass(
                f"Node {self.name} does not know the agent class {name!r}; import its module there.", name=name
            )
        return spec_of(cls)

    def writer(self, fold: Fold) -> Writer:
        home = self.home
        return Writer(home.log, fold, self.name, home.incarnation, home.rng, self.settings.regression_s, home.wall)

    def look(self, agent: str, error: Exception | None = None) -> None:
        self._ownership.look(agent, error)

    def _read_topic(self, pattern: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.home.begin(supervised(f"node {self.name}: reading topics {pattern}", loop))

    def log_overdue(self) -> None:
        """To be called often: it looks at all agents of this node, and does so a few times within the deadline of a turn."""
        now = self.clock()
        if now - self._looked_at < self.settings.turn_deadline_s / 4:
            return
        self._looked_at = now
        for activation in self.live.values():
            if activation.runner.turn is not None:
                activation.runner.log_overdue()

    # ---- in and out ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def starting(self, agent: str) -> Iterator[None]:
        """Marks an agent that is being created or claimed here, until its hooks have run: nobody else may begin that."""
        is_outermost = agent not in self._starting
        self._starting.add(agent)
        try:
            yield
        finally:
            if is_outermost:
                self._starting.discard(agent)

    def is_starting(self, agent: str) -> bool:
        return agent in self._starting

    async def arrive(self, activation: Activation) -> None:
        """Runs the hooks of an agent that becomes active here; `on_start` until it has taken effect once."""
        is_new = activation.fold.lifecycle.state is AgentState.CREATED
        try:
            await activation.runner.hook("on_arrive")
            if is_new:
                await activation.runner.hook("on_start")
                activation.touch()
        except BaseException as error:  # whatever a user's hook raises: ERROR until it is resumed
            if not is_failure(error) or activation.lost is not None:
                raise
            await activation.failed(error, has_started=not is_new)

    def serve(self, activation: Activation) -> None:
        """The log says that this node owns the agent, and the agent is loaded."""
        agent = activation.fold.agent
        former = self.live.get(agent)
        if former is not None and former is not activation:  # of an earlier epoch: its next append would fail
            self.drop(former)
        self.forget(agent)
        if self.is_stopping:  # it began to stop after the claim began: the agent stays claimable
            activation.close()
            return
        self.live[agent] = activation
        self._unloadable.pop(agent, None)  # the agent may have come back by a move
        activation.open()
        self._ownership.served(activation)

    def drop(self, activation: Activation) -> None:
        if self.live.get(activation.fold.agent) is activation:
            del self.live[activation.fold.agent]
        activation.close()

    def _lost(self, activation: Hosted, error: Exception) -> None:
        was_live = self.live.get(activation.fold.agent) is activation
        if was_live:
            del self.live[activation.fold.agent]
            logger.warning("node %s: %s", self.name, error)
        self._ownership.lost(activation, error if was_live else None)

    # ---- what cannot run -------------------------------------------------------------------------------------

    @property
    def unloadable(self) -> Mapping[str, AgentInfo]:
        """Agents that the log gives this node and that it cannot run, with the reason.  They stay claimable."""
        return MappingProxyType(self._unloadable)

    def cannot_run(self, agent: str, fold: Fold | None, error: CellError) -> None:
        """Shows operators why an agent does not run.  Nothing is written, so another node may take it."""
        self._unloadable[agent] = AgentInfo(
            id=agent, cls=fold.cls if fold is not None else "", version=fold.version if fold is not None else 0,
            node=self.name, epoch=fold.epoch if fold is not None else 0, state=AgentState.ERROR.value, waiting=0,
            bytes=fold.size_bytes if fold is not None else 0, error=error.message, code=error.code,
            at=fold.written if fold is not None else 0.0,
        )  # fmt: skip

    def can_run(self, agent: str) -> None:
        """Forgets why an agent did not run: that is over, or another node owns the agent now."""
        self._unloadable.pop(agent, None)

    # ---- the end ---------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """From now on no further agent is served."""
        self.is_stopping = True

    def close(self) -> None:
        for activation in list(self.live.values()):
            self.drop(activation)
        for agent in list(self.asleep):
            self.forget(agent)
