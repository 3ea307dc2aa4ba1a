"""An agent as of one record of its log: the fields that the fold changes and all others read."""

from __future__ import annotations

from blake3 import blake3

from mielin_cells.errors import DigestMismatch
from mielin_cells.log.codec import pack
from mielin_cells.log.commit import OpenTurn, TurnCall, Wish
from mielin_cells.log.inboxes.lines import NORMAL
from mielin_cells.log.inboxes.places import HasPlace, first_needed, gone_back
from mielin_cells.log.ledger import Ledger
from mielin_cells.log.lifecycle import AgentState, Lifecycle, Phase
from mielin_cells.log.policy import DEFAULT
from mielin_cells.log.records import Asked, SnapshotRef, Stepped
from mielin_cells.log.state import StoredState

IN_SNAPSHOT = (
    "cls", "version", "lifecycle", "turn", "claims", "outcomes", "handed", "undone", "policy", "standby", "wish", "born",
)  # fmt: skip
"""Fields of a fold that a snapshot carries under the same names, beside state and ledger."""


class Image:
    """An agent as of record `seq` of its log.  Only `Fold` changes it."""

    __slots__ = (
        "agent", "behind_bytes", "behind_records", "born", "claims", "cls", "epoch", "goes_to", "handed", "incarnation",
        "last_digest", "ledger", "lifecycle", "migration", "outcomes", "owner", "phase", "policy", "seq", "snap", "snapshots",
        "source", "source_incarnation", "standby", "state", "turn", "undone", "version", "wish", "written",
    )  # fmt: skip

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.seq = 0
        self.written = 0.0
        """When record `seq` was made, by its writer's clock; for people."""
        self.snap = 0
        self.epoch = 0
        self.owner = ""
        self.incarnation = 0
        self.phase = Phase.NONE
        self.source = ""
        """In probation: the node that handed over, and its incarnation."""
        self.source_incarnation = 0
        self.migration = ""
        self.cls = ""
        self.version = 0
        self.lifecycle = Lifecycle()
        self.policy = DEFAULT
        self.standby: int | None = None
        """Nodes that are to keep a copy; None: as many as its class says."""
        self.born = b""
        """Digest of the initial state; empty if that is not known."""
        self.wish: Wish | None = None
        """The order that the agent's last turn gave for the agent itself, until it has taken effect."""
        self.ledger = Ledger()
        self.state = StoredState()
        self.last_digest: bytes | None = None
        """The digest of the state according to the last commit; None before the first."""
        self.turn: OpenTurn | None = None
        self.claims = 0
        """Claims of the agent with its turn open and nothing new from it: a message that kills its process shows here (rule 5).
        An owner that has claimed opens the first turn by a record before it runs it, so a node that dies of something else,
        before it came to the message, does not count against it."""
        self.outcomes: dict[str, str] = {}
        self.handed: dict[str, int] = {}
        """The sequence at which each of these migrations handed over."""
        self.undone: list[tuple[int, int]] = []
        """Undone parts of the log: the record gone back to, and the `Undone` record."""
        self.goes_to = ""
        """After an undo: the node that is to run the agent, until one has claimed it."""
        self.snapshots: list[SnapshotRef] = []
        """Those that are kept, oldest first."""
        self.behind_records = 0
        """Records since the last snapshot: what a load replays."""
        self.behind_bytes = 0
        """Their size, as counted by whoever reads or writes them."""

    @property
    def status(self) -> AgentState:
        """The state that users see; `Migrating` is derived from the phase (rule 20 keeps the flags apart from ownership)."""
        return AgentState.MIGRATING if self.phase is Phase.PROBATION else self.lifecycle.state

    @property
    def may_run(self) -> bool:
        """True if turns may run: in phase run, and neither suspended, paused, failed nor terminated."""
        return self.phase is Phase.RUN and self.lifecycle.state.accepts_work and not self.goes_to

    @property
    def floor(self) -> int:
        """The log is kept from here on (rule 18); 0: all of it."""
        return self.snapshots[0].seq if self.snapshots else 0

    def is_ancestor(self, seq: int) -> bool:
        """True for a record that the agent's state still comes from: kept, and not itself undone (rule 16)."""
        return max(self.floor, 1) <= seq <= self.seq and not any(to < seq < by for to, by in self.undone)

    def seal_digest(self) -> bytes:
        """Digest that a handover seals: of the stored state, the whole ledger, and the policy."""
        return blake3(self.state.digest() + self.ledger.digest() + pack(self.policy)).digest()

    @property
    def size_bytes(self) -> int:
        """Bytes that a move carries: state and ledger."""
        return self.state.size_bytes + self.ledger.size_bytes

    def verify(self) -> None:
        """Raises `DigestMismatch` if the state is not the one that its owner had at the last commit."""
        if self.last_digest is not None and self.state.digest() != self.last_digest:
            raise DigestMismatch(
                f"The state of agent {self.agent!r} as read up to {self.seq} does not match the digest of its last commit; "
                "the agent does not run here. Its log is unchanged: load it from an earlier snapshot.",
                subject=self.agent, seq=self.seq,
            )  # fmt: skip

    def inbox_kept_from(self, priority: str = NORMAL) -> int:
        """Entries of this inbox before this position may be trimmed: no snapshot that the agent can be loaded from needs them."""
        return min((one.needs(priority) for one in self.snapshots), default=0)

    def lost_of(self, now: Image) -> tuple[int, int, str] | None:
        """Of an inbox that an undo from `now` back to this would read in vain: the entry that it needs, the first one that is kept,
        and which inbox that is; None if there is none."""
        places = now.ledger.inboxes or {}
        before = gone_back(places, self.ledger.inboxes) or {}
        all_places: list[tuple[str, HasPlace]] = [(NORMAL, self.ledger), *before.items()]
        for priority, place in all_places:
            needs, kept = first_needed(place), now.inbox_kept_from(priority)
            if needs < kept:
                return needs, kept, "" if priority == NORMAL else f"{priority} "
        return None

    def calls_before(self, record: Asked | Stepped) -> list[TurnCall]:
        """The calls that the log has of the turn that `record` belongs to."""
        turn = self.turn
        return turn.calls if turn is not None and (turn.sender, turn.n) == (record.sender, record.input) else []

    def has_sent(self, record: Asked | Stepped) -> bool:
        """True if parts of that turn's stream may have left, once the record has landed."""
        turn = self.turn
        is_same = turn is not None and (turn.sender, turn.n) == (record.sender, record.input)
        return (isinstance(record, Stepped) and record.sends) or (is_same and turn is not None and turn.sends)
