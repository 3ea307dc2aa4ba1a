"""What a turn spawns, watches, and decides about children."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import msgspec
from blake3 import blake3

from mielin_cells.agents.retry import Retry
from mielin_cells.errors import PASSING, CellError, NameTaken, UsageError
from mielin_cells.log.codec import pack
from mielin_cells.log.commit import Wish
from mielin_cells.log.family.made import MADE, MEANT, Outcome, decode_outcome
from mielin_cells.log.family.notices import LINKED
from mielin_cells.log.family.supervise import decide
from mielin_cells.log.family.tree import (
    Child,
    Down,
    Family,
    FamilyChange,
    Felled,
    Orphaned,
    Unwatched,
    Watched,
    Watcher,
)
from mielin_cells.log.ids import log_subject
from mielin_cells.log.message import is_client
from mielin_cells.node.family.kinship import Kin, spawn_of
from mielin_cells.store.reader import load

CHILDREN_MAX = 1000
WATCHERS_MAX = 1000
"""Of one agent: they are in each snapshot and each move."""

RETRY = Retry(tries=5, first_s=0.1, max_s=2.0)


class Turn(Protocol):
    """What is needed of the turn."""

    sender: str
    n: int
    changes: list[FamilyChange] | None
    wish: Wish | None
    broken: CellError | None

    @property
    def id(self) -> str: ...
    @property
    def _core(self) -> Any: ...
    def _open(self) -> None: ...
    async def make_step(
        self, name: str, call: Any, args: tuple[Any, ...], retry: Retry, timeout: float | None
    ) -> Any: ...


class FamilyCalls:
    """The part of a turn that deals with the agent's family.  What it notes takes effect once the turn is committed."""

    changes: list[FamilyChange] | None = None
    wish: Wish | None = None
    """An order of the turn for its own agent."""

    async def spawn_child(self: Turn, child: Child) -> None:
        """What `cells.spawn` says."""
        self._open()
        if not self.sender:
            raise UsageError(f"A hook of agent {self.id!r} cannot spawn {child.agent!r}; spawn it in a handler.")
        key = blake3(f"{self.id}\0{self.sender}\0{self.n}\0{child.agent}".encode()).digest(16)
        child = msgspec.structs.replace(child, key=key)
        for name, work in ((MEANT, _mean), (MADE, _make)):
            call = partial(_unless_store_fails, self, work)
            outcome = decode_outcome(await self.make_step(name + child.agent, call, (child,), RETRY, None))
            if outcome.code == "NameTaken":
                raise NameTaken(outcome.message, agent=child.agent, parent=self.id)
            if outcome.code:
                raise UsageError(outcome.message, agent=child.agent)

    def link_to(self: Turn, agent: str) -> None:
        self._open()
        _change(self, Watched(Watcher(agent, LINKED, "down")))

    # ---- what system handlers do -----------------------------------------------------------------------------

    def take_watch(self: Turn, handler: str, parameter: str) -> None:
        if is_client(self.sender):
            raise UsageError(f"Only agents are told when agent {self.id!r} fails.")
        if len(_family(self).watchers) >= WATCHERS_MAX:
            raise UsageError(
                f"Agent {self.id!r} is watched by {WATCHERS_MAX} agents, which is the limit.", agent=self.id
            )
        _change(self, Watched(Watcher(self.sender, handler, parameter)))

    def take_unwatch(self: Turn, handler: str) -> None:
        _change(self, Unwatched(self.sender, handler))

    def take_parent_end(self: Turn, key: bytes) -> None:
        parent = _family(self).parent
        if parent is None or parent.key != key or parent.agent != self.sender:
            return
        _change(self, Orphaned())
        if parent.when_ended == "terminate":
            self.wish = Wish("terminate")
        elif parent.when_ended == "suspend":
            self.wish = Wish("suspend", f"Its parent {parent.agent!r} was terminated.")

    async def take_down(self: Turn, down: Down) -> None:
        """Decides what follows from a child's notice."""
        core = self._core
        if down.agent != self.sender:
            return
        if not core.home.clock.is_known:
            await core.home.clock.refresh()
        change, why = decide(_family(self), core.spec.cls.__mielin_supervision__, down, core.home.clock.now())
        if change is not None:
            _change(self, change)
        if why:
            self.wish = Wish("fail", f"Agent {self.id!r} gives up: {why}.")

    def take_link(self: Turn, down: Down) -> None:
        family = _family(self)
        if down.agent != self.sender or down.root[0] == self.id or down.root in family.roots:
            return
        if all(one.key != (down.agent, LINKED) for one in family.watchers):
            return  # it is not linked, whatever the message says
        _change(self, Felled(down.root))
        self.wish = Wish("fail", f"Agent {down.agent!r}, with which it is linked, failed: {down.cause}")


def _family(turn: Turn) -> Family:
    family: Family | None = turn._core.fold.ledger.family
    return family or Family()


def _change(turn: Turn, change: FamilyChange) -> None:
    turn.changes = [*(turn.changes or ()), change]


async def _unless_store_fails(turn: Turn, work: Callable[[Turn, Child], Awaitable[bytes]], child: Child) -> bytes:
    """An error of the store says nothing about the child, so it is no outcome of the step: the turn runs again, however often."""
    try:
        return await work(turn, child)
    except PASSING as error:
        turn.broken = error
        raise


async def _mean(turn: Turn, child: Child) -> bytes:
    """Whether the child may be made.  Once the outcome is in the log, it is to be made."""
    known = _family(turn).children
    if len(known) >= CHILDREN_MAX and child.agent not in known:
        said = f"Agent {turn.id!r} has {CHILDREN_MAX} children, which is the limit; {child.agent!r} was not spawned."
        return pack(Outcome(child, "UsageError", said))
    other = known.get(child.agent)
    if other is not None and other.key != child.key and other.make is not None:
        said = f"Agent {turn.id!r} cannot spawn {child.agent!r} as a child: an earlier call is to make it, as soon as a node can."
        return pack(Outcome(child, "NameTaken", said))
    log, subject = turn._core.home.log, log_subject(child.agent)
    if await log.last(subject) is not None or await log.settled(subject) is not None:
        fold = await load(log, child.agent)
        parent = fold.ledger.family.parent if fold.ledger.family is not None else None
        if parent is None or parent.key != child.key:
            return pack(Outcome(child, "NameTaken", taken(child.agent, turn.id, fold.cls)))
    return pack(Outcome(child))


async def _make(turn: Turn, child: Child) -> bytes:
    kin: Kin = turn._core.home.cluster
    try:
        _ = await kin.make(spawn_of(turn.id, child), child.make.node if child.make is not None else "")
    except NameTaken as error:
        return pack(Outcome(child, "NameTaken", error.message))
    return pack(Outcome(child))


def taken(agent: str, parent: str, cls: str) -> str:
    return (
        f"Agent {parent!r} cannot spawn {agent!r} as a child: that is the id of an agent of class {cls} already, which another call "
        "has made. Choose another id, or call that agent by its reference. Nothing was made."
    )
