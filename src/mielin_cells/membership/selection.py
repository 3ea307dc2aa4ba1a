"""Where an agent may go: who is alive, and who of them is chosen."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.errors import CellError
from mielin_cells.membership import table
from mielin_cells.rpc import requests
from mielin_cells.rpc.call import call
from mielin_cells.substrate.ports import Log, Wire
from mielin_cells.tasks.together import prompt

STARTING = "starting"

PING_S = 1.0
"""A node that does not answer within this is no candidate now."""

PATIENCE_S = 0.25
"""For who only needs some nodes: one that takes longer after the last answer is busy or frozen."""


async def ping(wire: Wire, node: str) -> NodeInfo | None:
    """What the node tells of itself; None if it does not answer, or is stopping."""
    try:
        return await call(wire, node, requests.Ping(), PING_S)
    except CellError:
        return None


async def list_alive(log: Log, wire: Wire, patience_s: float = PING_S) -> list[NodeInfo]:
    """Every node that answers, by name.  Raises a `RetryError` while the store does not.

    Once some have answered, one that takes longer than `patience_s` after the last answer is left out.  Who has said that it leaves
    is asked only if nobody else answers: the registry may be read late.
    """
    entered = await table.read_members(log)
    found = list[NodeInfo]()
    for has_stopped in (False, True):
        names = [name for name, one in entered.items() if one.has_stopped is has_stopped]
        found += await prompt((ping(wire, name) for name in names), patience_s)
        if found:
            break
    return sorted(found, key=lambda node: node.name)


class Spread:
    """Chooses a node for one agent after the other: the one with fewest agents, counting those that it was just given."""

    def __init__(self, nodes: Iterable[NodeInfo]) -> None:
        self._nodes = {node.name: node for node in nodes if not node.is_cordoned}
        self._loads = {name: node.agents for name, node in self._nodes.items()}

    def __bool__(self) -> bool:
        return bool(self._nodes)

    @property
    def names(self) -> list[str]:
        return list(self._nodes)

    def fits(self, name: str, cls: str = "", architectures: Collection[str] = ()) -> bool:
        """A node that tells of no classes, or no architecture, and the class "", say nothing and pass."""
        node = self._nodes.get(name)
        if node is None or (cls and node.classes and cls not in node.classes):
            return False
        return not architectures or not node.architecture or node.architecture in architectures

    def choose(self, but: Collection[str], cls: str = "", architectures: Collection[str] = ()) -> str | None:
        """Of the nodes that know the class the one with fewest agents, then by name; None if there is none besides `but`.

        One that still starts is chosen only if all do.
        """
        able = [name for name in self._nodes if name not in but and self.fits(name, cls, architectures)]
        if not able:
            return None
        chosen = min(able, key=lambda name: (self._nodes[name].state == STARTING, self._loads[name], name))
        self.takes(chosen)
        return chosen

    def takes(self, node: str) -> None:
        """It is given one more agent."""
        if node in self._loads:
            self._loads[node] += 1

    def gives_back(self, node: str) -> None:
        """It has not taken the agent."""
        if node in self._loads:
            self._loads[node] -= 1


def choose(
    nodes: Iterable[NodeInfo], cls: str, but: Collection[str], architectures: Collection[str] = ()
) -> str | None:
    """For one agent, as `Spread.choose`."""
    return Spread(nodes).choose(but, cls, architectures)
