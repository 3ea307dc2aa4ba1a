"""Requests that only ask: answered from what the node has at hand, without any change to an agent."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from mielin_cells.core import words
from mielin_cells.core.born import born
from mielin_cells.core.cluster import AgentInfo, NodeInfo, TimerInfo
from mielin_cells.core.ledger import Verdict
from mielin_cells.errors import StoreFull
from mielin_cells.node import control, orders, standing

if TYPE_CHECKING:
    from mielin_cells.node.node import Node


def answer(node: Node, question: control.Question) -> object:
    match question:
        case control.Ping():
            return info(node)
        case control.Hosted(agent=agent, after=after):
            if agent:
                found = hosted(node, agent)
                return [found] if found is not None else []
            known = node.hosts.keys() | node.troubled.keys()
            return [hosted(node, name) for name in heapq.nsmallest(control.HOSTED_MAX, (n for n in known if n > after))]
        case control.Remind():
            return reminded(node, question)
        case control.Waiting(agent=agent):
            return node.host(agent).inbox.waiting
        case control.Read(cls=cls, handler=handler, words=said):
            return words.arguments(node.spec(cls), handler, said)
        case control.ReadState(agent=agent, cls=cls, words=said):
            spec = node.spec(cls)
            initial = words.initial(spec, said)
            return control.Spawn(agent, cls, spec.version, initial, born(initial))
        case control.Replaying(agent=agent):
            fold = node.host(agent).fold
            state, error, ledger = fold.lifecycle.state, fold.lifecycle.error, fold.ledger
            stopped = "" if fold.may_run else f"in ERROR ({error.message})" if error else state.value.lower()
            return control.Rest(len(ledger.again), ledger.replayed, len(ledger.dead), stopped)
        case control.Timers(agent=agent):
            host = node.host(agent)
            return [
                TimerInfo(
                    id=timer.id, handler=timer.handler, due=timer.due, every=timer.every,
                    is_known=timer.handler in host.spec.handlers,
                )
                for timer in sorted(host.fold.ledger.timers.values(), key=lambda timer: timer.due)
            ]  # fmt: skip
        case control.Heard():
            return node.heard()
        case control.Following(after=after):
            return heapq.nsmallest(control.HOSTED_MAX, (n for n in node.standbys.copies if n > after))
        case control.Drained(name=name):
            return node.drains.told(name)
        case control.Audited(migration=migration):
            return node.migrations.watchers.audit.by_migration(migration)


def hosted(node: Node, agent: str) -> AgentInfo | None:
    """An agent that runs here, or that the log gives this node and that it cannot run."""
    host = node.hosts.get(agent)
    return orders.info(node, host) if host is not None else node.troubled.get(agent)


def info(node: Node) -> NodeInfo:
    about = node.about
    known = {name: getattr(about, name) for name in about.__struct_fields__}
    since_s = max(0.0, node.home.wall() - about.at) if about.at else 0.0
    return NodeInfo(
        name=node.name, incarnation=node.home.incarnation, agents=len(node.hosts), since_s=since_s,
        state="starting" if node.is_starting else "alive",
        is_cordoned=node.is_cordoned, **known,
    )  # fmt: skip


def reminded(node: Node, reminder: control.Remind) -> control.Standing:
    """Answers again what has taken effect, now or with the commit that may hold it.

    Raises `NoSuchAgent` if it is not here, or why it cannot answer before somebody does something about it.
    """
    agent = reminder.agent
    error, why = standing.cause(node, agent), standing.doing(node, agent, reminder.sender)
    if agent not in node.hosts and (error is not None or agent in node.troubled):
        if error is not None:
            raise error
        return control.Standing([], why)
    host, sender = node.host(agent), reminder.sender
    missing, answers = list[int](), dict[int, bytes]()
    for n in reminder.numbers:
        verdict = host.fold.ledger.judge(sender, n, reminder.start)
        if verdict in (Verdict.APPLY, Verdict.HOLD):
            missing.append(n)
        elif (answer := host.intake.answer_again(sender, n, verdict)) is not None:
            answers[n] = answer
    if answers:
        host.reply(reminder.reply_to, sender, answers)
    if error is not None and (not answers or isinstance(error, StoreFull)):
        raise error  # not of what it has answered before, unless that has to wait for the commit that finds no room
    return control.Standing(missing if host.is_idle else [], why)
