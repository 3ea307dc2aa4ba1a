"""A node creates an agent: the first record of its log, then its hooks."""

from __future__ import annotations

from collections.abc import Callable

from mielin_cells.agents.live import Cell
from mielin_cells.agents.spec import Spec
from mielin_cells.errors import AgentTerminated, Fenced, NameTaken, NodeCordoned, NoNodeFits, StateTooNew, WrongClass
from mielin_cells.log.family.tree import Parent
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import Created
from mielin_cells.node.activation.activation import Activation, Activations
from mielin_cells.node.activation.writer import Writer
from mielin_cells.node.moves.admission import Copies
from mielin_cells.node.moves.manager import Migrations
from mielin_cells.node.ownership.quarantine import Quarantine
from mielin_cells.rpc import requests
from mielin_cells.store.reader import load


class Creation:
    """Creates agents on this node."""

    def __init__(
        self, activations: Activations, migrations: Migrations, copies: Copies, quarantine: Quarantine,
        is_cordoned: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._activations = activations
        self._migrations = migrations
        self._quarantine = quarantine
        self._is_cordoned = is_cordoned
        self._crowd = copies.crowd

    async def spawn(self, request: requests.Spawn) -> bool:
        """Creates the agent, unless it exists.  False if it was created with another initial state than this one."""
        agent, spec = request.agent, self._activations.spec(request.cls)
        activation = self._activations.live.get(agent)
        if activation is None:
            if request.version > spec.version:
                raise StateTooNew(
                    f"Agent {agent!r} was made for {spec.name} version {request.version}; {self._activations.name} has "
                    f"{spec.version}.", agent=agent, have=request.version, need=spec.version,
                )  # fmt: skip
            activation = await self._create(request, spec)
        fold = activation.fold if activation is not None else await self._load(agent, request.parent)
        if request.parent is not None:
            return is_child(fold, request.parent)
        if fold.cls != request.cls:
            raise WrongClass(
                f"Agent {agent!r} exists and is a {fold.cls}.", agent=agent, have=fold.cls, need=request.cls
            )
        return not fold.born or fold.born == request.born

    async def _load(self, agent: str, parent: Parent | None) -> Fold:
        fold = await load(self._activations.home.log, agent)
        if fold.phase is Phase.TERMINATED and parent is None:
            raise AgentTerminated.of(agent)
        if fold.owner == self._activations.name:
            self._activations.look(agent)
        return fold

    async def _create(self, request: requests.Spawn, spec: Spec) -> Activation | None:
        """The new agent's activation; None if the agent exists already."""
        activations, agent = self._activations, request.agent
        fold = Fold(agent)
        fold.state.apply(request.state)
        cell = Cell(spec, fold.state, agent)
        writer = activations.writer(fold)
        if await activations.home.log.last(log_subject(agent)) is not None or activations.is_starting(agent):
            return None
        self._quarantine.check_new(agent)
        if self._is_cordoned():
            name = activations.name
            raise NodeCordoned(f"{name} is cordoned and takes no agents; `mielin uncordon {name}`.", node=name)
        self._migrations.config_of(spec.cls)  # raises now what would keep the agent from ever being moved
        self._check_room(agent)
        with self._crowd.coming(agent), activations.starting(agent):
            return await self._make(request, spec, cell, writer)

    def _check_room(self, agent: str) -> None:
        """Raises `NoNodeFits` if the node is full.  Who has sent the agent here named the node, or read the table late."""
        if why := self._crowd.why_full():
            raise NoNodeFits(f"Agent {agent!r} has no place: {why}. Nothing was changed.", agent=agent, reasons=[why])

    async def _make(self, request: requests.Spawn, spec: Spec, cell: Cell, writer: Writer) -> Activation | None:
        activations, policy = self._activations, request.policy or spec.cls.__mielin_policy__
        try:
            await writer.append(
                lambda head: Created(
                    **head, cls=spec.name, version=spec.version, state=request.state, born=request.born,
                    at=activations.home.wall(), policy=policy, parent=request.parent,
                ),
                claim=True, at_once=True,
            )  # fmt: skip
        except Fenced:
            return None
        activation = Activation(activations.home, spec, cell, writer)
        await activations.arrive(activation)
        activations.serve(activation)
        await activation.flush_within(activations.settings.turn_deadline_s)
        return activation


def is_child(fold: Fold, parent: Parent) -> bool:
    """True if the agent was made by this very call of `cells.spawn`.  Raises `NameTaken` if it was not."""
    family = fold.ledger.family
    known = family.parent if family is not None else None
    if known is not None and known.key == parent.key:
        return True
    raise NameTaken(
        f"Agent {parent.agent!r} cannot spawn {fold.agent!r} as a child: that is the id of an agent of class {fold.cls} already, "
        "which another call has made. Choose another id, or call that agent by its reference. Nothing was made.",
        agent=fold.agent, parent=parent.agent,
    )  # fmt: skip
