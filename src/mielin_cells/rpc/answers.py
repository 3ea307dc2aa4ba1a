"""Answers of nodes to the requests of `rpc.requests`, as far as no other room has a type for them."""

from __future__ import annotations

import msgspec

from mielin_cells.agents.reports import MigrationReport
from mielin_cells.log.commit import ReplayCounts
from mielin_cells.migration import refusal
from mielin_cells.settings import WhenFull

RUNNING, DONE, STOPPED, OVER = "running", "done", "stopped", "over"
"""States of a drain.  OVER: its deadline has passed; STOPPED: an operator has uncordoned the node."""

ROWS_MAX = 500
"""Agents in one answer about a drain: those that move and those that are blocked come first."""


class Beat(msgspec.Struct, array_like=True, frozen=True):
    """A node's heartbeat."""

    node: str
    incarnation: int
    stuck_s: float
    """How long the node's main loop has not answered its heartbeat thread, or the store has refused the node."""
    ago_s: float = 0.0
    """In an answer about other nodes: the seconds since this heartbeat was received."""
    is_starting: bool = False
    """The node still takes over the agents that the log gives it."""
    silent: list[str] | None = None
    """Of a node that listens to all: the members that it does not hear.  None: it is no witness of anybody's silence."""
    agents: int = 0
    has_copies: bool = False
    """It keeps standby copies."""
    facts: bytes = b""
    """What it measures of itself (`policy.facts.packed`), if that differs noticeably from what the table of members says; else empty.
    Bytes, so that a heartbeat is heard whatever they are."""


class InboxRoom(msgspec.Struct, array_like=True, frozen=True):
    """How many messages wait in an agent's inbox, how many may, and what becomes of more."""

    waiting: int
    limit: int
    when_full: WhenFull

    @property
    def is_full(self) -> bool:
        """True if no more may be sent now.  An inbox that drops its oldest messages takes every new one."""
        return self.waiting >= self.limit and self.when_full != "drop_oldest"


class Preparation(msgspec.Struct, array_like=True, frozen=True):
    """Every reason against taking the agent.  Without any, the target has reserved room for it."""

    refusals: list[refusal.Refusal]

    @property
    def reasons(self) -> list[str]:
        """The refusals as sentences."""
        return list(map(str, self.refusals))


class CopyReport(msgspec.Struct, array_like=True, frozen=True):
    """How far a target's copy is: the last sequence folded, and what was read for it."""

    seq: int
    records: int
    bytes: int


class Progress(msgspec.Struct, array_like=True, frozen=True):
    """An open migration's phase, or, once it has ended, its outcome and report."""

    phase: str
    report: MigrationReport | None = None
    passed: list[tuple[str, float]] = []
    """Finished phases with their seconds."""
    rounds: int = 0
    bytes: int = 0
    """Log and state bytes that the target has read."""
    attempts: int = 1
    target: str = ""
    failures: list[str] = []
    """Type and reason of each failed attempt."""
    next_s: float = 0.0
    """Between attempts: the seconds until the next one."""

    @classmethod
    def of(cls, report: MigrationReport) -> Progress:
        """Of a migration that has ended."""
        return cls(report.outcome, report, list(report.phases))


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What a move would take.  Changes made during the move come on top of `bytes`, the size of the state now."""

    agent: str
    source: str
    target: str
    bytes: int
    rounds: int
    pause_ms: float
    basis: str
    """What `pause_ms` is estimated from."""
    reasons: list[str] = []
    """Every reason why the target would refuse now."""


class UndoPlan(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What an undo does, or would do.  `state` and `version` are those of now, `..._then` those of the record it goes back to."""

    agent: str
    migration: str
    node: str
    goes_to: str
    record: int
    version: int
    version_then: int
    messages: int
    sent: int
    steps: int
    answered: int
    state: str
    state_then: str
    reasons: list[str] = []
    trouble: str = ""
    """Why the chosen node has not claimed the agent, although the undo is done."""
    kinds: list[str] = []
    """The kind of each of the reasons, as `migration.refusal` names it."""


class ReplayProgress(msgspec.Struct, array_like=True, frozen=True):
    """Progress of an agent that takes messages again after an undo."""

    left: int
    replayed: ReplayCounts
    dead: int
    stopped: str = ""
    """Why the agent takes no messages now."""


class Reading(msgspec.Struct, array_like=True, frozen=True):
    """What a shared handler returned (an `Answer` in msgpack), on the state as of the record `revision` of the agent's log."""

    answer: bytes
    revision: int


class AskStatus(msgspec.Struct, array_like=True, frozen=True):
    """The state of asks without an answer at their receiver."""

    missing: list[int] | None
    """Numbers that the owner, which is idle, has never seen; None if no owner can be asked now."""
    why: str
    """Why there is no answer, as far as it is known; for people."""
    waits_for: list[str] = []
    """The agents that have been asked in the turn that runs there, and have not answered; some of them, if they are many."""


class Row(msgspec.Struct, kw_only=True):
    """An agent that has not left a draining node.  `state`: waiting, moving, blocked; in a dry run: fits, blocked."""

    agent: str
    state: str = "waiting"
    target: str = ""
    phase: str = ""
    blocker: str = ""
    """Why it has not left."""
    messages: int = 0
    """Messages in its inbox."""
    bytes: int = 0


class DrainProgress(msgspec.Struct, kw_only=True):
    """How far a drain is.  `state`: none, running, done, stopped, over."""

    node: str
    state: str = "none"
    agents: int = 0
    """The agents at the start, and those that came later."""
    moved: int = 0
    left: int = 0
    rows: list[Row] = []
    seconds: float = 0.0
    left_s: float = 0.0
    """Seconds to the deadline."""
    eta_s: float = 0.0
    """0 until an agent has moved."""
