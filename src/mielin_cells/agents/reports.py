"""The values that a cluster returns: what its nodes and agents are, and what a move, an undo or a drain did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from mielin_cells.errors import MigrationFailed
from mielin_cells.log.policy import DEFAULT, Policy
from mielin_cells.policy.deploys.health import Turns
from mielin_cells.policy.facts import UNKNOWN, Facts


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A node as it reports itself.  One that does not answer is described by its log and by the nodes that heard it last.

    >>> sorted((node.name, node.state) for node in await cluster.nodes())
    [('node-1', 'alive'), ('node-2', 'alive')]
    """

    name: str
    incarnation: int
    agents: int
    state: str = "alive"
    """"alive"; "starting": it takes over the agents that the log gives it; "stuck": its process lives, but its event loop does not
    answer or the store refuses it; "silent": it does not answer; "stopped": it left cleanly."""
    since_s: float = 0.0
    """Seconds in this state; 0 for a silent node that nobody has heard."""
    at: float = 0.0
    """When its process joined, in wall-clock seconds; 0 if that is not known."""
    is_cordoned: bool = False
    """It takes no agents, because an operator has cordoned it or it is being drained."""
    classes: dict[str, int] = {}
    """Agent classes with their versions."""
    cores: int = 0
    memory_bytes: int = 0
    architecture: str = ""
    labels: dict[str, str] = {}
    host: str = ""
    process: int = 0
    python: str = ""
    package: str = ""
    fleet: str = ""
    """The `mielin up` that has started its process, if one has."""
    is_reserved: bool = False
    """Of a cordoned node: it takes agents that are moved to it by name, as those of a deploy are."""
    turns: dict[str, Turns] = {}
    """By class, how the turns of its agents have fared; only a node that is asked itself says so."""
    facts: Facts = UNKNOWN
    """What it measures of itself, as it was told last; what it cannot measure is absent."""
    moves_out: int = 0
    moves_in: int = 0
    """Moves that are open, as the node itself says; 0 where it was not asked."""
    moved: int = 0
    """Moves from it that have completed since its process began; likewise."""
    moves: list[str] = []
    """Some of those from it, in words; likewise."""


class WaitInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An external wait that is open, as the agent's owner sees it."""

    name: str
    token: str = ""
    until: float = 0.0
    """Its deadline, by the store's time; 0: none."""
    handler: str = ""
    """Of a wait that keeps no turn open: what gets the value."""


class AgentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An agent as its owner sees it.  `waiting`: messages in its inbox; `bytes`: its state as stored.

    >>> info = await cluster.show(till)
    >>> info.id, info.cls, info.node, info.state
    ('till-1', 'Till', 'node-1', 'Running')
    """

    id: str
    cls: str
    version: int
    node: str
    epoch: int
    state: str
    waiting: int
    bytes: int
    migration: str = ""
    dead: int = 0
    """Dead letters."""
    error: str = ""
    """Why it is in ERROR, if it is."""
    code: str = ""
    """The stable code of that error."""
    policy: Policy = DEFAULT
    standby: list[str] = []
    """The nodes that keep a copy of it."""
    running: str = ""
    """The handler or hook that runs now."""
    running_s: float = 0.0
    """Seconds since it began."""
    at: float = 0.0
    """When the last record of its log was made, in wall-clock seconds; 0 if that is not known."""
    is_idle: bool = False
    """It had nothing to do for `idle_s` and has left its node's memory, until a message, a timer or an order wakes it."""
    parent: str = ""
    """The agent that has spawned it as a child, and supervises it."""
    children: int = 0
    """How many agents it has spawned as children."""
    waits: list[WaitInfo] = []
    """The external waits that are open."""


class WaitOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What stands of an external wait, once somebody has resolved or rejected it."""

    agent: str
    wait: str
    accepted: bool
    """This call has ended the wait.  False: it had ended before, and what follows is what stands."""
    outcome: Literal["value", "rejected", "timeout"]
    value: Any = None
    """As plain data."""
    reason: str = ""
    """Of a rejection; of a timeout, a sentence."""


class CallInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A call of an agent that has not taken effect, as its owner sees it."""

    id: str
    """For `cluster.cancel`."""
    handler: str
    sender: str
    priority: str
    is_ask: bool
    state: str
    """runs, waits, or failed (it waits to be run again)."""


class TimerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A timer of an agent, as its owner sees it."""

    id: str
    handler: str
    due: float
    """In wall-clock seconds."""
    every: float = 0.0
    """Seconds between two firings; 0 for a timer that fires once."""
    is_known: bool = True
    """The class on the owner's node has this handler.  While it has not, a repeating timer sends nothing."""
    cron: str = ""
    """The expression and the time zone of a timer that repeats by them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationReport:
    """The result of one migration.

    >>> report = await cluster.migrate(till, to="node-2")
    >>> report.ok, report.outcome, report.source, report.target
    (True, 'completed', 'node-1', 'node-2')
    """

    migration: str
    agent: str
    source: str
    target: str
    outcome: str
    """"completed", "rolled_back" or "gave_up"."""
    reason: str = ""
    """Why it did not complete."""
    code: str = ""
    """The stable code of the error that ended it."""
    error_type: str = ""
    """The type of the last attempt's failure, a value of `MigrationErrorType`; "" if it completed or was ended by a decision."""
    reasons: tuple[str, ...] = ()
    """Every reason, if it was refused."""
    kinds: tuple[str, ...] = ()
    """The kind of each of these reasons, as `migration.refusal` names it."""
    phases: tuple[tuple[str, float], ...] = ()
    """Each phase that it passed, with its duration in seconds."""
    pause_ms: float = 0.0
    """By the source's monotonic clock, from when it stopped taking messages until it read `Accepted`; 0 if it never paused."""
    bytes: int = 0
    """Bytes of log and state that the target read."""
    rounds: int = 0
    attempts: int = 1
    held: int = 0
    """Messages that arrived during the pause."""
    arrived: int = 0
    """Messages that arrived between PREPARING and `Accepted`."""
    failures: tuple[str, ...] = ()
    """Why each failed attempt failed."""
    decisions: tuple[str, ...] = ()
    """The strategy that was decided after each failure, by name."""
    restored: dict[str, str] = field(default_factory=dict)
    """After a rollback of a sealed move: what the source verified before it went on (digest, cursor, state, version)."""

    @property
    def ok(self) -> bool:
        return self.outcome == "completed"

    def check(self) -> MigrationReport:
        """The report itself, if the move completed.  Raises `MigrationFailed` if it was rolled back or given up."""
        if not self.ok:
            raise MigrationFailed(
                f"Agent {self.agent!r} was not moved from {self.source} to {self.target or 'another node'}: {self.outcome}"
                f"{': ' + self.reason if self.reason else ''}. It is safe, and runs where it ran.",
                agent=self.agent, migration=self.migration, reason=self.reason,
            )  # fmt: skip
        return self

    def __str__(self) -> str:
        head = f"{self.agent}  {self.source} -> {self.target}  {self.outcome}"
        lines = [head + (f": {self.reason}" if self.reason else "")]
        lines += [f"  {name.lower():<13}{seconds * 1000:9.2f} ms" for name, seconds in self.phases]
        lines.append(
            f"  pause {self.pause_ms:.2f} ms, {self.held} held, {self.bytes} bytes, "
            f"{self.rounds} rounds, {self.attempts} attempts  {self.migration}"
        )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackReport:
    """The result of undoing a completed migration or, for a dry run, the expected result.

    >>> move = await cluster.migrate(till, to="node-2")
    >>> await till.sell(100)
    100
    >>> undone = await cluster.rollback(move.migration, to="node-1")
    >>> undone.ok, undone.target, undone.messages
    (True, 'node-1', 1)
    """

    migration: str
    agent: str
    source: str
    """The node that the agent ran on."""
    target: str
    """The node that it continues on."""
    record: int
    """The record of its log whose state it has again."""
    version: int
    """The version of its class before the undo."""
    version_then: int
    """The version of its class at that record."""
    messages: int
    """Messages that it had handled since that record, and handles again."""
    sent: int
    """Messages that those turns had sent; none of them is sent again."""
    steps: int
    """Durable steps that those turns had finished; none of them is called again."""
    answered: int
    """Asks to the agent that had been answered; they keep their answers."""
    replayed: int = 0
    """Messages handled again so far."""
    left: int = 0
    """Messages that are still to be handled again."""
    same: int = 0
    """Messages that the agent would have sent again unchanged."""
    differing: int = 0
    """Messages that the agent would now have sent with other content; they were not sent."""
    corrected: int = 0
    """With `correct`: messages that were sent with other content, each naming the message that it replaces."""
    missing: int = 0
    """Messages that the agent did not make again; they stay sent."""
    dead: int = 0
    """Dead letters that were written meanwhile."""
    trouble: str = ""
    """Why the agent has not continued: the node has not claimed it, or the agent is suspended or in ERROR.  It is safe."""

    @property
    def ok(self) -> bool:
        return not self.trouble and not self.left


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """The result of draining a node.

    >>> _ = till  # it is on node-1
    >>> report = await cluster.drain("node-1")
    >>> report.ok, report.moved, report.left
    (True, 1, 0)
    """

    node: str
    state: str
    """"done"; "over": the deadline came; "stopped": the node was uncordoned meanwhile."""
    agents: int
    """Agents on the node when the drain began, and those that came since."""
    moved: int
    claimed: int = 0
    """Agents that other nodes took over, because the node was dead."""
    left: int = 0
    """Agents that are still on the node.  They keep running while it runs, and can be claimed once it stops."""
    blocked: tuple[tuple[str, str], ...] = ()
    """Agents that stayed, each with the reason."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.left
