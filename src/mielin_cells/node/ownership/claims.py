"""A node claims agents: after a restart those that their logs give to it, and those that it is asked to claim (rule 5).

The claim fences the agent's former owner.  Of several claims at the same place in the log one lands first, and the others fail.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import msgspec

from mielin_cells.agents.live import Cell
from mielin_cells.agents.spec import Spec
from mielin_cells.agents.upgrades import upgrade_state
from mielin_cells.errors import (
    AgentTerminated,
    CellError,
    ClaimRefused,
    EpochRegression,
    Fenced,
    InternalError,
    NoNodeFits,
    NoSuchAgent,
    NotPlaced,
    StateUpgradeFailed,
    described,
)
from mielin_cells.log.delta import StateDelta
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import inbox_subject
from mielin_cells.log.inboxes.lines import NORMAL
from mielin_cells.log.inboxes.places import HasPlace
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.records import Claimed
from mielin_cells.membership.selection import need_of
from mielin_cells.membership.standing import Standing
from mielin_cells.node.activation.activation import Activation
from mielin_cells.node.activation.presence.sleeper import Sleeper
from mielin_cells.node.activation.run import is_failure
from mielin_cells.rpc import requests
from mielin_cells.settings import LOADS_BYTES_MAX, TAKES_MAX
from mielin_cells.store.reader import Hold, load, load_behind, read_small_ends
from mielin_cells.substrate.ports import Entry
from mielin_cells.tasks.limit import Limit
from mielin_cells.tasks.together import together

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations
    from mielin_cells.node.moves.admission import Copies
    from mielin_cells.node.moves.manager import Migrations
    from mielin_cells.node.ownership.quarantine import Quarantine
    from mielin_cells.node.ownership.returns import Returns
    from mielin_cells.node.ownership.standby import Standbys

logger = logging.getLogger("mielin_cells.node")

SLOW_S = 10.0
"""After this time taking an agent, whose hook may hang, continues but no longer delays others."""


class Claims:
    """Makes this node the owner of agents."""

    def __init__(
        self, activations: Activations, copies: Copies, migrations: Migrations, standbys: Standbys, quarantine: Quarantine,
        returns: Returns,
    ) -> None:  # fmt: skip
        self._activations = activations
        self._copies = copies
        self._migrations = migrations
        self._standbys = standbys
        self._quarantine = quarantine
        self._returns = returns
        self._standing = Standing(activations.name, activations.members, activations.clock)
        self.places = Limit(TAKES_MAX, LOADS_BYTES_MAX, SLOW_S)
        """For agents that are being taken, by adoption, too."""

    def is_underway(self, agent: str) -> bool:
        """True while the agent is being created, claimed or checked here: no second one of these may begin."""
        return self._activations.is_starting(agent) or agent in self._quarantine

    async def claim(self, wish: requests.Claim, end: Entry | None = None) -> bool:
        """Takes the agent over.  `end` is the last entry of its log, if it was just read.

        Raises `ClaimRefused` for one that was rolled back to go on elsewhere, `Fenced` if another node was first, or if the owner
        that it is to be claimed from serves, and `NoNodeFits` if this node is full and no operator has ordered the claim.
        """
        agent, activations = wish.agent, self._activations
        if agent in activations.asleep:
            with contextlib.suppress(NoSuchAgent):  # another node has claimed it since it went to sleep
                await activations.awake(agent)
        if agent in activations.live:
            return True
        if self.is_underway(agent):  # a request may be repeated; two claims by one node would be two activations of it
            raise Fenced(f"Agent {agent!r} is being taken over by {activations.name}; ask again.", agent=agent)
        with activations.starting(agent):
            async with self.places.place() as place:
                return await self._claim(wish, end, place.hold)

    async def _claim(self, wish: requests.Claim, end: Entry | None, hold: Hold) -> bool:
        agent = wish.agent
        if wish.of and not wish.on_order:
            await self._standing.check(wish.of)  # not before it has its place: it may have waited
            if why := self._copies.crowd.why_full():
                await self._check_only_here(wish, why)
        with self._copies.crowd.coming(agent):
            return await self._claim_counted(wish, end, hold)

    async def _check_only_here(self, wish: requests.Claim, why: str) -> None:
        """Raises `NoNodeFits`: this node is full, and another one may have room.  Not for an agent that no other node may claim."""
        if (await load(self._activations.home.log, wish.agent, wish.seen)).goes_to != self._activations.name:
            raise NoNodeFits(
                f"Agent {wish.agent!r} was not claimed: {why}. It is safe in its log, and runs again once a node has room: start one, "
                "or raise `agents_max`.", agent=wish.agent, reasons=[why],
            )  # fmt: skip

    async def _claim_counted(self, wish: requests.Claim, end: Entry | None, hold: Hold) -> bool:
        agent, activations = wish.agent, self._activations
        followed = self._standbys.detach(agent)
        if followed is not None:
            fold = followed
        elif end is not None and wish.seen is not None and end.seq >= wish.seen.seq:
            fold = await load_behind(activations.home.log, agent, end, hold)
        else:
            fold = await load(activations.home.log, agent, wish.seen, hold)
        self._check(fold, wish)
        if wish.asks_policy and await self._is_placed_by_policy(fold):
            raise NotPlaced(
                f"Agent {agent!r} has a policy that decides where it runs; its place is chosen first.", agent=agent, cls=fold.cls,
                version=fold.version, policy=msgspec.json.encode(fold.policy).decode(), bytes=fold.size_bytes,
            )  # fmt: skip
        self._copies.claimed(agent)
        try:
            await self.take(fold, wish.cause)
        except Fenced:
            now = await load(activations.home.log, agent, hold=hold)
            if now.epoch != fold.epoch:
                raise  # another node was first
            self._check(now, wish)
            await self.take(now, wish.cause)  # the copy, or what had been seen, was a little behind
        return True

    async def _is_placed_by_policy(self, fold: Fold) -> bool:
        activations = self._activations
        placer = activations.spread
        placer.follow(activations.members.table, activations.home.rng, activations.name)
        need, _ = await placer.look(need_of(fold))
        return need.policy.decides or not need.is_known

    async def claim_all(self, wishes: list[requests.Claim]) -> list[requests.WireError | None]:
        """Claims all at the same time, each by itself; returns for each None, or why it was refused."""

        ends = await read_small_ends(self._activations.home.log, (wish.agent for wish in wishes))

        async def one(wish: requests.Claim) -> requests.WireError | None:
            try:
                await self.claim(wish, ends.pop(wish.agent, None))
            except CellError as error:
                return error.to_wire()
            except Exception as error:  # a bug: the caller learns of it, and only this agent is concerned
                logger.exception("node %s: the claim of agent %s failed", self._activations.name, wish.agent)
                return InternalError(f"Node {self._activations.name}: {described(error)}.").to_wire()
            return None

        return await together(one(wish) for wish in wishes)

    async def take(self, fold: Fold, cause: str) -> Activation:
        """Claims the agent and runs it.  Raises `Fenced` if another was first, and what keeps its state from loading."""
        activations = self._activations
        spec = activations.spec(fold.cls)
        delta = _upgrade(spec, fold)
        if delta is not None:
            fold.state.apply(delta)
        cell = Cell(spec, fold.state, fold.agent)
        writer = activations.writer(fold)
        try:
            with activations.starting(fold.agent):
                waits = await self._waits(fold) and fold.agent not in self._returns
                await writer.append(lambda head: Claimed(**head, cause=cause, waits=waits), claim=True, at_once=True)
                activation = Activation(activations.home, spec, cell, writer)
                activation.adopt(delta)
                activation.records_first_turn = waits
                if fold.may_run:
                    await activations.arrive(activation)
                activations.serve(activation)
                self._migrations.settle_soon(fold.agent, 0.0)
        except EpochRegression:
            self._quarantine.lost(fold.agent, fold.seq)
            raise
        return activation

    async def resume(self, fold: Fold, sleeper: Sleeper) -> None:
        """Serves an agent that had left memory, in its epoch: its log ends where it ended.  Raises what keeps it from loading."""
        activations = self._activations
        spec = activations.spec(fold.cls)
        delta = _upgrade(spec, fold)  # its class may have been defined again meanwhile
        if delta is not None:
            fold.state.apply(delta)
        cell = Cell(spec, fold.state, fold.agent)
        tail = sleeper.take_tail(fold.ledger.cursor)
        activation = Activation(
            activations.home, spec, cell, activations.writer(fold), tail=tail, dues=sleeper.dues
        )  # fmt: skip
        try:
            if delta is not None:
                activation.adopt(delta)
            activation.is_waking = True
            await activations.arrive(activation)
            activation.is_waking = False
            if activations.asleep.get(fold.agent) is sleeper:
                activations.serve(activation)
        finally:
            if activations.live.get(fold.agent) is not activation:
                activation.close()

    def _check(self, fold: Fold, wish: requests.Claim) -> None:
        agent = fold.agent
        if fold.phase is Phase.TERMINATED:
            raise AgentTerminated.of(agent)
        if wish.of not in ("", fold.owner):
            raise Fenced(f"Agent {agent!r} is not {wish.of}'s any more: {fold.owner} owns it.", agent=agent)
        if fold.goes_to not in ("", self._activations.name) and not wish.force:
            raise ClaimRefused(elsewhere(fold), agent=agent, node=fold.goes_to)

    async def _waits(self, fold: Fold) -> bool:
        """True if the agent has a message that its former owner may have died of.

        A replica may be behind: only the leader's answer proves that the inbox ends before the cursor.
        """
        if not fold.lifecycle.state.accepts_work:
            return False
        log, ledger = self._activations.home.log, fold.ledger
        places: dict[str, HasPlace] = {NORMAL: ledger, **(ledger.inboxes or {})}
        subjects = {inbox_subject(fold.agent, priority): priority for priority in places}
        lasts, waits = await log.lasts(list(subjects)), fold.turn is not None
        for subject, priority in subjects.items():
            place, last = places[priority], lasts.get(subject)
            if (last.seq if last is not None else 0) < place.cursor:
                last = await log.last(subject)
                self._quarantine.check_inbox(fold, last, priority)
            waits = waits or bool(place.held) or (last is not None and last.seq > place.cursor)
        return waits


def _upgrade(spec: Spec, fold: Fold) -> StateDelta | None:
    """Raises `StateUpgradeFailed` for whatever the class's code raises: the agent stays as it is stored."""
    try:
        return upgrade_state(spec, fold.state, fold.version)
    except BaseException as error:
        if isinstance(error, CellError) or not is_failure(error):
            raise
        raise StateUpgradeFailed(
            f"The upgrade of agent {fold.agent!r} from version {fold.version} of {spec.name} to {spec.version} raised "
            f"{described(error)}.", have=fold.version, need=spec.version,
        ) from error  # fmt: skip


def elsewhere(fold: Fold, why: str = "") -> str:
    return (
        f"Agent {fold.agent!r} was rolled back to go on at {fold.goes_to}, which has not claimed it{': ' + why if why else ''}. "
        f"Start {fold.goes_to}, or give the agent to another node with `mielin claim {fold.agent} --to NODE --force`; nothing is lost."
    )
