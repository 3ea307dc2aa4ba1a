"""Where an agent may go: which of the nodes in the table of members is chosen.  No node is asked."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from random import Random

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.membership.members import NOBODY, STARTING, Table

PATIENCE_S = 0.25
"""For who only needs some nodes: one that takes longer after the last answer is busy or frozen."""


class Spread:
    """Chooses a node for one agent after the other: the one with fewest agents, counting those that it was just given.

    Nodes with equally many agents are chosen by name, or with `rng` in an order of chance: many clients that spawn one agent each
    know nothing of one another.
    """

    def __init__(self, nodes: Iterable[NodeInfo] = (), rng: Random | None = None) -> None:
        self._nodes: dict[str, NodeInfo] = {}
        self._loads: dict[str, int] = {}
        self._places: dict[str, float] = {}
        self.update(nodes, rng)

    def update(self, nodes: Iterable[NodeInfo], rng: Random | None = None) -> None:
        """Takes in what is known now.  What a node was given counts until another number is known of it."""
        before, self._nodes = self._nodes, {node.name: node for node in nodes if not node.is_cordoned}
        for name, node in self._nodes.items():
            known = before.get(name)
            if known is None or (known.agents, known.incarnation) != (node.agents, node.incarnation):
                self._loads[name] = node.agents
            if name not in self._places:
                self._places[name] = rng.random() if rng is not None else 0.0

    def follow(self, table: Table, rng: Random, but: str = "") -> Spread:
        """Takes in the nodes of the table besides `but`, in an order of chance where others choose too."""
        nodes = (info for info in table.infos() if info.name != but)
        self.update(nodes, None if table.leader == NOBODY else rng)  # without a leader all are in one process
        return self

    def __bool__(self) -> bool:
        return bool(self._nodes)

    @property
    def names(self) -> list[str]:
        return list(self._nodes)

    def fits(self, name: str, cls: str = "", architectures: Collection[str] = (), version: int = 0) -> bool:
        """A node that tells of no classes, or no architecture, and the class "", say nothing and pass.

        `version`: of the class that the stored state is of, or an earlier one: older code cannot load it.
        """
        node = self._nodes.get(name)
        if node is None or (cls and node.classes and node.classes.get(cls, -1) < version):
            return False
        return not architectures or not node.architecture or node.architecture in architectures

    def choose(
        self, but: Collection[str], cls: str = "", architectures: Collection[str] = (), version: int = 0
    ) -> str | None:
        """Of the nodes that know the class, in this version or a later one, that with fewest agents; None if there is none but `but`.

        One that still starts is chosen only if all do.
        """
        able = [name for name in self._nodes if name not in but and self.fits(name, cls, architectures, version)]
        if not able:
            return None
        chosen = min(
            able, key=lambda name: (self._nodes[name].state == STARTING, self._loads[name], self._places[name], name)
        )
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
