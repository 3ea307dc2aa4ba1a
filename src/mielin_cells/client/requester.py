"""A client's access to its deployment: log, wire and settings, and requests to nodes and to the owners of agents."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from mielin_cells.agents.context import turn as current_turn
from mielin_cells.agents.reports import NodeInfo
from mielin_cells.errors import (
    AgentTerminated,
    CellError,
    EpochRegression,
    Fenced,
    NoResponder,
    NoSuchAgent,
    UnknownNode,
    UsageError,
    WireTimeout,
)
from mielin_cells.log.ids import log_subject, reply_subject
from mielin_cells.log.inboxes.cancels import Cancel
from mielin_cells.log.records import AnyRecord, decode_record, named_owner
from mielin_cells.membership.table import Members
from mielin_cells.rpc.call import call
from mielin_cells.rpc.requests import Ping, Request
from mielin_cells.settings import Settings
from mielin_cells.store.clock import StoreClock
from mielin_cells.substrate.ports import Entry, Log, Wire
from mielin_cells.substrate.retry import whole
from mielin_cells.tasks.supervision import Backoff

R = TypeVar("R")

logger = logging.getLogger("mielin_cells.client")

REQUEST_S = 1.0
"""For a request that a node answers from memory."""

RETRY_S_MAX = 1.0

TRIES_MIN = 4
"""A request may be lost on the wire, so one try of it does not take all the time that there is."""

OWN_ORDERS = ("migrate", "terminate", "suspend", "pause")
"""Orders that an agent gives about itself by `cells.this()`."""


def foreign_loop() -> UsageError:
    return UsageError(
        "A cluster was used from another event loop than the one that it was opened in (asyncio.run in a thread makes one); "
        "nothing was sent. From a thread: asyncio.run_coroutine_threadsafe(ref.handler(...), loop).result()."
    )


class Closed(Protocol):
    def close(self) -> None: ...


class Requester:
    def __init__(self, log: Log, wire: Wire, settings: Settings | None = None, rng: Random | None = None) -> None:
        self.log = log
        self.wire = wire
        self.settings = settings or Settings()
        self.rng = rng or Random()
        self.members = Members(log)
        self.name = self.rng.randbytes(8).hex()
        self.reply_to = reply_subject(self.name)
        self.clock = StoreClock(log)
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop that the client was opened in, and runs in."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self.closing: WeakSet[Closed] = WeakSet()
        """What is closed with the client, if it is there still."""

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs a task that ends with the client."""
        _ = self.started(work)

    def started(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """As `start`, for who waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def cancel_soon(self, agent: str, cancel: Cancel) -> asyncio.Task[Any] | None:
        """Sends a cancel of a call, without waiting for it."""
        raise NotImplementedError

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, CellError):
            logger.error("a client task failed: %r", error, exc_info=error)

    def check_loop(self) -> None:
        """Raises `UsageError` in an event loop other than the cluster's own, where a call would wait for ever."""
        if self.loop is not None and asyncio.get_running_loop() is not self.loop:
            raise foreign_loop()

    # ---- requests --------------------------------------------------------------------------------------------

    async def request(self, node: str, request: Request[R], timeout_s: float) -> R:
        """The node's answer.  Raises as `rpc.call`."""
        self.check_loop()
        return await call(self.wire, node, request, timeout_s)

    async def send_to_owner(
        self, agent: str, request: Request[R], try_s: float | None = None, *, until: float | None = None
    ) -> R:
        """As `send_to`, to the agent's owner, which is looked up before each try."""
        return await self._send(lambda: self.owner(agent), request, try_s, until)

    async def send_to(self, node: str, request: Request[R], try_s: float | None = None) -> R:
        """Sends an idempotent request, again while the node is silent or does not run the agent yet.

        One request takes `try_s` at most, and all of it ends at `until`, by the loop's clock; by default a little more than
        `turn_deadline_s`, because the owner waits so long for a turn to end.
        """

        async def place() -> tuple[str, int]:
            return node, 0

        return await self._send(place, request, try_s, None)

    async def _send(
        self, place: Callable[[], Awaitable[tuple[str, int]]], request: Request[R], try_s: float | None, until: float | None
    ) -> R:  # fmt: skip
        clock = asyncio.get_running_loop().time
        until = clock() + self.settings.turn_deadline_s + RETRY_S_MAX if until is None else until
        backoff, last = Backoff(cap_s=RETRY_S_MAX), None
        try:
            async with asyncio.timeout_at(until):
                while True:
                    node, _ = await place()
                    left = until - clock()
                    try:
                        return await self.request(node, request, min(left, try_s or max(left / TRIES_MIN, REQUEST_S)))
                    except EpochRegression:
                        raise
                    except (NoResponder, WireTimeout, NoSuchAgent, Fenced) as error:
                        last = error
                        if isinstance(error, NoResponder) and (await self.members.read_to_end()).get(node) is None:
                            raise UnknownNode(f"There is no node {node!r}.", node=node) from error
                    await backoff.wait()
        except TimeoutError:
            raise last or WireTimeout("Nobody has answered in time; it may still be carried out.", subject="") from None

    # ---- what logs and nodes say -----------------------------------------------------------------------------

    async def last_entry(self, agent: str) -> Entry | None:
        """The last entry of the agent's log; None only if it is certain that there is no such agent."""
        return await self.log.last(log_subject(agent)) or await self.log.settled(log_subject(agent))

    async def end_of_log(self, agent: str) -> int:
        """The last sequence of the agent's log.  Raises `NoSuchAgent`, `AgentTerminated`."""
        last = await self.last_entry(agent)
        await self._owner(agent, last)
        return last.seq if last is not None else 0

    async def owner(self, agent: str) -> tuple[str, int]:
        """The node that the log names, and the epoch.  Raises `NoSuchAgent`, `AgentTerminated`."""
        return await self._owner(agent, await self.last_entry(agent))

    async def settled_owner(self, agent: str) -> tuple[str, int]:
        """As `owner`, of a read that has all that was acknowledged before the call; it may cost an append."""
        return await self._owner(agent, await self.log.settled(log_subject(agent)))

    async def _owner(self, agent: str, last: Entry | None) -> tuple[str, int]:
        if last is None:
            raise NoSuchAgent.of(agent)
        record = await self._record(agent, last)
        owner = named_owner(record)
        if not owner:
            raise AgentTerminated.of(agent)
        return owner, record.epoch + (owner != record.node or type(record).__name__ in ("HandedOff", "Returned"))

    async def last_record(self, agent: str) -> AnyRecord | None:
        """The last record of the agent's log, or what stands for it there."""
        self.check_loop()
        last = await self.log.last(log_subject(agent))
        return await self._record(agent, last) if last is not None else None

    async def _record(self, agent: str, last: Entry) -> AnyRecord:
        where = f"The log of agent {agent!r}"
        return await whole(self.log, log_subject(agent), last, lambda data: decode_record(data, where))

    async def ping(self, node: str) -> NodeInfo | None:
        """The node's description of itself; None if it does not answer."""
        try:
            return await self.request(node, Ping(), REQUEST_S)
        except CellError:
            return None

    async def check_node(self, node: str) -> None:
        """Raises `UnknownNode` with the nodes that there are."""
        table = self.members.table
        if table.get(node) is None and (table := await self.members.read_to_end()).get(node) is None:
            raise UnknownNode.of(node, sorted(table.members))

    # ---- callers ---------------------------------------------------------------------------------------------

    def check_turn(self, agent: str, order: str) -> None:
        """Raises `UsageError` if the turn of this very agent gives the order, which would wait for that turn to end."""
        running = current_turn.get()
        if running is None or running.closed or running.id != agent or not running.shares(self):
            return
        instead = (
            f"cells.this().{order}() does it once the turn is committed"
            if order in OWN_ORDERS
            else "give it from outside of the agent"
        )
        raise UsageError(
            f"A turn of agent {agent!r} ordered the cluster to {order} its own agent, and would wait for itself to end: {instead}. "
            "Nothing was done.", agent=agent,
        )  # fmt: skip
