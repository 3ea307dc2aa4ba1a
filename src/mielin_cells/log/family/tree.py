"""Parents, children, and who is told when an agent fails: the part of a ledger that supervision needs (rule F1).  Pure.

A family does not go back with an undo: children exist, notices have been sent and restarts have been made, whatever state the agent
goes back to.  So a notice that is taken once more is known by its number, and a child that is spawned once more is found.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from mielin_cells.log.delta import StateDelta

OnFailure: TypeAlias = Literal["restart", "stop", "escalate"]
WhenEnded: TypeAlias = Literal["terminate", "suspend", "keep"]
Strategy: TypeAlias = Literal["one_for_one", "one_for_all", "rest_for_one"]
Order: TypeAlias = Literal["", "restart", "reload", "suspend"]
Status: TypeAlias = Literal["making", "running", "stopped", "escalated"]
Kind: TypeAlias = Literal["failed", "dead_letters", "terminated"]

ON_FAILURE: Final = ("restart", "stop", "escalate")
WHEN_ENDED: Final = ("terminate", "suspend", "keep")
STRATEGIES: Final = ("one_for_one", "one_for_all", "rest_for_one")

ROOTS_MAX = 64
"""Failures that an agent has failed for as a linked one, and remembers."""

GONE_MAX = 256

Root: TypeAlias = tuple[str, int]
"""The failure that others follow from: an agent, and the number of its failure."""


class Down(msgspec.Struct, frozen=True, kw_only=True):
    """A notice that another agent has failed or ended.  A handler that was given to `cells.monitor` gets it as its parameter.

    >>> down = cells.Down(agent="till-1", kind="failed", code="ConnectionError", n=1, failure=1)
    >>> f"{down.agent} {down.kind}: {down.code}"
    'till-1 failed: ConnectionError'
    """

    agent: str
    kind: Kind
    """failed: it is in ERROR.  dead_letters: so many of its messages have failed as its parent has set.  terminated: it ends."""
    cause: str = ""
    code: str = ""
    """Of the error, such as `HandlerFailed`."""
    n: int = 0
    """Number of the notice among those of this agent."""
    failure: int = 0
    """How often the agent had failed, with this time."""
    fatal: bool = False
    """It cannot be resumed."""
    root: Root = ("", 0)
    """The failure that this one follows from by links: an agent, and the number of its failure."""


class Parent(msgspec.Struct, array_like=True, frozen=True):
    """What a child knows of its parent, from its creation on."""

    agent: str
    key: bytes
    """Of the call of `cells.spawn` that made it: the same call finds its own child, and no other call does."""
    when_ended: WhenEnded
    """What the child does when its parent ends."""
    letters: int
    """The parent is told each time that so many messages have become dead letters; 0: never."""


class Watcher(msgspec.Struct, array_like=True, frozen=True):
    """An agent that is told of failures, by a message to this handler."""

    agent: str
    handler: str
    parameter: str

    @property
    def key(self) -> tuple[str, str]:
        return self.agent, self.handler


class Making(msgspec.Struct, array_like=True, frozen=True):
    """What a child is made of, until it is."""

    version: int
    state: StateDelta
    born: bytes
    node: str
    """"": the node with the fewest agents."""


class Child(msgspec.Struct, array_like=True):
    """What a parent knows of a child."""

    agent: str
    cls: str
    key: bytes
    on_failure: OnFailure
    when_ended: WhenEnded
    letters: int
    make: Making | None = None
    status: Status = "making"
    order: Order = ""
    """To be carried out; decided with the notice `seen`."""
    failure: int = 0
    """The child's failure that its restart is for."""
    seen: int = 0
    """Number of the last notice taken from it."""
    restarts: int = 0
    """Restarts and reloads decided for it, for people."""

    @property
    def parent_key(self) -> bytes:
        return self.key

    def copy(self) -> Child:
        return msgspec.structs.replace(self)


class Watched(msgspec.Struct, array_like=True, frozen=True, tag="watched"):
    watcher: Watcher


class Unwatched(msgspec.Struct, array_like=True, frozen=True, tag="unwatched"):
    agent: str
    handler: str


class Told(msgspec.Struct, array_like=True, frozen=True, tag="told"):
    """Notices to the parent and to all watchers are among the outputs of this commit."""

    n: int
    failed: int
    """Failures that have been told."""
    letters: int
    """Dead letters that this notice is about."""
    ends: bool = False


class Decided(msgspec.Struct, array_like=True, frozen=True, tag="decided"):
    """A notice of a child was taken, and what follows from it."""

    child: str
    n: int
    failure: int
    status: Status
    orders: list[tuple[str, Order]]
    """By child.  Each is carried out after this commit, by whichever node owns the parent then."""
    restarts: list[float]
    """When children were restarted within the window, by the store's time, with this one."""


class Gone(msgspec.Struct, array_like=True, frozen=True, tag="gone"):
    """The child has ended, or was never made."""

    child: str


