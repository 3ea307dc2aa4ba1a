"""What an owner does for an agent's family: it tells of failures, makes children, and carries out what the agent has decided.

Notices are outputs of a commit, like tells.  Orders are part of the state: whichever node owns the agent carries them out, as often
as it takes, and notes that in a commit.  An order says what it is for, so one that comes twice or late does nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, cast

from mielin_cells.agents.values.wire import encode
from mielin_cells.errors import (
    AgentTerminated,
    CellError,
    Fenced,
    InvalidTransition,
    NameTaken,
    NoSuchAgent,
    described,
    never,
)
from mielin_cells.log.commit import Out, Wish
from mielin_cells.log.family import notices
from mielin_cells.log.family.notices import PARENT_ENDED
from mielin_cells.log.family.tree import (
    Born,
    Carried,
    Child,
    Down,
    Family,
    FamilyChange,
    Gone,
    Order,
    Parent,
    Told,
)
from mielin_cells.log.fold import Fold
from mielin_cells.log.turns.batch import Batch
from mielin_cells.rpc import requests
from mielin_cells.tasks.supervision import Backoff

logger = logging.getLogger("mielin_cells.family")

END = "end"
"""The order of an agent's last commit: everybody has been told that it ends, so it does."""

RETRY_S_MAX = 5.0


class Kin(Protocol):
    """What reaches other agents of the deployment."""

    async def make(self, request: requests.Spawn, node: str) -> bool: ...
    async def order(self, agent: str, order: str, reason: str) -> None: ...


class Home(Protocol):
    @property
    def cluster(self) -> Any: ...


class Owner(Protocol):
    """What is needed of the agent."""

    kinship: Kinship | None

    @property
    def home(self) -> Home: ...
    @property
    def fold(self) -> Fold: ...
    @property
    def batch(self) -> Batch: ...
    @property
    def is_open(self) -> bool: ...
    @property
    def may_add(self) -> bool: ...
    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...
    def commit_soon(self) -> None: ...
    async def flush(self) -> None: ...


class Kinship:
    """Of one agent on its owner."""

    __slots__ = ("_owner", "_task")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._task: asyncio.Task[None] | None = None

    @property
    def _family(self) -> Family:
        return self._owner.fold.ledger.family or Family()

    def open(self) -> None:
        """The agent is served, or was resumed: what its former owner did not do is done now."""
        self.tell()
        self.kick()

    def close(self) -> None:
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._task = None

    def change(self, changes: Sequence[FamilyChange]) -> None:
        """Takes what a turn has changed."""
        owner = self._owner
        for change in changes:
            owner.fold.ledger.change(change)
            owner.batch.changes.append(change)
        owner.batch.touched = True
        self.kick()

    # ---- notices ---------------------------------------------------------------------------------------------

    def tell(self) -> None:
        """Sends the notices that are due, with the next commit."""
        fold = self._owner.fold
        while (next_one := notices.due(fold.agent, self._family, fold.lifecycle.error)) is not None:
            self._tell(*next_one)

    def _tell(self, told: Told, down: Down) -> None:
        for watcher in notices.listeners(self._family, down):
            self._send(watcher.agent, watcher.handler, {watcher.parameter: down})
        self.change([told])

    def end(self) -> None:
        """The agent is about to end, with the next commit: parent, watchers and children are told with it."""
        for child in list(self._family.children.values()):
            self._send(child.agent, PARENT_ENDED, {"key": child.key})
        if self._family.is_watched:
            self._tell(*notices.end(self._owner.fold.agent, self._family))
        self._owner.batch.wish, self._owner.batch.touched = Wish(END), True

    def _send(self, to: str, handler: str, args: dict[str, object]) -> None:
        ledger, batch = self._owner.fold.ledger, self._owner.batch
        out = Out(to, "", ledger.next_number(to), handler, encode(args), False, "", 0, 0)
        ledger.send(out)
        batch.outs.append(out)
        batch.touched = True

    # ---- orders ----------------------------------------------------------------------------------------------

    def kick(self) -> None:
        """Carries out the orders that there are, if nobody does."""
        owner = self._owner
        if self._task is None and owner.is_open and owner.home.cluster is not None and self._family.has_orders:
            self._task = owner.start(self._work())

    async def _work(self) -> None:
        owner, backoff, logged = self._owner, Backoff(cap_s=RETRY_S_MAX), set[str]()
        try:
            while owner.is_open and self._family.has_orders:
                for child in list(self._family.children.values()):
                    order, failure = child.order, child.failure
                    if child.make is None and not order:
                        continue
                    # It is an order once it is in the log, and it may have come while another child's was carried out.
                    await owner.flush()
                    try:
                        await self._carry_out(child, order, failure)
                    except CellError as error:
                        if (child.agent + error.code) not in logged:
                            logged.add(child.agent + error.code)
                            logger.info(
                                "agent %s: %s of child %s is not done yet; trying again: %s", owner.fold.agent,
                                child.order or "creation", child.agent, described(error),
                            )  # fmt: skip
                if self._family.has_orders:
                    await backoff.wait()
        except Fenced:  # the activation is lost, and the next owner goes on
            return
        finally:
            self._task = None

    async def _carry_out(self, child: Child, order: Order, failure: int) -> None:
        kin, fold = cast("Kin", self._owner.home.cluster), self._owner.fold
        if child.make is not None:
            if fold.turn is None:  # else the turn that spawns it makes it
                await self._note(await self._make(kin, child))
            return
        if not order:
            return
        reason = (
            str(failure) if order == "restart" else f"It failed, and {fold.agent!r}, its parent, does not restart it."
        )
        try:
            await kin.order(child.agent, order, reason)
        except (AgentTerminated, NoSuchAgent, InvalidTransition) as error:
            logger.info("agent %s: child %s is left as it is: %s", fold.agent, child.agent, described(error))
        await self._note(Carried(child.agent, order, failure))

    async def _make(self, kin: Kin, child: Child) -> FamilyChange:
        try:
            await kin.make(spawn_of(self._owner.fold.agent, child), child.make.node if child.make is not None else "")
        except NameTaken:
            return Gone(child.agent)
        return Born(child.agent, child.key)

    async def _note(self, change: FamilyChange) -> None:
        """Adds a change to the next commit, once that is allowed."""
        owner, backoff = self._owner, Backoff()
        while not owner.may_add:
            await backoff.wait()
            if not owner.is_open:
                raise Fenced(f"Agent {owner.fold.agent!r} has left this node.", agent=owner.fold.agent)
        self.change([change])
        owner.commit_soon()


def spawn_of(parent: str, child: Child) -> requests.Spawn:
    """The request to make a child."""
    make = child.make
    if make is None:
        raise never("a child that was made is to be made again")
    about = Parent(parent, child.key, child.when_ended, child.letters)
    return requests.Spawn(child.agent, child.cls, make.version, make.state, make.born, about)


def kinship_of(owner: Any) -> Kinship:
    """The agent's `Kinship`, made at its first use: most agents have none."""
    if owner.kinship is None:
        owner.kinship = Kinship(owner)
    kinship: Kinship = owner.kinship
    return kinship


def close(kinship: Kinship | None) -> None:
    if kinship is not None:
        kinship.close()
