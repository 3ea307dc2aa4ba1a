"""The agents that run on one node: who is served, who is about to be, and who cannot be."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from random import Random
from types import MappingProxyType
from typing import Protocol

from mielin_cells.agents.agent import Agent
from mielin_cells.agents.reports import AgentInfo
from mielin_cells.agents.spec import Spec, spec_of
from mielin_cells.errors import CellError, NoSuchAgent, StateUnloadable, UnknownClass, described
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.node.activation.activation import Activation
from mielin_cells.node.activation.context import Hosted, NodeContext
from mielin_cells.node.activation.run import is_failure
from mielin_cells.node.activation.writer import Writer
from mielin_cells.settings import Settings
from mielin_cells.substrate.ports import Log, Wire
from mielin_cells.tasks.together import together

logger = logging.getLogger("mielin_cells.node")

DEPARTURES_MAX = 32
"""Agents that a node lets go at the same time when it stops."""


def loop_time() -> float:
    """A clock for a node whose event loop is fine enough; a loop's own time may be in whole milliseconds."""
    return asyncio.get_running_loop().time()


class Ownership(Protocol):
    """What reads in the logs whose an agent is, and is told what becomes of it here."""

    def look(self, agent: str, error: Exception | None = None) -> None:
        """Reads who owns the agent, soon: the log may name this node.  After an error of the store it waits longer each time."""

    def served(self, activation: Activation) -> None:
        """The agent runs here now."""

    def lost(self, activation: Hosted, error: Exception | None) -> None:
        """An activation found that it may not go on; without an error, another had taken its place already."""


class Activations:
    """`live` holds the agents that are served; `serve` and `drop` are the only ways in and out."""

    def __init__(
        self, name: str, log: Log, wire: Wire, classes: Callable[[str], type[Agent] | None], ownership: Ownership, *,
        settings: Settings, rng: Random, wall: Callable[[], float], clock: Callable[[], float] = loop_time,
    ) -> None:  # fmt: skip
        self.name = name
        self.settings = settings
        self.clock = clock
        """Measures how long moves and claims take."""
        self._classes = classes
        self._ownership = ownership
        self.home = NodeContext(name, 0, log, wire, rng, wall, settings, "", self._lost)
        self.home.resolve = lambda name: self._classes(name)  # noqa: PLW0108 - a test may give the node other ones
        self.live: dict[str, Activation] = {}
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
                f"Agent {agent!r} cannot run on {self.name}: {why} Mend it, then resume.", agent=agent
            )
        raise NoSuchAgent(f"Node {self.name} does not run agent {agent!r}.", agent=agent)

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

    def log_overdue(self) -> None:
        for activation in self.live.values():
            activation.runner.log_overdue()

    # ---- in and out ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def starting(self, agent: str) -> Iterator[None]:
        """While the agent is created or claimed here and its hooks run: nobody else is to begin that."""
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
        if former is not None and former is not activation:  # of an earlier epoch: it would find out at its next append
            self.drop(former)
        if self.is_stopping:  # since the claim was begun: the agent stays claimable
            activation.close()
            return
        self.live[agent] = activation
        self._unloadable.pop(agent, None)  # whatever it was before the agent came here again, by a move
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
        """Shows operators why; nothing is written, so another node may take the agent."""
        self._unloadable[agent] = AgentInfo(
            id=agent, cls=fold.cls if fold is not None else "", version=fold.version if fold is not None else 0,
            node=self.name, epoch=fold.epoch if fold is not None else 0, state=AgentState.ERROR.value, waiting=0,
            bytes=fold.size_bytes if fold is not None else 0, error=error.message, code=error.code,
            at=fold.written if fold is not None else 0.0,
        )  # fmt: skip

    def can_run(self, agent: str) -> None:
        """What kept the agent from running is over, or it is another node's trouble now."""
        self._unloadable.pop(agent, None)

    # ---- the end ---------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """From now on no agent is served that is not served already."""
        self.is_stopping = True

    async def depart(self, turns_s: float, until: float) -> None:
        """Lets turns end, commits land and `on_depart` run, for all agents that are live."""
        limit = asyncio.Semaphore(DEPARTURES_MAX)

        async def depart(activation: Activation) -> None:
            async with limit:
                await self._depart(activation, turns_s, until)

        await together(depart(activation) for activation in list(self.live.values()))

    async def _depart(self, activation: Activation, turns_s: float, until: float) -> None:
        if activation.lost is not None:
            return
        if activation.is_idle and not activation.spec.overrides("on_depart") and await activation.intake.stop_at_once():
            return  # thousands of them wait for nothing
        try:
            async with asyncio.timeout_at(until):
                await activation.intake.stop(turns_s)
                if activation.fold.may_run:
                    await activation.runner.hook("on_depart")
                await activation.flush()
        except (CellError, TimeoutError) as error:
            logger.warning(
                "agent %s did not come to rest before node %s stopped: %s; what was acknowledged is kept, and its turn "
                "runs again at its next owner", activation.fold.agent, self.name, described(error),
            )  # fmt: skip
        except BaseException as error:  # the user's hook: the node stops all the same, and what was committed stays
            if not is_failure(error):
                raise
            logger.error(
                "agent %s: on_depart raised as node %s stopped: %s", activation.fold.agent, self.name, described(error)
            )

    def close(self) -> None:
        for activation in list(self.live.values()):
            self.drop(activation)