class Carried(msgspec.Struct, array_like=True, frozen=True, tag="carried"):
    """The order was carried out."""

    child: str
    order: Order
    failure: int


class Born(msgspec.Struct, array_like=True, frozen=True, tag="born"):
    """The child was made, by the parent's node and not by the turn that spawned it."""

    child: str
    key: bytes


class Felled(msgspec.Struct, array_like=True, frozen=True, tag="felled"):
    """The agent fails because a linked one did."""

    root: Root


class Orphaned(msgspec.Struct, array_like=True, frozen=True, tag="orphaned"):
    """The parent has ended."""


FamilyChange: TypeAlias = Watched | Unwatched | Told | Decided | Gone | Carried | Born | Felled | Orphaned


class Family(msgspec.Struct, array_like=True):
    """The relations of one agent."""

    parent: Parent | None = None
    watchers: list[Watcher] = []
    children: dict[str, Child] = {}
    """In the order in which they were spawned."""
    restarts: list[float] = []
    failed: int = 0
    """Failures that the log has."""
    told_failed: int = 0
    told: int = 0
    """Notices that were sent."""
    letters: int = 0
    """Dead letters that no notice was about."""
    root: Root | None = None
    """The failure that the present one follows from."""
    roots: list[Root] = []
    gone: list[bytes] = []
    """Keys of the last children that have ended: a turn that is replayed after an undo does not spawn them again."""

    @property
    def of(self) -> str:
        """The parent's id; "" if there is none."""
        return self.parent.agent if self.parent is not None else ""

    @property
    def is_watched(self) -> bool:
        return self.parent is not None or bool(self.watchers)

    @property
    def has_orders(self) -> bool:
        return any(child.order or child.make is not None for child in self.children.values())

    # ---- changes: owner and readers make the same ones, in the same order ----------------------------------------

    def apply(self, change: FamilyChange) -> None:
        match change:
            case Watched(watcher):
                if not self.is_watched:
                    self.told_failed = self.failed  # what was before is no news
                if all(one.key != watcher.key for one in self.watchers):
                    self.watchers = [*self.watchers, watcher]
            case Unwatched(agent, handler):
                self.watchers = [one for one in self.watchers if one.key != (agent, handler)]
            case Told(n, failed, letters):
                self.told, self.told_failed = n, max(failed, self.told_failed)
                self.letters = max(0, self.letters - letters)
                self.root = None
            case Decided():
                self._decided(change)
            case Gone(gone):
                if gone in self.children:
                    self.gone = [*self.gone, self.children.pop(gone).key][-GONE_MAX:]
            case Carried(name, order, failure):
                child = self.children.get(name)
                if child is not None and child.order == order and (child.failure == failure or order != "restart"):
                    child.order = ""
            case Born(name, key):
                self.born(name, key, True)
            case Felled(root):
                self.root, self.roots = root, [*self.roots, root][-ROOTS_MAX:]
            case Orphaned():
                self.parent = None

    def _decided(self, change: Decided) -> None:
        child = self.children.get(change.child)
        if child is None or change.n <= child.seen:
            return
        child.seen, child.failure, child.status = change.n, max(change.failure, child.failure), change.status
        self.restarts = list(change.restarts)
        if change.status != "running":
            child.order = ""  # an earlier one must not restart what the parent has given up
        for name, order in change.orders:
            other = self.children.get(name)
            if other is not None and (other.order != "restart" or order == "restart"):
                other.order = order
                other.restarts += order in ("restart", "reload")

    def adopt(self, child: Child) -> None:
        """A turn is about to make the child (its step is in the log)."""
        if child.agent not in self.children and child.key not in self.gone:
            self.children[child.agent] = child.copy()

    def born(self, agent: str, key: bytes, is_made: bool) -> None:
        """The child was made; or its name was taken, and it is none."""
        child = self.children.get(agent)
        if child is None or child.key != key or child.make is None:
            return
        if is_made:
            child.make, child.status = None, "running"
        else:
            self.gone = [*self.gone, self.children.pop(agent).key][-GONE_MAX:]

    def has_failed(self) -> None:
        """The log says that the agent is in ERROR."""
        self.failed += 1

    def was_resumed(self) -> None:
        """After an escalation, children that were left in ERROR are restarted with it, and the window begins anew."""
        if not any(child.status == "escalated" for child in self.children.values()):
            return
        self.restarts = []
        for child in self.children.values():
            if child.status == "escalated":
                child.status, child.order = "running", "restart"

    def content(self) -> tuple[object, ...]:
        """For a digest."""
        return (
            self.parent, self.watchers, list(self.children.values()), self.restarts, self.failed, self.told_failed, self.told,
            self.letters, self.root, self.roots, self.gone,
        )  # fmt: skip

    @property
    def size_bytes(self) -> int:
        made = sum(
            sum(map(len, child.make.state.plain.values())) for child in self.children.values() if child.make is not None
        )
        return 128 * (len(self.children) + len(self.watchers) + 1) + made
