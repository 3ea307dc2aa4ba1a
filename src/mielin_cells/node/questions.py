"""Requests that only ask: answered from what the node has at hand, without any change."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from mielin_cells.core import words
from mielin_cells.core.cluster import NodeInfo
from mielin_cells.errors import NoSuchMigration
from mielin_cells.node import control, orders

if TYPE_CHECKING:
    from mielin_cells.node.node import Node


def answer(node: Node, question: control.Question) -> object:
    match question:
        case control.Ping():
            return info(node)
        case control.Hosted(agent=agent, after=after):
            if agent:
                return [orders.info(node, node.hosts[agent])] if agent in node.hosts else []
            names = heapq.nsmallest(control.HOSTED_MAX, (name for name in node.hosts if name > after))
            return [orders.info(node, node.hosts[name]) for name in names]
        case control.Waiting(agent=agent):
            return node.host(agent).inbox.waiting
        case control.Read(cls=cls, handler=handler, words=said):
            return words.arguments(node.spec(cls), handler, said)
        case control.ReadState(agent=agent, cls=cls, words=said):
            spec = node.spec(cls)
            return control.Spawn(agent, cls, spec.version, words.initial(spec, said))
        case control.Told(migration=migration):
            return _told(node, migration)
        case control.Heard():
            return node.heard()


def info(node: Node) -> NodeInfo:
    about = node.about
    known = {name: getattr(about, name) for name in about.__struct_fields__ if name != "at"}
    since_s = max(0.0, node.home.wall() - about.at) if about.at else 0.0
    return NodeInfo(name=node.name, incarnation=node.home.incarnation, agents=len(node.hosts), since_s=since_s, **known)


def _told(node: Node, migration: str) -> control.Progress:
    """What this node knows of a migration as its source."""
    found = node.migrations.told(migration)
    if found is not None:
        return found
    raise NoSuchMigration(f"Node {node.name} knows of no migration {migration}.", migration=migration)
