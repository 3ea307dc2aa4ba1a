"""What a deployment tells of its agents, nodes and moves."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from mielin_cells.errors import MigrationFailed
from mielin_cells.log.policy import DEFAULT, Policy


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A node as it tells of itself; or, of one that does not answer, as its log and others' hearing tell."""

    name: str
    incarnation: int
    agents: int
    state: str = "alive"
    """alive; starting (it takes over the agents that the log gives it); stuck (its process lives, its event loop does not
    answer, or the store refuses it); silent; stopped (cleanly)."""
    since_s: float = 0.0
    """For how long it has been so; of a silent node 0 if nobody has heard it."""
    at: float = 0.0
    """When its process entered, in wall seconds; 0: not known."""
    is_cordoned: bool = False
    """It takes no agents: by an operator's word, or because it is being drained."""
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


class AgentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An agent as its owner sees it.  `waiting`: messages in its inbox; `bytes`: its state as stored."""

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
    """Why it is in ERROR."""
    code: str = ""
    """Stable code of that."""
    policy: Policy = DEFAULT
    standby: list[str] = []
    """Nodes that keep a copy of it."""
    running: str = ""
    """The handler or hook that runs, if one waits for something now."""
    running_s: float = 0.0
    """For how long it has."""
    at: float = 0.0
    """When the last record of its log was made, in wall seconds; 0: not known."""


class TimerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A timer of an agent, as its owner sees it."""

    id: str
    handler: str
    due: float
    """In wall seconds."""
    every: float = 0.0
    """Seconds between its times; 0: once."""
    is_known: bool = True
    """Its class has the handler there; a repeating timer without one sends nothing until it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationReport:
    """What one migration did.  Phase times are seconds; `pause_ms` is the source's monotonic time from stopping the intake
    to reading `Accepted` (0 if it never paused)."""

    migration: str
    agent: str
    source: str
    target: str
    outcome: str
    """"completed", "rolled_back" or "gave_up"."""
    reason: str = ""
    """Why it did not complete."""
    code: str = ""
    """Stable code of what ended it."""
    reasons: tuple[str, ...] = ()
    """Every reason of a refusal."""
    kinds: tuple[str, ...] = ()
    """What each of them is, in the words of `migration.refusal`."""
    phases: tuple[tuple[str, float], ...] = ()
    """Each phase passed, with its duration."""
    pause_ms: float = 0.0
    bytes: int = 0
    """Log and state bytes that the target read."""
    rounds: int = 0
    attempts: int = 1
    held: int = 0
    """Messages that arrived in the pause."""
    arrived: int = 0
    """Messages that arrived between PREPARING and `Accepted`."""
    failures: tuple[str, ...] = ()
    """Each failed attempt: its class and why."""
    decisions: tuple[str, ...] = ()
    """What was decided after each: strategies by name."""
    restored: dict[str, str] = field(default_factory=dict)
    """Of a rollback behind the seal: what the source verified before it went on (digest, cursor, state, version)."""

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
    """What undoing a completed migration did, or of a dry run: would do."""

    migration: str
    agent: str
    source: str
    """The node that it ran on."""
    target: str
    """The node that it goes on at."""
    record: int
    """The record of its log that it is back at."""
    version: int
    """Of its class, before."""
    version_then: int
    """And at that record."""
    messages: int
    """Had been taken since, and are taken again."""
    sent: int
    """Messages that these had sent; none of them is sent again."""
    steps: int
    """Finished durable steps; none of them is called again."""
    answered: int
    """Asks of others that keep the answers they had."""
    replayed: int = 0
    """Messages taken again by now; `left` are still to be."""
    left: int = 0
    same: int = 0
    """Messages that would have been sent again just so."""
    differing: int = 0
    """Messages that would have been sent otherwise, and were not."""
    corrected: int = 0
    """With `correct`: were sent otherwise, each naming the message that it stands in for."""
    missing: int = 0
    """Messages that were not made again; they stay sent."""
    dead: int = 0
    """Dead letters written meanwhile."""
    trouble: str = ""
    """Why the agent has not gone on: the node that is to go on has not claimed it, or it is suspended or in ERROR.  It is safe."""

    @property
    def ok(self) -> bool:
        return not self.trouble and not self.left


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """What draining a node did."""

    node: str
    state: str
    """done; over (the deadline came); stopped (it was uncordoned meanwhile)."""
    agents: int
    """On the node when it began, and those that came since."""
    moved: int
    claimed: int = 0
    """Taken over by others, because the node was dead."""
    left: int = 0
    """Still on the node.  They run on if it does, and are claimable if it stops."""
    blocked: tuple[tuple[str, str], ...] = ()
    """Of those left, agents with what kept them."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.left
