"""A deployment as its users hold it: the `Cluster` protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ParamSpec, Protocol, TypeVar

from mielin_cells.agents.reference import Reference
from mielin_cells.agents.reports import AgentInfo, DrainReport, MigrationReport, NodeInfo, RollbackReport

P = ParamSpec("P")
A = TypeVar("A", bound=Reference)


class Spawning(Protocol):
    async def spawn(self, make: Callable[P, A], id: str, /, *args: P.args, **state: P.kwargs) -> A:
        """Creates the agent if the id is free, and returns a reference when its creation is durable.

        An existing agent of the same class is returned as it is, the initial state unused; if that is not what it was made with,
        an `AlreadySpawned` is warned of.  Raises `WrongClass`, `AgentTerminated`, `InvalidAgentId`, `BadArguments`, `FieldRefused`.
        """


class Cluster(Spawning, Protocol):
    """A deployment: its agents and nodes.  `agent` arguments take a reference or an id."""

    def on(self, node: str, /) -> Spawning:
        """Spawns on this node."""

    def get(self, cls: type[A], id: str, /) -> A:
        """A reference, without any I/O: whether the agent exists shows when it is asked."""

    async def migrate(
        self, agent: Reference | str, /, to: str | None = None, *, recovery: Mapping[str, float] | None = None
    ) -> MigrationReport:
        """Moves the agent while it works, and reports when the move has ended, completed or rolled back (`report.check()` raises).

        Without `to`, to the other node with the fewest agents.  `recovery`: what this one move is to have of `RecoveryConfig`
        otherwise than its node and class say, such as `{"max_retries": 0}`.

        Raises `MigrationRefused` with every reason, `AlreadyThere`, `UnknownNode`, `MigrationInProgress`, `NoSuchAgent`,
        `AgentTerminated`, `ConfigError`: then nothing was begun.
        """

    async def rollback(
        self, migration: str, /, to: str | None = None, *, dry_run: bool = False, correct: bool = False
    ) -> RollbackReport:
        """Undoes a completed migration: the agent is back in the state that it was handed over in, on the node `to` (default: one
        that has the class as it was then, the migration's source before others), and takes the messages that came since once more.

        Guarantees: no message is lost; nothing that was sent is sent again, not even if it would now differ (`correct`: what
        differs is sent, and tells its receiver by `this().corrects` which message it stands in for); asks that were answered
        keep their answers; finished steps are not called again; other agents are not undone.  Not guaranteed: that a handler does
        the same twice; the report counts what differed.  Waits until the messages are taken again.

        Raises `NoSuchMigration`, `UsageError` for one that did not complete or is undone with an earlier one,
        `RollbackExpired` if the log is not kept that far back (setting `retention_s`), `MigrationRefused` with every reason,
        `UnknownNode`, `MigrationInProgress`, `AskTimeout`: then nothing was done.
        """

    async def abort(self, agent: Reference | str, /) -> str:
        """Cancels the agent's open migration, whose id is returned.  Raises `NoSuchMigration`, `TooLateToCancel`."""

    async def claim(self, agent: Reference | str, /, to: str) -> None:
        """Node `to` takes the agent over, whoever owns it now; the former owner is fenced by its next append."""

    async def cordon(self, node: str, /) -> None:
        """The node keeps its agents and takes no others, also after a restart, until `uncordon`.  Raises `UnknownNode`."""

    async def uncordon(self, node: str, /) -> None:
        """The node takes agents again; a drain of it begins no further move.  Raises `UnknownNode`."""

    async def drain(self, node: str, /, deadline_s: float | None = None) -> DrainReport:
        """Cordons the node and moves every agent off it, quiet ones first; returns when all have gone, or at the deadline
        (default: setting `drain_s`).  The agents of a node that is dead are claimed by others.

        Each agent is moved as by `migrate`: what is left is safe, runs on, and is claimable once the node has stopped.  A move that
        an operator aborts is not begun again.  Raises `UnknownNode`, and `MigrationRefused` if nobody could take an agent: then
        nothing was done.
        """

    async def standby(self, agent: Reference | str, /, copies: int = 1) -> None:
        """So many other nodes follow the agent's log from now on, if there are so many: losing its owner then costs the
        detection and one append, and no load.  Instead of what its class says.  Raises `UsageError` for a number above 8."""

    async def suspend(self, agent: Reference | str, /, reason: str = "") -> None:
        """No turn runs until `resume`; it can still be moved.  Raises `InvalidTransition`."""

    async def pause(self, agent: Reference | str, /, reason: str = "") -> None:
        """As `suspend`, at the wish of the agent's user."""

    async def resume(self, agent: Reference | str, /) -> None:
        """From suspended, paused, or error.  Raises `InvalidTransition` if the error is fatal."""

    async def terminate(self, agent: Reference | str, /) -> None:
        """Ends the agent for good, after what it sent is delivered; messages behind stay readable as dead letters."""

    async def show(self, agent: Reference | str, /) -> AgentInfo:
        """Raises `NoSuchAgent`, and `NoResponder` while its owner does not answer."""

    async def agents(self) -> list[AgentInfo]:
        """Every agent that a node runs now."""

    async def nodes(self) -> list[NodeInfo]:
        """The nodes that answer."""
