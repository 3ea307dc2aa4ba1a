"""Requests that only read: answered from the node's memory, without any change to an agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from mielin_cells.agents.reports import AgentInfo, CallInfo, NodeInfo, TimerInfo
from mielin_cells.errors import UNLOADABLE, UNUSABLE, CellError, StoreFull, from_wire, storable
from mielin_cells.log.delta import born
from mielin_cells.log.inboxes.lines import end_of
from mielin_cells.log.ledger import Verdict
from mielin_cells.log.lifecycle import AgentState
from mielin_cells.membership.heartbeat import Listener
from mielin_cells.node.activation.calls.circles import awaited
from mielin_cells.node.activation.context import LATER
from mielin_cells.node.activation.priorities.listing import list_calls
from mielin_cells.redaction import scrubbed
from mielin_cells.rpc import answers, requests, words
from mielin_cells.rpc.answers import InboxRoom
from mielin_cells.rpc.pages import PAGE_MAX, page_of
from mielin_cells.rpc.serve import Handlers

WHY_CHARS_MAX = 500
"""Of a failure, in the timeout of an ask."""

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations
    from mielin_cells.node.drain import Drains
    from mielin_cells.node.moves.manager import Migrations
    from mielin_cells.node.orders import Orders
    from mielin_cells.node.ownership.standby import Standbys


class Questions:
    """Of one node."""

    def __init__(
        self, activations: Activations, orders: Orders, migrations: Migrations, standbys: Standbys, drains: Drains,
        listener: Listener, info: Callable[[], NodeInfo],
    ) -> None:  # fmt: skip
        self._activations = activations
        self._orders = orders
        self._migrations = migrations
        self._standbys = standbys
        self._drains = drains
        self._listener = listener
        self._info = info

    @property
    def handlers(self) -> Handlers:
        return {
            requests.Ping: lambda _: self._info(),
            requests.ListBeats: lambda _: self._listener.beats(),
            requests.ShowAgent: lambda request: self.hosted(request.agent),
            requests.ListAgents: self._list_agents,
            requests.ListIds: lambda request: page_of(self._names(), request.after),
            requests.ListCopies: lambda request: page_of(self._standbys.copies, request.after),
            requests.ListCalls: self._list_calls,
            requests.ListTimers: lambda request: self._list_timers(request.agent),
            requests.CountWaiting: self._count_waiting,
            requests.Remind: self.reminded,
            requests.ReadArguments: lambda request: words.arguments(
                self._activations.spec(request.cls), request.handler, request.words
            ),
            requests.ReadState: self._read_state,
            requests.ReadReplay: lambda request: self._read_replay(request.agent),
            requests.ReadDrain: lambda request: self._drains.progress(request.name),
            requests.ReadAudit: lambda request: self._migrations.manager.validator.audit.by_migration(
                request.migration
            ),
        }

    def _names(self) -> set[str]:
        activations = self._activations
        return activations.live.keys() | activations.asleep.keys() | activations.unloadable.keys()

    async def _list_agents(self, request: requests.ListAgents) -> list[AgentInfo]:
        """Describes no more agents at a time than one page may have, and lets others run in between."""
        infos, names, after = list[AgentInfo](), self._names(), request.after
        while len(infos) < request.limit:
            page = page_of(names, after)
            for name in page:
                info = self.hosted(name) if request.which.may_have_class(self._class_of(name)) else None
                if info is not None and request.which.has(info):
                    infos.append(info)
                    if len(infos) == request.limit:
                        break
            if len(page) < PAGE_MAX:
                break
            after = page[-1]
            await asyncio.sleep(0)
        return infos

    def _class_of(self, agent: str) -> str:
        activations = self._activations
        activation = activations.live.get(agent)
        other = activations.asleep.get(agent) or activations.unloadable.get(agent)
        return activation.fold.cls if activation is not None else other.cls if other is not None else ""

    def _count_waiting(self, request: requests.CountWaiting) -> InboxRoom:
        agent = request.agent
        sleeper = self._activations.asleep.get(agent)
        if sleeper is not None:  # it sleeps because nothing waits; what comes wakes it by itself
            spec, settings = self._activations.spec(sleeper.cls), self._activations.home.settings
            return InboxRoom(0, spec.inbox_limit(settings), spec.when_full(settings))
        return self._activations.running(agent).room(request.priority)

    async def _list_calls(self, request: requests.ListCalls) -> list[CallInfo]:
        return list_calls(await self._activations.awake(request.agent))

    async def _list_timers(self, agent: str) -> list[TimerInfo]:
        activation = await self._activations.awake(agent)
        return [
            TimerInfo(
                id=timer.id, handler=timer.handler, due=timer.due, every=timer.every, cron=f"{timer.cron} {timer.zone}".strip(),
                is_known=timer.handler in activation.spec.handlers,
            )
            for timer in sorted(activation.fold.ledger.timers.values(), key=lambda timer: timer.due)
        ]  # fmt: skip

    def _read_state(self, request: requests.ReadState) -> requests.Spawn:
        spec = self._activations.spec(request.cls)
        initial = words.initial(spec, request.words)
        return requests.Spawn(request.agent, request.cls, spec.version, initial, born(initial))

    async def _read_replay(self, agent: str) -> answers.ReplayProgress:
        fold = (await self._activations.awake(agent)).fold
        state, error, ledger = fold.lifecycle.state, fold.lifecycle.error, fold.ledger
        stopped = "" if fold.may_run else f"in ERROR ({error.message})" if error else state.value.lower()
        return answers.ReplayProgress(len(ledger.replays), ledger.replayed, len(ledger.dead), stopped)

    def hosted(self, agent: str) -> AgentInfo | None:
        """An agent that runs here, or that the log gives this node and that it cannot run."""
        return self._orders.info_of(agent) or self._activations.unloadable.get(agent)

    async def reminded(self, reminder: requests.Remind) -> answers.AskStatus:
        """Sends stored answers again, now or with the commit that may hold them.

        Raises `NoSuchAgent` if it is not here, or why it cannot answer before somebody does something about it.
        """
        agent = reminder.agent
        if agent in self._activations.asleep:
            await self._activations.awake(agent)
        error, why = self.cause(agent), self.doing(agent, reminder.sender)
        if agent not in self._activations.live and (error is not None or agent in self._activations.unloadable):
            if error is not None:
                raise error
            return answers.AskStatus([], why)
        activation, sender = self._activations.running(agent), reminder.sender
        missing, known = list[int](), dict[int, bytes]()
        for n in reminder.numbers:
            verdict = activation.fold.ledger.judge(sender, n, reminder.start)
            if verdict in (Verdict.APPLY, Verdict.HOLD):
                missing.append(n)
            elif (answer := activation.answer_again(sender, n, verdict)) is not None:
                known[n] = answer
        if known:
            activation.reply(reminder.reply_to, sender, known)
        if error is not None and (not known or isinstance(error, StoreFull)):
            raise error  # not of what it has answered before, unless that has to wait for the commit that finds no room
        waits_for = awaited(activation.asks, end_of(sender))
        return answers.AskStatus(missing if activation.is_idle else [], why, waits_for)

    def cause(self, agent: str) -> CellError | None:
        """Why an agent of this node cannot answer before somebody intervenes; None if it can."""
        activation = self._activations.live.get(agent)
        if activation is None:
            unloadable = self._activations.unloadable.get(agent)
            if unloadable is None or unloadable.code not in UNUSABLE | UNLOADABLE:
                return None
            said = scrubbed(unloadable.error).rstrip(".")
            where = "" if self._activations.name in said else f" on {self._activations.name}"
            later = "" if unloadable.code in UNUSABLE else f"{where}. {LATER}, once it is mended and resumed."
            return from_wire(unloadable.code, f"Agent {agent!r} cannot answer: {said}{later or '.'}", {"agent": agent})
        why = activation.writer.waits_for
        if isinstance(why, StoreFull):
            return type(why)(
                f"Agent {agent!r} on {self._activations.name} cannot answer: {why.message} {LATER}.",
                **{**why.facts, "agent": agent},
            )
        return activation.error

    def doing(self, agent: str, sender: str) -> str:
        """Why an agent of this node has not answered a sender yet, for people; "" if no reason is known."""
        activation = self._activations.live.get(agent)
        if activation is None:
            unloadable = self._activations.unloadable.get(agent)
            return (
                f"it cannot run on {self._activations.name} ({scrubbed(unloadable.error).rstrip('.')}), and the message waits"
                if unloadable is not None
                else ""
            )
        state = activation.fold.lifecycle.state
        if state in (AgentState.SUSPENDED, AgentState.PAUSED):
            return f"it is {state.value.lower()}, and the message waits until it is resumed"
        if activation.writer.waits_for is not None:
            return f"its store does not take its records ({activation.writer.waits_for.message.rstrip('.')}), and the message waits"
        handler, age_s = activation.runner.running
        failed = activation.intake.delays.why(sender)
        if failed and not handler:
            said = scrubbed(storable(failed))[:WHY_CHARS_MAX].rstrip(".")
            return f"its handler {said}, and is run again; what the same sender has sent since waits for that"
        return f"it is in {activation.spec.name}.{handler}, for {age_s:.1f} s when it was asked last" if handler else ""
