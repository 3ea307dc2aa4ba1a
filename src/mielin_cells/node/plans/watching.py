"""Each node judges its own facts by the policies of its own agents, and tells the leader which agents should leave.

A node without such an agent does nothing.  One with some looks at its facts with each heartbeat; while they trigger nothing it sends
nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from mielin_cells.errors import CellError
from mielin_cells.log.triggers.values import MigrationPolicy
from mielin_cells.membership.members import NOBODY, Table
from mielin_cells.membership.selection import need_of
from mielin_cells.policy.evaluation.evaluation import Came, Evaluation, Gone, Leaving, Measured, Passed, Stays, Weighed
from mielin_cells.policy.evaluation.wishes import Wish
from mielin_cells.policy.facts import Facts
from mielin_cells.policy.selectors import looks_at_attributes
from mielin_cells.policy.triggers.machine import Effect, Holds
from mielin_cells.rpc import plans
from mielin_cells.rpc.call import call

if TYPE_CHECKING:
    from mielin_cells.log.fold import Fold
    from mielin_cells.log.policy import Policy
    from mielin_cells.node.activation.activation import Activation, Activations
    from mielin_cells.node.activation.presence.sleeper import Sleeper

logger = logging.getLogger("mielin_cells.plans")

AGAIN_S = 1.0
"""A node repeats its wishes this often: one may be lost, and the leader may be new."""

ASK_S = 1.0

SLICE = 500
"""Policies that are read before others run."""

UNREAD_S = 1.0
"""Attributes of agents that could not be read are read again after this."""


def triggers_of(policy: Policy) -> MigrationPolicy | None:
    """When an agent of this policy should leave its node; None: never."""
    return None if policy.immovable else policy.migration


class Watching:
    """Of one node.  `run` as long as it lives."""

    def __init__(
        self, activations: Activations, measure: Callable[[], Facts], weigh: Callable[[], Mapping[str, float]] = dict
    ) -> None:
        """`measure` gives the node's facts as they were measured last, at once; `weigh`, how much each agent had to do then."""
        self._activations = activations
        self._weigh = weigh
        self._measure = measure
        self._evaluation = Evaluation()
        self._epochs: dict[str, int] = {}
        """Of the agents that have triggers, in the epoch in which they came."""
        self._unread: dict[str, None] = {}
        """Agents whose policies entries of `mielin.toml` may change, and which have not been read with them yet, in order."""
        self._selectors_seq = 0
        """The record that brought the entries that were looked at last."""
        self._read_at = 0.0
        """When agents are looked at for other attributes, if entries match by attributes."""
        self._open: dict[int, tuple[str, ...]] = {}
        """By open plan, the agents that it moves away from here."""
        self._wished: tuple[Wish, ...] = ()
        self._sent_at = 0.0
        self._wake = asyncio.Event()

    # ---- what happens ----------------------------------------------------------------------------------------

    def served(self, activation: Activation) -> None:
        """The agent is here.  One that was only asleep has not come anew."""
        fold = activation.fold
        if self._activations.members.table.selectors_seq:
            self._unread[fold.agent] = None
            self._wake.set()
        else:
            self._take(fold, fold.policy)

    def _take(self, one: Fold | Sleeper, policy: Policy) -> None:
        """Judges the agent by this policy from now on."""
        agent, triggers = one.agent, triggers_of(policy)
        if agent in self._epochs and (triggers is None or self._epochs[agent] != one.epoch):
            self._evaluation.on(Gone(self._now(), agent))
            del self._epochs[agent]
        if triggers is None:
            return
        self._epochs[agent] = one.epoch
        _, effects = self._evaluation.on(Came(self._now(), agent, triggers))
        self._say(effects)
        self._wake.set()

    def changed(self, table: Table) -> None:
        """The log of the members has grown: plans may move agents away from here, or have ended."""
        plans, me = table.plans.open, self._activations.name
        if self._selectors_seq != table.selectors_seq:
            self._selectors_seq = table.selectors_seq
            self._unread |= dict.fromkeys((*self._activations.live, *self._activations.asleep))
            self._wake.set()
        if not self._epochs or (not plans and not self._open):
            return
        for seq in plans.keys() - self._open.keys():
            self._open[seq] = tuple(move.agent for move in plans[seq].moves if move.source == me)
            self._evaluation.on(Leaving(self._now(), self._open[seq]))
        for seq in self._open.keys() - plans.keys():
            for agent in self._open.pop(seq):
                is_here = self._here(agent) is not None
                self._evaluation.on((Stays if is_here else Gone)(self._now(), agent))
        self._wake.set()

    def _say(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            verb = "agents should leave it" if isinstance(effect, Holds) else "agents may stay on it again"
            logger.info("node %s: %s: %s", self._activations.name, verb, effect.why)

    def _now(self) -> float:
        return self._activations.clock()

    # ---- the loop --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        while not self._activations.is_stopping:
            await self._rest()
            self._wake.clear()
            if self._matches_attributes and self._now() >= self._read_at:
                self._unread |= dict.fromkeys(self._activations.live)
                self._read_at = self._now() + self._activations.settings.reconcile_s
            if self._unread:
                await self._read_policies()
            await self._round()

    @property
    def _matches_attributes(self) -> bool:
        return looks_at_attributes(self._activations.spread.selectors)

    async def _rest(self) -> None:
        due = self._evaluation.next_wake() if self._epochs else None
        rest_s = self._activations.settings.heartbeat_s if self._epochs else None
        if rest_s is None and self._matches_attributes:
            rest_s = max(0.0, self._read_at - self._now())
        if self._unread:  # their attributes could not be read
            rest_s = min(rest_s, UNREAD_S) if rest_s is not None else UNREAD_S
        if rest_s is not None and due is not None:
            rest_s = min(rest_s, max(0.0, due - self._now()))
        try:
            async with asyncio.timeout(rest_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _read_policies(self) -> None:
        """As entries of `mielin.toml` change them.  Attributes of agents are read from the store, as they are now."""
        activations, count, unknown = self._activations, 0, dict[str, None]()
        activations.spread.follow(activations.members.table, activations.home.rng, activations.name)
        while self._unread:
            agent = next(iter(self._unread))
            del self._unread[agent]
            before = self._here(agent)
            if before is None:
                continue
            resolved = await activations.spread.resolve(need_of(before))
            one = self._here(agent)
            if not resolved.is_known:
                unknown[agent] = None  # what it was judged by goes on to count
            elif one is not None and one.epoch == before.epoch:
                self._take(one, resolved.policy)
            count += 1
            if count % SLICE == 0:
                await asyncio.sleep(0)
        self._unread |= unknown

    async def _round(self) -> None:
        activations, evaluation = self._activations, self._evaluation
        if not self._epochs:
            return
        if (facts := self._measure()) != evaluation.facts:
            self._say(evaluation.on(Measured(self._now(), facts))[1])
        self._say(evaluation.on(Passed(self._now()))[1])
        if evaluation.sheds:
            evaluation.on(Weighed(self._now(), self._weigh()))
        found = list[Wish]()
        for wish in evaluation.wishes(activations.home.wall()):
            one = self._here(wish.agent)
            if one is None:
                evaluation.on(Gone(self._now(), wish.agent))
                self._epochs.pop(wish.agent, None)
            else:
                found.append(_described(wish, one))
        if tuple(found) != self._wished or (found and self._now() - self._sent_at >= AGAIN_S):
            self._wished, self._sent_at = tuple(found), self._now()
            await self._send(self._wished)

    def _here(self, agent: str) -> Fold | Sleeper | None:
        activations = self._activations
        activation = activations.live.get(agent)
        return activation.fold if activation is not None else activations.asleep.get(agent)

    async def _send(self, wishes: tuple[Wish, ...]) -> None:
        home, leader = self._activations.home, self._activations.members.table.leader
        if leader == NOBODY:
            return
        try:
            await call(home.wire, leader[0], plans.Wishes(home.name, wishes), ASK_S)
        except CellError as error:  # it is sent again
            logger.debug("node %s: the leader has not taken its wishes: %s", home.name, error)


def _described(wish: Wish, one: Fold | Sleeper) -> Wish:
    """With what the leader must know of the agent to choose its target."""
    return replace(
        wish, cls=one.cls, version=one.version, epoch=one.epoch, size_bytes=one.size_bytes,
        policy=one.policy,
    )  # fmt: skip
