"""What an operator does to a deployment without its classes at hand: by names, ids and words."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, TypeVar

import msgspec

from mielin_cells.agents.context import Caller
from mielin_cells.agents.reports import AgentInfo, MigrationReport, NodeInfo, TimerInfo
from mielin_cells.agents.values.models import readable
from mielin_cells.client.client import REQUEST_S, Client
from mielin_cells.errors import (
    AgentTerminated,
    CellError,
    ClaimRefused,
    InvalidAgentId,
    NoResponder,
    NoSuchAgent,
    NoSuchMigration,
    RecordInvalid,
    RetryError,
    UnknownClass,
    UnknownNode,
    UsageError,
    WrongClass,
    from_wire,
    never,
)
from mielin_cells.log.fold import Fold, Phase
from mielin_cells.log.ids import BEATS, AgentId, log_subject
from mielin_cells.log.message import Answer
from mielin_cells.log.records import (
    AnyRecord,
    Created,
    HandedOff,
    Record,
    Snapshot,
    Terminated,
    decode_record,
    named_owner,
)
from mielin_cells.membership import table
from mielin_cells.membership.heartbeat import Ear
from mielin_cells.membership.selection import STARTING
from mielin_cells.rpc import answers, requests
from mielin_cells.rpc.answers import Beat, Prediction
from mielin_cells.store import journal
from mielin_cells.store.letters import Letter, id_of, letters, shown
from mielin_cells.store.reader import known_agents, load, record_of
from mielin_cells.substrate.ports import Entry, Log
from mielin_cells.tasks.together import together

T = TypeVar("T")

READS_MAX = 64
"""Logs looked at together."""

WATCH_S = 0.1
"""How often a shown migration is asked after."""

READ_RECORDS = 256

NEAREST = 3
"""Names that are told of those like a name that is not there."""

ALIVE, STUCK, SILENT, STOPPED = "alive", "stuck", "silent", "stopped"


class _Said(NamedTuple):
    """A call in words: whoever knows the class has made bytes of them, and its result is shown as plain data."""

    name: str
    args: bytes

    def encode_args(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        return self.args

    def decode_result(self, data: bytes, caller: Caller | None = None) -> Any:
        return readable(msgspec.msgpack.decode(data)) if data else None

    def error_of(self, answer: Answer) -> Exception:
        if answer.error is None:
            raise never("answer.error is not None does not hold")
        return from_wire(*answer.error)


class Operator:
    """Over a client that is open."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.log: Log = client.log

    # ---- calls -----------------------------------------------------------------------------------------------

    async def spawn(self, cls: str, id: str, words: list[str], on: str | None = None) -> tuple[str, bool]:
        """Creates the agent; its node, and whether it is new.  An existing one of this class stays as it is.

        Raises `WrongClass`, `AgentTerminated`, `UnknownClass`, `UnknownNode`, `BadArguments`.
        """
        agent = str(AgentId(id))
        if await self.log.last(log_subject(agent)) is not None:
            have = await self.class_of(agent)
            if have != cls:
                raise WrongClass(f"Agent {agent!r} exists and is a {have}.", agent=agent, have=have, need=cls)
            return (await self.client.owner(agent))[0], False
        place = on or await self._place_for(cls)
        request = await self._of_node(place, requests.ReadState(agent, cls, words))

        async def there() -> str:
            return place

        await self.client.ordered(there, request)
        return place, True

    async def _place_for(self, cls: str) -> str:
        """Of the nodes that know the class, the one with the fewest agents."""
        nodes = await self.client.nodes()
        able = [node for node in nodes if cls in node.classes and not node.is_cordoned]
        if not nodes:
            raise NoResponder("No node answers; start one with `mielin node` or `mielin up`.")
        if not able:
            known = sorted({name for node in nodes for name in node.classes})
            raise UnknownClass(
                f"No node that takes agents knows the class {cls!r}; they know {', '.join(known) or 'none'}.",
                name=cls,
            )
        return min(able, key=lambda node: (node.agents, node.name)).name

    async def _of_node(self, node: str, request: requests.Request[T]) -> T:
        """One node's answer.  Raises `UnknownNode` if there is none of this name, and what the request raises there."""
        try:
            return await self.client.request(node, request, REQUEST_S)
        except NoResponder as error:
            if not await table.is_known(self.log, node):
                known = await table.names(self.log)
                raise UnknownNode(
                    f"There is no node {node!r}; there are {', '.join(known) or 'none'}.", node=node, nodes=known
                ) from error
            raise NoResponder(f"Node {node} does not answer; see `mielin nodes`.", node=node) from error

    async def _end_of(self, agent: str) -> Entry | None:
        """The last entry of the agent's log; None if there is no such agent, for certain."""
        return await self.log.last(log_subject(agent)) or await self.log.settled(log_subject(agent))

    async def class_of(self, agent: str) -> str:
        """The agent's class, from its log.  Raises `NoSuchAgent`."""
        last = await self._end_of(agent)
        if last is None:
            raise NoSuchAgent(f"There is no agent {agent!r} in this deployment; spawn it first.", agent=agent)
        record = await record_of(self.log, agent, last)
        if not isinstance(record, (Created, Snapshot)):
            found = await self.log.read(log_subject(agent), max(record.snap - 1, 0), 1)
            record = await record_of(self.log, agent, found[0] if found else last)
        if isinstance(record, (Created, Snapshot)):
            return record.cls
        return (await load(self.log, agent)).cls  # trimmed in between

    async def ask(self, agent: str, handler: str, words: list[str], timeout: float | None = None) -> Any:
        """What the handler returns, as plain data."""
        cls, args = await self._read(agent, handler, words)
        return await self.client.lane(agent).ask(cls, _Said(handler, args), (), {}, timeout)

    async def tell(self, agent: str, handler: str, words: list[str]) -> None:
        """Returns when the message is stored."""
        cls, args = await self._read(agent, handler, words)
        await self.client.lane(agent).tell(cls, handler, args)

    async def _read(self, agent: str, handler: str, words: list[str]) -> tuple[str, bytes]:
        """The agent's class, and the words as arguments: its owner reads them, or another node that knows the class."""
        agent = str(AgentId(agent))
        cls = await self.class_of(agent)
        owner, _ = await self.client.owner(agent)
        error: Exception | None = None
        for node in [owner, *(name for name in await table.names(self.log) if name != owner)]:
            try:
                return cls, await self.client.request(node, requests.ReadArguments(cls, handler, words), REQUEST_S)
            except UnknownClass as refusal:
                error = refusal
            except RetryError as silence:
                error = error or silence
        if isinstance(error, UnknownClass):
            raise error
        raise NoResponder(
            f"No node answers that knows the class {cls} of agent {agent!r}; nothing was sent.", agent=agent
        ) from error

    # ---- agents ----------------------------------------------------------------------------------------------

    async def agents(self) -> list[AgentInfo]:
        """Every agent that lives: as its node tells, or, if none runs it, as its log tells."""
        found = {info.id: info for info in await self.client.agents()}
        missing = [agent for agent, _ in await known_agents(self.log) if agent not in found]
        for info in await _all(missing, self._unhosted):
            if info is not None:
                found[info.id] = info
        return [found[name] for name in sorted(found)]

    async def _unhosted(self, agent: str) -> AgentInfo | None:
        last = await self.log.last(log_subject(agent))
        if last is None:
            return None
        try:
            record = await record_of(self.log, agent, last)
            if isinstance(record, Terminated):
                return None
            state = "Migrating" if isinstance(record, HandedOff) else "unreachable"
            return AgentInfo(
                id=agent, cls=await self.class_of(agent), version=0, node=named_owner(record), epoch=record.epoch,
                state=state, waiting=0, bytes=0, at=record.written,
            )  # fmt: skip
        except RecordInvalid as error:
            return AgentInfo(
                id=agent, cls="", version=0, node="", epoch=0, state="unreadable", waiting=0, bytes=0, error=str(error)
            )

    async def show(self, thing: str) -> AgentInfo | NodeInfo:
        """An agent or a node.  Raises `NoSuchAgent`, or `NoSuchMigration` for what looks like one, if it is neither."""
        if _is_id(thing) and await self._end_of(thing) is not None:
            return await self._agent(thing)
        for node in await self.nodes():
            if node.name == thing:
                return node
        if thing.startswith("m-"):
            raise NoSuchMigration(f"There is no migration {thing}; see `mielin migrations`.", migration=thing)
        raise NoSuchAgent(f"There is no agent and no node {thing!r}; see `mielin agents`, `mielin nodes`.", agent=thing)

    async def _agent(self, agent: str) -> AgentInfo:
        fold_of: Fold | None = None
        try:
            owner, _ = await self.client.owner(agent)
            info = await self.client.request(owner, requests.ShowAgent(agent), REQUEST_S)
            if info is not None:
                return info
        except (RetryError, AgentTerminated):
            pass  # the log tells the rest
        fold_of = await load(self.log, agent)
        life = fold_of.lifecycle
        ended = fold_of.phase is Phase.TERMINATED
        return AgentInfo(
            id=agent, cls=fold_of.cls, version=fold_of.version, node="" if ended else fold_of.owner,
            epoch=fold_of.epoch, state=fold_of.status.value if ended else "unreachable", waiting=0,
            bytes=fold_of.size_bytes, migration=fold_of.migration, dead=len(fold_of.ledger.dead),
            error=life.error.message if life.error is not None else "", code=life.error.code if life.error is not None else "",
            at=fold_of.written,
        )  # fmt: skip

    async def nearest(self, name: str) -> list[str]:
        """Agents and nodes, or migrations, of names like this one; the likeliest first."""
        if name.startswith("m-"):
            known = [migration for _, migration in await journal.listed(self.log)]
        else:
            known = [agent for agent, _ in await known_agents(self.log)] + await table.names(self.log)
        starts = [one for one in known if name and one.startswith(name)][:NEAREST]
        return starts or difflib.get_close_matches(name, known, NEAREST)

    async def records(
        self, agent: str, after: int = 0, follow: bool = False
    ) -> AsyncIterator[tuple[int, int, AnyRecord | Record | RecordInvalid]]:
        """Each record of the agent's log: sequence, bytes, and the record or why it cannot be read."""
        agent = str(AgentId(agent))
        if await self._end_of(agent) is None:
            raise NoSuchAgent(f"There is no agent {agent!r} in this deployment.", agent=agent)
        at = after
        while entries := await self.log.read(log_subject(agent), at, READ_RECORDS):
            for entry in entries:
                yield entry.seq, len(entry.data), _record(agent, entry.seq, entry.data)
            at = entries[-1].seq
        if not follow:
            return
        tail = self.log.tail(log_subject(agent), at)
        try:
            async for batch in tail:
                for entry in batch:
                    yield entry.seq, len(entry.data), _record(agent, entry.seq, entry.data)
        finally:
            tail.close()

    # ---- nodes -----------------------------------------------------------------------------------------------

    async def nodes(self) -> list[NodeInfo]:
        """Every node that ever entered: those that answer as they are, of the others what is known."""
        entered, ear = await table.registered(self.log), Ear()
        subscription = await self.client.wire.subscribe(BEATS, ear.hear)
        try:
            answers = dict(zip(entered, await _all(list(entered), self.client.ping), strict=True))
            if any(answer is None and not entered[name].has_stopped for name, answer in answers.items()):
                heard = await self._heard([name for name, answer in answers.items() if answer is not None])
                heard += ear.heard()
            else:
                heard = []
        finally:
            subscription.close()
        return [answers[name] or self._quiet(name, entered[name], heard) for name in entered]

    async def _heard(self, nodes: list[str]) -> list[Beat]:
        for node in nodes:
            try:
                return await self.client.request(node, requests.ListBeats(), REQUEST_S)
            except RetryError:
                continue
        return []

    def _quiet(self, name: str, entered: table.Entered, heard: list[Beat]) -> NodeInfo:
        """A node that does not answer."""
        settings, about = self.client.settings, entered.about
        beats = [beat for beat in heard if beat.node == name and beat.incarnation >= entered.incarnation]
        beat = min(beats, key=lambda beat: beat.ago_s, default=None)
        state, since_s = SILENT, beat.ago_s if beat is not None else 0.0
        if entered.has_stopped:
            state, since_s = STOPPED, max(0.0, time.time() - about.at) if about.at else 0.0
        elif beat is None or beat.ago_s > settings.heartbeat_s * settings.heartbeat_misses:
            pass
        elif beat.is_starting or beat.stuck_s:  # else its process has just died: its last heartbeat knew nothing of it
            state, since_s = (STARTING if beat.is_starting else STUCK), beat.stuck_s
        known = {field: getattr(about, field) for field in about.__struct_fields__}
        return NodeInfo(
            name=name, incarnation=entered.incarnation, agents=0, state=state, since_s=since_s,
            is_cordoned=entered.is_cordoned, **known,
        )  # fmt: skip

    # ---- moves -----------------------------------------------------------------------------------------------

    async def plan(self, agent: str, to: str | None) -> tuple[requests.Migrate, str]:
        """A move and its source; nothing has begun.  Raises what keeps it from being planned."""
        return await self.client.plan(agent, to)

    async def predict(self, agent: str, to: str | None) -> Prediction:
        """What a move would take, and every reason against it now.  Raises as `plan`."""
        _, source = await self.client.plan(agent, to)
        return await self._of_node(source, requests.Predict(str(AgentId(agent)), to or ""))

    async def predicted(self, agent: str, to: str | None) -> Prediction | None:
        """As `predict`, for a comparison that nobody waits for: None if it cannot be made."""
        try:
            return await self.predict(agent, to)
        except CellError:
            return None

    async def watch(
        self, request: requests.Migrate, source: str, seen: Callable[[answers.Progress], None]
    ) -> MigrationReport:
        """Moves the agent and waits; `seen` gets the progress.  A refusal is in the report."""
        return await self.client.watched(msgspec.structs.replace(request, wait=WATCH_S), source, seen)

    async def begin(
        self, agent: str, to: str | None, recovery: dict[str, float] | None = None
    ) -> tuple[requests.Migrate, str, str]:
        """Has the source begin the move, and does not wait for its end: the move, source and target.

        Raises what keeps it from beginning.
        """
        request, source = await self.client.plan(agent, to)
        request = msgspec.structs.replace(request, wait=0.0, recovery=recovery)
        return request, source, (await self._of_node(source, request)).target

    async def claim(self, agent: str, to: str, force: bool) -> str:
        """Node `to` takes the agent over; its former owner.  Raises `ClaimRefused` while that answers, unless forced."""
        owner, epoch = await self.client.owner(agent)
        if not await table.is_known(self.log, to):
            known = await table.names(self.log)
            raise UnknownNode(f"There is no node {to!r}; there are {', '.join(known)}.", node=to, nodes=known)
        if not force and owner != to:
            await self._gone(agent, owner, epoch, to)
        await self.client.claim(agent, to, force=force)
        return owner

    async def _gone(self, agent: str, owner: str, epoch: int, to: str) -> None:
        """Raises `ClaimRefused` if the owner answers and runs the agent, or verifies it."""
        try:
            info = await self.client.request(owner, requests.ShowAgent(agent), REQUEST_S)
        except RetryError:
            return
        advice = f"move it with `mielin migrate {agent} --to {to}`, or add --force: {owner} is then fenced, and nothing is lost"
        if info is not None:
            raise ClaimRefused(
                f"{owner} answers and runs agent {agent!r} (epoch {info.epoch}, {info.state}); {advice}.",
                agent=agent, node=owner,
            )  # fmt: skip
        last = await self.log.last(log_subject(agent))
        if last is not None and isinstance(await record_of(self.log, agent, last), HandedOff):
            raise ClaimRefused(
                f"{owner} answers and verifies agent {agent!r}, which was just moved to it (epoch {epoch}); {advice}.",
                agent=agent, node=owner,
            )  # fmt: skip

    # ---- timers ----------------------------------------------------------------------------------------------

    async def timers(self, agent: str) -> list[TimerInfo]:
        """The agent's timers, the next first.  Of an agent that no node runs, as its log tells."""
        agent = str(AgentId(agent))
        try:
            owner, _ = await self.client.owner(agent)
            return await self.client.request(owner, requests.ListTimers(agent), REQUEST_S)
        except (RetryError, AgentTerminated):
            found = (await load(self.log, agent)).ledger.timers.values()
        plain = [TimerInfo(id=one.id, handler=one.handler, due=one.due, every=one.every) for one in found]
        return sorted(plain, key=lambda one: one.due)

    async def cancel_timer(self, agent: str, timer: str) -> None:
        """Raises `UsageError` if there is no such timer."""
        agent = str(AgentId(agent))
        there = [one.id for one in await self.timers(agent)]
        if timer not in there:
            known = ", ".join(map(repr, there)) or "none"
            raise UsageError(f"Agent {agent!r} has no timer {timer!r}; there are {known}.", agent=agent)

        async def owner() -> str:
            return (await self.client.owner(agent))[0]

        request = requests.CancelTimer(agent, timer)
        await self.client.ordered(owner, request, self.client.settings.turn_deadline_s)

    # ---- dead letters ----------------------------------------------------------------------------------------

    async def letters(self, agent: str) -> list[Letter]:
        _, found = await letters(self.log, str(AgentId(agent)))
        return [shown(agent, number, letter) for number, letter in enumerate(found, 1)]

    def letter(self, agent: str, which: str, found: list[Letter]) -> Letter:
        """The one of this number or id.  Raises `UsageError`."""
        return found[_index(agent, which, [one.id for one in found])]

    async def replay(self, agent: str, which: str) -> Letter:
        """Sends a dead letter's message again, as a new message, and removes the letter, which is returned.

        If the message fails again it is a new dead letter.  Its session is named after the letter, so that a replay
        repeated because its outcome was unknown takes effect once.
        """
        fold, found = await letters(self.log, str(AgentId(agent)))
        index = _index(agent, which, [id_of(agent, one) for one in found])
        letter = found[index]
        if fold.phase is Phase.TERMINATED:
            raise AgentTerminated(f"Agent {agent!r} has ended: its letters can be read, not replayed.", agent=agent)
        if not letter.handler:
            raise UsageError(f"Letter {which} of agent {agent!r} was never readable: it can only be purged.")
        lane = self.client.lane(agent, f"replay.{id_of(agent, letter)}")
        await lane.tell(fold.cls, letter.handler, letter.args)
        await self._purge(agent, [letter.key])
        return shown(agent, index + 1, letter)

    async def purge(self, agent: str, which: str | None) -> int:
        """Removes one dead letter, or all of them; how many."""
        fold, found = await letters(self.log, str(AgentId(agent)))
        if fold.phase is Phase.TERMINATED:
            raise AgentTerminated(f"Agent {agent!r} has ended: its letters can be read, not purged.", agent=agent)
        if which is not None:
            found = [found[_index(agent, which, [id_of(agent, one) for one in found])]]
        return await self._purge(agent, [letter.key for letter in found]) if found else 0

    async def _purge(self, agent: str, keys: list[tuple[int, str, int]]) -> int:
        async def owner() -> str:
            return (await self.client.owner(agent))[0]

        return await self.client.ordered(owner, requests.PurgeLetters(agent, keys))


def _index(agent: str, which: str, ids: list[str]) -> int:
    if which in ids:
        return ids.index(which)
    if which.isdecimal() and 1 <= int(which) <= len(ids):
        return int(which) - 1
    raise UsageError(
        f"Agent {agent!r} has no dead letter {which!r}; it has {len(ids)}: `mielin dead {agent}` lists them."
    )


def _is_id(text: str) -> bool:
    try:
        AgentId(text)
    except InvalidAgentId:
        return False
    return True


def _record(agent: str, seq: int, data: bytes) -> AnyRecord | RecordInvalid:
    try:
        return decode_record(data, f"The log of agent {agent!r} at {seq}")
    except RecordInvalid as error:
        return error


async def _all(items: list[str], work: Callable[[str], Any]) -> list[Any]:
    limit = asyncio.Semaphore(READS_MAX)

    async def one(item: str) -> Any:
        async with limit:
            return await work(item)

    return await together(one(item) for item in items)
