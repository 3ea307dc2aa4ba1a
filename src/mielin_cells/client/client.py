"""A client: carries calls to agents from outside, and asks nodes to spawn, move and steer them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from random import Random
from typing import Any, ParamSpec, TypeVar, cast

import msgspec

from mielin_cells.agents.context import CallOptions
from mielin_cells.agents.context import turn as current_turn
from mielin_cells.agents.groups.report import GroupReport, Order
from mielin_cells.agents.reference import Reference, agent_id, make_ref
from mielin_cells.agents.reports import AgentInfo, DrainReport, MigrationReport, NodeInfo, RollbackReport
from mielin_cells.agents.shared.watched import Watched
from mielin_cells.agents.spec import Spec, check_is_agent, route, spec_of
from mielin_cells.agents.topics.calls import encoded_value
from mielin_cells.agents.topics.messages import Published, Since, TopicGap
from mielin_cells.agents.values.wire import plain
from mielin_cells.client.arguments import check_copies, check_deadline, id_of, node_name, numbers, warn_of_other_state
from mielin_cells.client.cancelling.cancelling import Cancelling
from mielin_cells.client.drain import drain_node
from mielin_cells.client.finding.finder import Finder
from mielin_cells.client.groups.orders import order_members
from mielin_cells.client.moves import abort_move, plan_move, watch_move
from mielin_cells.client.placement import Kin, Placing
from mielin_cells.client.policies.placed import Placed, checked
from mielin_cells.client.requester import REQUEST_S
from mielin_cells.client.sessions.kept import Sessions
from mielin_cells.client.sessions.session import Session
from mielin_cells.client.sessions.window import closed
from mielin_cells.client.status import describe_nodes, list_hosted
from mielin_cells.client.stream import CallName, CallStream, StreamReader, read_position
from mielin_cells.client.undo import undo_move
from mielin_cells.client.watch import watch_agent
from mielin_cells.errors import (
    AgentTerminated,
    MessageTooLarge,
    MigrationRefused,
    NoResponder,
    RecordInvalid,
    UsageError,
    WrongClass,
    storable,
)
from mielin_cells.log.delta import born
from mielin_cells.log.ids import AgentId, log_subject
from mielin_cells.log.inboxes.lines import NORMAL, line, priority_of
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.message import client_sender, decode_answer, decode_replies
from mielin_cells.log.policy import Policy
from mielin_cells.log.streams.reading import Position
from mielin_cells.log.topics.names import check_topic
from mielin_cells.membership import table
from mielin_cells.membership.members import ALIVE, STARTING
from mielin_cells.membership.reads import read_shared
from mielin_cells.membership.table import Members
from mielin_cells.rpc import requests
from mielin_cells.settings import MESSAGE_BYTES_MAX, Settings
from mielin_cells.store import topics
from mielin_cells.store.reader import load
from mielin_cells.substrate.ports import Log, Subscription, Wire
from mielin_cells.tasks.recent import Recent

P = ParamSpec("P")
A = TypeVar("A", bound=Reference)

logger = logging.getLogger("mielin_cells.client")


class Client(Kin, Finder, Cancelling):
    """`Cluster` over a log and a wire.  `open` before use, `close` after; also the caller behind references."""

    def __init__(self, log: Log, wire: Wire, *, settings: Settings | None = None, rng: Random | None = None) -> None:
        super().__init__(log, wire, settings, rng)
        self._sessions = Sessions()
        self._placing = Placing(self)
        self.revisions = Recent[int]()
        """By agent, the highest revision that an answer or a read has shown: no later read may show less."""
        self._owners = Recent[str]()
        """Where reads found agents last.  Only a place to try first."""
        self._subscription: Subscription | None = None
        self.opening: object = None
        """Closes the client when it is collected, so it is kept for as long as the client."""

    async def open(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._subscription = await self.wire.subscribe(self.reply_to, self._replied)

    async def close(self) -> None:
        """Ends every call that waits, and makes later calls fail with `NotConnected` at once."""
        if self._subscription is not None:
            self._subscription.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in (*self.closing, self._sessions):
            one.close()
        self.log = self.wire = cast("Any", _Closed())
        self.members = Members(self.log)

    def _replied(self, data: bytes) -> None:
        try:
            replies = decode_replies(data)
        except RecordInvalid as error:
            logger.warning("%s", error)
            return
        for reply in replies:
            session = self._sessions.by_sender.get(reply.sender)
            if session is not None:
                self._saw(reply.agent, reply.revision)
                session.receive(reply.answers)

    # ---- calls -----------------------------------------------------------------------------------------------

    def ask(
        self, ref: Reference, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any],
        timeout: float | None, label: str | None, options: CallOptions | None = None,
    ) -> Coroutine[Any, Any, Any]:  # fmt: skip
        agent, spec, called = route(ref, handler)
        session = self._sessions.in_use.get(agent) if options is None else None
        session = session or self.session(agent, inbox_max=spec.cls.__mielin_inbox_max__, options=options)
        return session.ask(spec.name, called, args, kwargs, timeout, label, options)

    def stream(
        self, ref: Reference, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None,
        options: CallOptions | None,
    ) -> CallStream[Any]:  # fmt: skip
        agent, spec, called = route(ref, handler)
        return CallStream(
            self, self, self.session(agent, options=options), spec.name, called, args, kwargs, timeout, options
        )

    def read_stream(
        self, ref: Reference, handler: str, id: str, after: str, timeout: float | None
    ) -> StreamReader[Any]:
        agent, _, called = route(ref, handler)
        reader = StreamReader[Any](self, self, agent, called, timeout)
        reader.begin(CallName.read(id), read_position(after) if after else Position())
        return reader

    async def tell(
        self, ref: Reference, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any], label: str | None,
        options: CallOptions | None = None,
    ) -> None:  # fmt: skip
        agent, spec, called = route(ref, handler)
        data = called.encode_args(args, kwargs)
        session = self._sessions.in_use.get(agent) if options is None else None
        session = session or self.session(agent, inbox_max=spec.cls.__mielin_inbox_max__, options=options)
        await session.tell(spec.name, handler, data, options)

    async def read(
        self, ref: Reference, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None,
        is_linearizable: bool,
    ) -> Any:  # fmt: skip
        """The result of a shared handler on a state that holds all that this client has seen of the agent."""
        agent, spec, handler = route(ref, name)
        self.check_loop()
        data = handler.encode_args(args, kwargs)
        if len(data) > MESSAGE_BYTES_MAX:
            raise MessageTooLarge(
                f"A read of {agent!r} has {len(data)} bytes of arguments; the limit is {MESSAGE_BYTES_MAX}.",
                limit=MESSAGE_BYTES_MAX, size=len(data),
            )  # fmt: skip
        request = requests.Read(
            agent, spec.name, handler.name, data, self.revisions.get(agent, 0), is_linearizable, 0.0
        )
        seconds = self.settings.ask_timeout_s if timeout is None else timeout
        reading = await read_shared(self.log, self.wire, request, seconds, self._owners)
        self._saw(agent, reading.revision)
        answer = decode_answer(reading.answer)
        if answer.error is not None:
            raise handler.error_of(answer)
        return handler.decode_result(answer.result or b"", self)

    def _saw(self, agent: str, revision: int) -> None:
        if revision > self.revisions.get(agent, 0):
            self.revisions[agent] = revision

    def watch(self, ref: Reference, after: int) -> AsyncIterator[Watched[Any]]:
        self.check_loop()
        return watch_agent(self.log, spec_of(type(ref)), agent_id(ref), after)

    async def publish(self, topic: str, value: Any, /, *, publisher: str = "client") -> Published:
        self.check_loop()
        if current_turn.get() is not None:
            raise UsageError(
                "An agent publishes with cells.publish(topic, value), as part of its turn; nothing was published."
            )
        check_topic(topic)
        sender, data = client_sender(str(AgentId(publisher))), encoded_value(value)
        return await topics.publish(self.log, sender, topic, data, time.time, self.rng.randbytes(12))

    async def follow(
        self, pattern: str, /, *, since: Since = "now", stream: str | None = None
    ) -> AsyncIterator[tuple[Published, Any] | TopicGap]:
        self.check_loop()
        async for one in topics.follow(self.log, pattern, since, time.time(), self.settings.topic_poll_s, stream):
            yield one if isinstance(one, TopicGap) else (one[0], plain(one[1]))

    def session(
        self, agent: str, name: str = "", inbox_max: int | None = None, options: CallOptions | None = None
    ) -> Session:
        """The session with this agent, by the options' priority.  It is made at the first call, without waiting.  With a `name` it is
        a session of its own: the agent drops what it has handled already of an earlier one of this name."""
        priority = NORMAL if options is None else options.priority
        key = line(agent, priority)
        now = (self.loop or asyncio.get_running_loop()).time()
        if not name and (found := self._sessions.find(key, now)) is not None:
            return found
        if isinstance(self.log, _Closed):
            raise closed()
        name_in_log = name or f"{self.name}.{self.rng.randbytes(4).hex()}"
        session = Session(self, self, agent, line(name_in_log, priority), self.forget, inbox_max)
        self._sessions.add(f"{name}/{agent}" if name else key, session, now)
        return session

    def forget(self, session: Session) -> None:
        """The next call to the agent begins a new session."""
        self._sessions.forget(line(session.agent, priority_of(session.sender)), session)

    # ---- agents ----------------------------------------------------------------------------------------------

    async def spawn(self, make: Callable[P, A], id: str, /, *args: P.args, **state: P.kwargs) -> A:
        return await self._spawn(None, make, id, args, state)

    def on(self, node: str, /) -> Placed:
        return Placed(self._spawn, node_name(node, "on"))

    def with_policy(self, policy: Policy, /) -> Placed:
        return Placed(self._spawn, None, checked(policy))

    async def _spawn(
        self, node: str | None, make: Callable[..., A], id: str, unnamed: tuple[Any, ...], state: dict[str, Any],
        policy: Policy | None = None,
    ) -> A:  # fmt: skip
        self.check_loop()
        cls = cast("type[A]", make)
        spec, agent = spec_of(cls), str(AgentId(id))
        if unnamed:
            raise UsageError(
                f"State of a new {spec.name} is given by name, as field=value; {len(unnamed)} values have none."
            )
        initial = spec.initial(**state)
        request = requests.Spawn(agent, spec.name, spec.version, initial, born(initial), None, policy)
        async with self._placing.room():
            if await self.log.last(log_subject(agent)) is not None:
                is_same = await self._same_class(agent, spec) in (b"", request.born)
            else:
                is_same = await self.make(request, node)
        if state and not is_same:
            warn_of_other_state(agent, spec.name, state)
        return make_ref(cls, agent, self)

    async def _same_class(self, agent: str, spec: Spec) -> bytes:
        """Digest of the initial state of an agent that exists; empty if that is not known."""
        fold = await load(self.log, agent)
        if fold.phase is Phase.TERMINATED:
            raise AgentTerminated.of(agent)
        if fold.cls != spec.name:
            raise WrongClass(f"Agent {agent!r} exists and is a {fold.cls}.", agent=agent, have=fold.cls, need=spec.name)
        return fold.born

    def get(self, cls: type[A], id: str, /) -> A:
        check_is_agent(cls)
        return make_ref(cls, id, self)

    async def _order(self, agent: Reference | str, order: str, reason: str = "") -> None:
        name = id_of(agent)
        self.check_turn(name, order)
        try:
            await self.send_to_owner(name, requests.Order(name, order, storable(str(reason))))
        except AgentTerminated:
            if order != "terminate":
                raise

    async def suspend(self, agent: Reference | str, /, reason: str = "") -> None:
        await self._order(agent, "suspend", reason)

    async def pause(self, agent: Reference | str, /, reason: str = "") -> None:
        await self._order(agent, "pause", reason)

    async def resume(self, agent: Reference | str, /) -> None:
        await self._order(agent, "resume")

    async def terminate(self, agent: Reference | str, /) -> None:
        await self._order(agent, "terminate")

    async def standby(self, agent: Reference | str, /, copies: int = 1) -> None:
        name = id_of(agent)
        self.check_turn(name, "have copies of")
        check_copies(copies)
        await self.send_to_owner(name, requests.SetCopies(name, copies))

    async def claim(self, agent: Reference | str, /, to: str, *, force: bool = True) -> None:
        name = id_of(agent)
        self.check_turn(name, "claim")
        to = node_name(to, "claim")
        await self.owner(name)  # raises for an agent that is not there
        await self.send_to(to, requests.Claim(name, "operator", force), self.settings.probation_s)

    async def show(self, agent: Reference | str, /) -> AgentInfo:
        name, clock = id_of(agent), asyncio.get_running_loop().time
        until = clock() + self.settings.turn_deadline_s
        while clock() < until:
            info = await self.send_to_owner(name, requests.ShowAgent(name), REQUEST_S, until=until)
            if info is not None:
                return info
            await asyncio.sleep(0.05)
        raise NoResponder(f"Agent {name!r} is between owners; try again.", agent=name)

    async def agents(self, node: str | None = None) -> list[AgentInfo]:
        self.check_loop()
        return await list_hosted(self, node)

    # ---- moves -----------------------------------------------------------------------------------------------

    async def migrate(
        self, agent: Reference | str, /, to: str | None = None, *, recovery: Mapping[str, float] | None = None
    ) -> MigrationReport:
        wishes = numbers(recovery)
        request, source = await plan_move(self, agent, to)
        report = await watch_move(self, msgspec.structs.replace(request, recovery=wishes), source)
        if report.code == "MigrationRefused":
            raise MigrationRefused(
                f"{report.target} cannot take agent {report.agent!r}, which runs on at {source}: {'; '.join(report.reasons)}.",
                agent=report.agent, migration=report.migration, reasons=list(report.reasons),
                kinds=list(report.kinds),
            )  # fmt: skip
        return report

    async def rollback(
        self, migration: str, /, to: str | None = None, *, dry_run: bool = False, correct: bool = False
    ) -> RollbackReport:
        return await undo_move(self, migration, to, dry_run=dry_run, correct=correct)

    async def abort(self, agent: Reference | str, /) -> str:
        return await abort_move(self, id_of(agent))

    # ---- nodes -----------------------------------------------------------------------------------------------

    async def nodes(self) -> list[NodeInfo]:
        self.check_loop()
        return [node for node in await describe_nodes(self) if node.state in (ALIVE, STARTING)]

    async def order_all(
        self,
        agents: Iterable[Reference | str],
        order: Order,
        *,
        to: str | None = None,
        node: str | None = None,
        reason: str = "",
    ) -> GroupReport:
        return await order_members(self, [id_of(agent) for agent in agents], order, to=to, node=node, reason=reason)

    async def cordon(self, node: str, /) -> None:
        await table.cordon(self.log, node_name(node, "cordon"), True)

    async def uncordon(self, node: str, /) -> None:
        await table.cordon(self.log, node_name(node, "uncordon"), False)

    async def drain(self, node: str, /, deadline_s: float | None = None) -> DrainReport:
        check_deadline(node_name(node, "drain"), deadline_s)
        running = current_turn.get()
        if running is not None and not running.closed and running.node == node and running.shares(self):
            raise UsageError(
                f"A turn of agent {running.id!r} ordered node {node} to be drained, where it runs, and would wait for itself to end: "
                "give the order from outside. Nothing was done.", agent=running.id, node=node,
            )  # fmt: skip
        return await drain_node(self, node, self.settings.drain_s if deadline_s is None else deadline_s)


class _Closed:
    """Stands in for the log and the wire of a closed client."""

    def __getattr__(self, name: str) -> Any:
        raise closed()
