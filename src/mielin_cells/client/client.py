"""A client: what carries calls to agents from outside, and asks nodes to spawn, move and steer them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from random import Random
from typing import Any, ParamSpec, TypeVar, cast

import msgspec

from mielin_cells.agents.context import turn as current_turn
from mielin_cells.agents.reference import Reference, agent_id, make_ref
from mielin_cells.agents.reports import AgentInfo, DrainReport, MigrationReport, NodeInfo, RollbackReport
from mielin_cells.agents.spec import Spec, check_is_agent, spec_of
from mielin_cells.client import cordon
from mielin_cells.client.arguments import (
    check_copies,
    check_deadline,
    id_of,
    known,
    node_name,
    numbers,
    report_of,
    warn_of_other_state,
)
from mielin_cells.client.placement import Placing
from mielin_cells.client.session import Lane, closed, foreign_loop
from mielin_cells.client.undo import rollback
from mielin_cells.errors import (
    AgentTerminated,
    AlreadyThere,
    AskTimeout,
    CellError,
    EpochRegression,
    Fenced,
    MigrationInProgress,
    MigrationRefused,
    NoResponder,
    NoSuchAgent,
    NoSuchMigration,
    RecordInvalid,
    TooLateToCancel,
    UnknownNode,
    UsageError,
    WireTimeout,
    WrongClass,
    storable,
)
from mielin_cells.log.born import born
from mielin_cells.log.fold import Phase
from mielin_cells.log.ids import AgentId, log_subject, reply_subject
from mielin_cells.log.message import decode_replies
from mielin_cells.log.records import AnyRecord, HandedOff, decode_record, named_owner
from mielin_cells.membership import selection, table
from mielin_cells.migration.standing import journal_outcome, outcome_of
from mielin_cells.rpc import answers, reminder, requests
from mielin_cells.rpc.call import call, call_pages
from mielin_cells.settings import Settings
from mielin_cells.store import journal
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Entry, Log, Subscription, Wire
from mielin_cells.substrate.retry import whole
from mielin_cells.tasks.supervision import Backoff

P = ParamSpec("P")
A = TypeVar("A", bound=Reference)
R = TypeVar("R")

logger = logging.getLogger("mielin_cells.client")

POLL_S = 1.0
"""How long a node holds back the answer to "has the migration ended?"; a lost request costs no more than that."""

REQUEST_S = 1.0
TRIES_MIN = 4
"""An order may be lost on the wire, so one try of it does not take all the time that there is."""

OWN_ORDERS = ("migrate", "terminate", "suspend", "pause")
"""An agent gives them about itself by `cells.this()`."""


class Client:
    """`Cluster` over a log and a wire.  `open` before use, `close` after; also usable as the caller of references."""

    def __init__(
        self,
        log: Log,
        wire: Wire,
        *,
        settings: Settings | None = None,
        rng: Random | None = None,
        wall: Callable[[], float] | None = None,
    ) -> None:
        """`wall` is the clock of whoever made this client.  Nothing is decided by it."""
        self.log = log
        self.wire = wire
        self.settings = settings or Settings()
        self._rng = rng or Random()
        self.name = self._rng.randbytes(8).hex()
        self.reply_to = reply_subject(self.name)
        self._lanes: dict[str, Lane] = {}
        self._senders: dict[str, Lane] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._placing = Placing(self)
        self._subscription: Subscription | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        """That it was opened in: everything of it runs there."""
        self.opening: object = None
        """What closes it: not to be collected, and so to close it, while anybody has the client."""

    async def open(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._subscription = await self.wire.subscribe(self.reply_to, self._replied)

    def check_loop(self) -> None:
        """Raises `UsageError` in another event loop than the cluster's own: what it waits for there would never come."""
        if self.loop is not None and asyncio.get_running_loop() is not self.loop:
            raise foreign_loop()

    async def close(self) -> None:
        """Ends what waits, and has every later call fail with `NotConnected` at once."""
        if self._subscription is not None:
            self._subscription.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for lane in list(self._senders.values()):
            lane.close()
        self._lanes.clear()
        self._senders.clear()
        self.log = self.wire = cast("Any", _Closed())

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, CellError):
            logger.error("a client task failed: %r", error, exc_info=error)

    def _replied(self, data: bytes) -> None:
        try:
            replies = decode_replies(data)
        except RecordInvalid as error:
            logger.warning("%s", error)
            return
        for some in replies:
            lane = self._senders.get(some.sender)
            if lane is not None:
                lane.answered(some.answers)

    # ---- calls -----------------------------------------------------------------------------------------------

    def ask(
        self, ref: Reference, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any],
        timeout: float | None, label: str | None,
    ) -> Coroutine[Any, Any, Any]:  # fmt: skip
        agent, spec = agent_id(ref), spec_of(type(ref))
        lane = self._lanes.get(agent) or self.lane(agent)
        return lane.ask(spec.name, spec.handler(handler), args, kwargs, timeout, label)

    async def tell(
        self, ref: Reference, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any], label: str | None
    ) -> None:
        agent, spec = agent_id(ref), spec_of(type(ref))
        data = spec.handler(handler).encode_args(args, kwargs)
        lane = self._lanes.get(agent) or self.lane(agent)
        await lane.tell(spec.name, handler, data)

    def lane(self, agent: str, session: str = "") -> Lane:
        """The session with this agent; made at the first call, without waiting, so that calls keep their order.

        `session`: a name for a session of its own, of which the agent drops what it has handled already.
        """
        if not session and agent in self._lanes:
            return self._lanes[agent]
        if isinstance(self.log, _Closed):
            raise closed()
        name = session or f"{self.name}.{self._rng.randbytes(4).hex()}"
        lane = Lane(self, agent, name)
        self._senders[lane.sender] = lane
        if not session:
            self._lanes[agent] = lane
        return lane

    async def find(self, agent: str) -> int:
        """Where the agent's log ends: a session that begins now began there (rule 15).

        Raises `NoSuchAgent` or `AgentTerminated` if there is nobody to send to; then the session is forgotten.
        """
        try:
            last = await self._end(agent)
            _ = await self._owned(agent, last)
            return last.seq if last is not None else 0
        except CellError:
            self.forget(agent)
            raise

    def forget(self, agent: str) -> None:
        """The next call to the agent begins a new session."""
        lane = self._lanes.pop(agent, None)
        if lane is not None:
            self._senders.pop(lane.sender, None)

    async def waiting(self, agent: str) -> int | None:
        """Messages in the agent's inbox as its owner counts them; None if nobody says."""
        return await reminder.waiting(self.log, self.wire, agent)

    async def park(self, agent: str, reason: str) -> None:
        """Has the agent stopped until an operator resumes it: this client remembers more than the store has."""
        await self._order(agent, "park", reason)

    # ---- agents ----------------------------------------------------------------------------------------------

    async def spawn(self, make: Callable[P, A], id: str, /, *args: P.args, **state: P.kwargs) -> A:
        return await self._spawn(None, make, id, args, state)

    def on(self, node: str, /) -> Placed:
        return Placed(self, node_name(node, "on"))

    async def _spawn(
        self, node: str | None, make: Callable[..., A], id: str, unnamed: tuple[Any, ...], state: dict[str, Any]
    ) -> A:
        self.check_loop()
        cls = cast("type[A]", make)
        spec, agent = spec_of(cls), str(AgentId(id))
        if unnamed:
            raise UsageError(
                f"State of a new {spec.name} is given by name, as field=value; {len(unnamed)} values have none."
            )
        initial = spec.initial(**state)
        request = requests.Spawn(agent, spec.name, spec.version, initial, born(initial))
        async with self._placing.room():
            if await self.log.last(log_subject(agent)) is not None:
                was = await self._same_class(agent, spec)
                is_same = not was or was == request.born
            else:
                is_same = await (self.ordered(lambda: known(node), request) if node else self._placing.place(request))
        if state and not is_same:
            warn_of_other_state(agent, spec.name, state)
        return make_ref(cls, agent, self)

    async def _same_class(self, agent: str, spec: Spec) -> bytes:
        """Digest of what the agent was made with; empty if that is not known."""
        fold = await load(self.log, agent)
        if fold.phase is Phase.TERMINATED:
            raise AgentTerminated(f"Agent {agent!r} has ended; its id is not used again.", agent=agent)
        if fold.cls != spec.name:
            raise WrongClass(f"Agent {agent!r} exists and is a {fold.cls}.", agent=agent, have=fold.cls, need=spec.name)
        return fold.born

    def get(self, cls: type[A], id: str, /) -> A:
        check_is_agent(cls)
        return make_ref(cls, id, self)

    async def owner(self, agent: str) -> tuple[str, int]:
        """The node that the log names, and the epoch.  Raises `NoSuchAgent`, `AgentTerminated`."""
        return await self._owned(agent, await self._end(agent))

    async def _end(self, agent: str) -> Entry | None:
        """The last entry of the agent's log.  That there is none is certain."""
        subject = log_subject(agent)
        return await self.log.last(subject) or await self.log.settled(subject)

    async def _owned(self, agent: str, last: Entry | None) -> tuple[str, int]:
        record = await self._record(agent, last)
        if record is None:
            raise NoSuchAgent(f"There is no agent {agent!r} in this deployment; spawn it first.", agent=agent)
        owner = named_owner(record)
        if not owner:
            raise AgentTerminated(f"Agent {agent!r} has ended; its id is not used again.", agent=agent)
        return owner, record.epoch + (owner != record.node or type(record).__name__ in ("HandedOff", "Returned"))

    async def newest(self, agent: str) -> AnyRecord | None:
        """The last record of the agent's log, or what stands for it there."""
        self.check_loop()
        return await self._record(agent, await self.log.last(log_subject(agent)))

    async def _record(self, agent: str, last: Entry | None) -> AnyRecord | None:
        if last is None:
            return None
        return await whole(
            self.log, log_subject(agent), last, lambda data: decode_record(data, f"The log of agent {agent!r}")
        )

    async def request(self, node: str, request: requests.Request[R], timeout: float) -> R:
        self.check_loop()
        return await call(self.wire, node, request, timeout)

    async def ordered(
        self,
        place: Callable[[], Coroutine[Any, Any, str]],
        request: requests.Request[R],
        try_s: float | None = None,
        *,
        until: float | None = None,
    ) -> R:
        """Sends an idempotent request to where the agent is, again while it is between owners or its node is silent.

        One request takes `try_s` at most, and all of it ends at `until`, by the loop's clock.  The owner waits for `turn_deadline_s`
        for a turn to end, so by default all of it takes a little longer.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + self.settings.turn_deadline_s + POLL_S if until is None else until
        backoff, last = Backoff(cap_s=POLL_S), None
        try:
            async with asyncio.timeout_at(until):
                while True:
                    node = await place()
                    left = until - clock()
                    try:
                        return await self.request(node, request, min(left, try_s or max(left / TRIES_MIN, REQUEST_S)))
                    except EpochRegression:
                        raise
                    except (NoResponder, WireTimeout, NoSuchAgent, Fenced) as error:
                        last = error
                        if isinstance(error, NoResponder) and not await table.is_known(self.log, node):
                            raise UnknownNode(f"There is no node {node!r}.", node=node) from error
                    await backoff.wait()
        except TimeoutError:
            raise last or WireTimeout("Nobody has answered in time; it may still be carried out.", subject="") from None

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

    async def _order(self, agent: Reference | str, order: str, reason: str = "") -> None:
        name = id_of(agent)
        self.check_turn(name, order)

        async def owner() -> str:
            return (await self.owner(name))[0]

        try:
            await self.ordered(owner, requests.Order(name, order, storable(str(reason))))
        except AgentTerminated:
            if order != "terminate":
                raise

    async def suspend(self, agent: Reference | str, /, reason: str = "") -> None:
        await self._order(agent, "suspend", reason)

    async def standby(self, agent: Reference | str, /, copies: int = 1) -> None:
        name = id_of(agent)
        self.check_turn(name, "have copies of")
        check_copies(copies)

        async def owner() -> str:
            return (await self.owner(name))[0]

        await self.ordered(owner, requests.SetCopies(name, copies))

    async def pause(self, agent: Reference | str, /, reason: str = "") -> None:
        await self._order(agent, "pause", reason)

    async def resume(self, agent: Reference | str, /) -> None:
        await self._order(agent, "resume")

    async def terminate(self, agent: Reference | str, /) -> None:
        await self._order(agent, "terminate")

    async def claim(self, agent: Reference | str, /, to: str, *, force: bool = True) -> None:
        name = id_of(agent)
        self.check_turn(name, "claim")
        to = node_name(to, "claim")
        await self.owner(name)  # raises for an agent that is not there
        await self.ordered(lambda: known(to), requests.Claim(name, "operator", force), self.settings.probation_s)

    async def show(self, agent: Reference | str, /) -> AgentInfo:
        name = id_of(agent)

        async def owner() -> str:
            return (await self.owner(name))[0]

        clock = asyncio.get_running_loop().time
        until = clock() + self.settings.turn_deadline_s
        while clock() < until:
            info = await self.ordered(owner, requests.ShowAgent(name), REQUEST_S, until=until)
            if info is not None:
                return info
            await asyncio.sleep(0.05)
        raise NoResponder(f"Agent {name!r} is between owners; try again.", agent=name)

    async def agents(self) -> list[AgentInfo]:
        found: dict[str, AgentInfo] = {}
        for node in await self.nodes():
            with contextlib.suppress(NoResponder, WireTimeout):
                await self._hosted(node.name, found)
        return [found[name] for name in sorted(found)]

    async def _hosted(self, node: str, found: dict[str, AgentInfo]) -> None:
        async for infos in call_pages(self.wire, node, requests.ListAgents(), lambda info: info.id, REQUEST_S):
            for info in infos:
                if info.id not in found or info.epoch > found[info.id].epoch:
                    found[info.id] = info

    async def nodes(self) -> list[NodeInfo]:
        self.check_loop()
        return await selection.alive(self.log, self.wire)

    async def ping(self, node: str) -> NodeInfo | None:
        """What the node tells of itself; None if it does not answer."""
        return await selection.ping(self.wire, node)

    # ---- migration -------------------------------------------------------------------------------------------

    async def migrate(
        self, agent: Reference | str, /, to: str | None = None, *, recovery: Mapping[str, float] | None = None
    ) -> MigrationReport:
        wishes = numbers(recovery)
        request, source = await self.plan(agent, to)
        request = msgspec.structs.replace(request, recovery=wishes)
        report = await self.watched(request, source)
        if report.code == "MigrationRefused":
            raise MigrationRefused(
                f"{report.target} cannot take agent {report.agent!r}, which runs on at {source}: {'; '.join(report.reasons)}.",
                agent=report.agent, migration=report.migration, reasons=list(report.reasons),
                kinds=list(report.kinds),
            )  # fmt: skip
        return report

    async def plan(self, agent: Reference | str, to: str | None) -> tuple[requests.Migrate, str]:
        """A move as its source is told of it, and the source, which chooses the target unless it is named.  Nothing has begun."""
        name = id_of(agent)
        self.check_turn(name, "migrate")
        to = node_name(to, "migrate") if to is not None else None
        source, epoch = await self.owner(name)
        if to == source:
            raise AlreadyThere(f"Agent {name!r} is on {to} already.", agent=name, node=to)
        if to is not None and not await table.is_known(self.log, to):
            known = await table.names(self.log)
            raise UnknownNode(f"There is no node {to!r}; there are {', '.join(known)}.", node=to, nodes=known)
        migration = f"m-{self._rng.randbytes(8).hex()}"
        return requests.Migrate(name, migration, epoch, to or "", POLL_S), source

    async def watched(
        self, request: requests.Migrate, source: str, seen: Callable[[answers.Progress], None] | None = None
    ) -> MigrationReport:
        """The report: from the source; if that is gone, from whoever owns the agent next and goes on; or what the logs say (rule 7).

        `seen` is called with each answer, one every `request.wait` seconds.  Raises what kept them from answering if nobody
        does for as long as a migration may take, and `AskTimeout` if they answer and nothing moves for so long; it goes on then as it
        can, and `mielin show` tells its end.
        """
        loop = asyncio.get_running_loop()
        patience = self.settings.migration_s + self.settings.probation_s
        deadline, coordinator = loop.time() + patience, source
        started, before = False, None
        while True:
            try:
                progress = await self.request(coordinator, request, POLL_S * 2)
                started, now = True, msgspec.structs.replace(progress, next_s=0.0)
                if now != before or progress.next_s:
                    before, deadline = now, loop.time() + progress.next_s + patience
                elif loop.time() > deadline:
                    raise AskTimeout(
                        f"Migration {request.migration} of agent {request.agent!r} has been {progress.phase} for {patience:g} s; it "
                        f"goes on as it can: `mielin show {request.agent}` tells its end.", agent=request.agent,
                    )  # fmt: skip
                if seen is not None:
                    seen(progress)
                if progress.report is not None:
                    return report_of(progress.report)
                continue
            except (NoSuchAgent, Fenced, NoResponder, WireTimeout):
                if loop.time() > deadline:
                    raise
            except MigrationInProgress:
                if not started and coordinator == source:
                    raise
            owner, report = await self._told_by_logs(request, source)
            if report is not None:
                return report
            coordinator = owner if coordinator == source else source  # by turns: either may only be slow
            await asyncio.sleep(0.05)

    async def _told_by_logs(self, request: requests.Migrate, source: str) -> tuple[str, MigrationReport | None]:
        """Who owns the agent, and what journal and log say of a migration whose source does not; None while it is open."""
        outcome: str | None
        reason, code, target = "", "", request.to
        fold = await load(self.log, request.agent)
        try:
            found = await journal.read(self.log, request.agent, request.migration)
        except NoSuchMigration:
            outcome = outcome_of(fold, request.migration, request.epoch)
        else:
            if found.end is not None:
                outcome, reason, code, target = found.end.outcome, found.end.reason, found.end.code, found.end.target
            else:  # whoever owns the agent goes on with it
                outcome, target = journal_outcome(found, fold)
                outcome = outcome if outcome == "completed" or fold.phase is Phase.TERMINATED else None
        if outcome is None:
            return fold.owner, None
        if outcome != "completed" and not reason:
            reason, code = "the source was lost; the agent's log says that it did not move", "SourceLost"
        return fold.owner, MigrationReport(
            migration=request.migration, agent=request.agent, source=source, target=target, outcome=outcome,
            reason=reason, code=code,
        )  # fmt: skip

    async def rollback(
        self, migration: str, /, to: str | None = None, *, dry_run: bool = False, correct: bool = False
    ) -> RollbackReport:
        return await rollback(self, migration, to, dry_run=dry_run, correct=correct)

    async def cordon(self, node: str, /) -> None:
        await cordon.cordon(self, node_name(node, "cordon"), True)

    async def uncordon(self, node: str, /) -> None:
        await cordon.cordon(self, node_name(node, "uncordon"), False)

    async def drain(self, node: str, /, deadline_s: float | None = None) -> DrainReport:
        check_deadline(node_name(node, "drain"), deadline_s)
        running = current_turn.get()
        if running is not None and not running.closed and running.node == node and running.shares(self):
            raise UsageError(
                f"A turn of agent {running.id!r} ordered node {node} to be drained, where it runs, and would wait for itself to end: "
                "give the order from outside. Nothing was done.", agent=running.id, node=node,
            )  # fmt: skip
        return await cordon.evacuate(self, node, self.settings.drain_s if deadline_s is None else deadline_s)

    def nonce(self, size: int) -> bytes:
        return self._rng.randbytes(size)

    async def abort(self, agent: Reference | str, /) -> str:
        name = id_of(agent)
        source, _ = await self.owner(name)
        try:
            return await self.request(source, requests.Abort(name), REQUEST_S)
        except NoSuchMigration:
            record = await self.newest(name)
            if not isinstance(record, HandedOff):
                raise
            raise TooLateToCancel(
                f"Migration {record.migration} of agent {name!r} is handed over to {record.to}, which verifies; it goes forward.",
                agent=name, migration=record.migration,
            ) from None  # fmt: skip


class _Closed:
    """In place of the log and the wire of a client that is closed."""

    def __getattr__(self, name: str) -> Any:
        raise closed()


class Placed:
    """`cluster.on(node)`: spawns there."""

    def __init__(self, client: Client, node: str) -> None:
        self._client = client
        self._node = node

    async def spawn(self, make: Callable[P, A], id: str, /, *args: P.args, **state: P.kwargs) -> A:
        return await self._client._spawn(self._node, make, id, args, state)
