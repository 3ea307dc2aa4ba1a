"""Standby copies: nodes that follow an agent's log, so that a failover costs the detection and one append, and no load.

A copy grants nothing.  A node that claims an agent with its copy appends as any other node would.  The owner chooses the nodes that
follow, and asks them again in every round; a copy that the owner no longer asks for is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from typing import TYPE_CHECKING

from mielin_cells.errors import AgentTerminated, CellError, NoSuchAgent, described
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import Phase
from mielin_cells.membership.selection import need_of
from mielin_cells.membership.whereabouts import Placer
from mielin_cells.rpc import requests
from mielin_cells.rpc.call import call
from mielin_cells.rpc.planned import Planned, prepare
from mielin_cells.settings import FOLLOWS_MAX, LOADS_BYTES_MAX, RETRY_S_MAX
from mielin_cells.store.follower import LogFollower
from mielin_cells.store.reader import load
from mielin_cells.tasks.limit import Limit
from mielin_cells.tasks.supervision import Backoff

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation, Activations
    from mielin_cells.node.moves.admission import Copies

logger = logging.getLogger("mielin_cells.standby")

ASK_S = 1.0
"""For a node to say which copies it keeps."""

BATCH = 500
"""Agents in one request for copies."""

ROUNDS_KEPT = 12
"""Rounds without a request of the owner before a copy is dropped: longer than any failover."""


class StandbyCopy:
    """An agent of another node whose log is followed here."""

    def __init__(self, activations: Activations, agent: str, places: Limit) -> None:
        self.agent = agent
        self._places = places
        self.asked_at = activations.clock()
        self._activations = activations
        self._follower: LogFollower | None = None
        self._is_closed = False

    @property
    def fold(self) -> Fold | None:
        """None until the agent is loaded."""
        return self._follower.fold if self._follower is not None else None

    async def run(self) -> None:
        """Follows the log until the copy is closed or the agent has ended; after an error it reads the log again."""
        backoff = Backoff()
        while not self._is_closed:
            try:
                await self._follow()
                backoff.reset()
            except (NoSuchAgent, AgentTerminated):
                return
            except Exception as error:  # of the store, or of a log that its owner will complain of louder
                logger.info(
                    "node %s: following agent %s for a standby copy failed; reading its log again: %s",
                    self._activations.name,
                    self.agent,
                    described(error),
                )
            self._follower = None
            if not self._is_closed:
                await backoff.wait()

    async def _follow(self) -> None:
        log = self._activations.home.log
        async with self._places.place() as place:
            fold = await load(log, self.agent, hold=place.hold)
        if self._is_closed:
            return
        self._follower = follower = LogFollower(log, fold)
        try:
            while await follower.next() is not None:
                if fold.phase is Phase.TERMINATED:
                    self._is_closed = True
                    return
        finally:
            follower.close()

    def detach(self) -> Fold | None:
        """Closes the copy and hands its fold over, if there is one."""
        self._is_closed = True
        return self._follower.detach() if self._follower is not None else None

    def close(self) -> None:
        self.detach()


class Standbys:
    """The copies that a node keeps for others, and the nodes that keep those of its own agents."""

    def __init__(self, activations: Activations, offers: Copies) -> None:
        self._activations = activations
        self._offers = offers
        self.copies: dict[str, StandbyCopy] = {}
        self._places = Limit(FOLLOWS_MAX, LOADS_BYTES_MAX, RETRY_S_MAX * 10)
        self._followers: dict[str, list[str]] = {}
        """By agent of this node that wants copies, the nodes that keep one."""
        self._wake = asyncio.Event()
        self._is_running = False

    def close(self) -> None:
        for agent in list(self.copies):
            self.detach(agent)

    # ---- agents of other nodes -------------------------------------------------------------------------------

    def follow(self, request: requests.Follow) -> dict[str, str]:
        """Keeps a copy of each agent; returns those that this node does not follow, with every reason."""
        activations, refused = self._activations, dict[str, str]()
        for wanted in request.agents:
            agent = wanted.agent
            copy = self.copies.get(agent)
            if copy is not None and not self._offers.is_cordoned():
                copy.asked_at = activations.clock()
                continue
            reasons = self._offers.prepare(wanted).reasons
            if reasons:
                refused[agent] = "; ".join(reasons)
                self.detach(agent)
            else:
                copy = self.copies[agent] = StandbyCopy(activations, agent, self._places)
                activations.home.begin(self._keep(copy))
        return refused

    async def _keep(self, copy: StandbyCopy) -> None:
        await copy.run()
        if self.copies.get(copy.agent) is copy:
            del self.copies[copy.agent]

    def detach(self, agent: str) -> Fold | None:
        """Drops the copy of the agent and hands its fold over, if there is one: nothing writes to it any more."""
        copy = self.copies.pop(agent, None)
        return copy.detach() if copy is not None else None

    def expire(self) -> None:
        """Drops copies that no owner has requested for a long time, and those of agents that run here now."""
        activations = self._activations
        limit_s = ROUNDS_KEPT * activations.settings.reconcile_s
        for agent, copy in list(self.copies.items()):
            if activations.owns(agent) or activations.clock() - copy.asked_at > limit_s:
                self.detach(agent)

    # ---- agents of this node ---------------------------------------------------------------------------------

    def served(self, activation: Activation) -> None:
        """The agent runs here now, or wants another number of copies."""
        if copies_wanted(activation) or activation.fold.agent in self._followers:
            self._wake.set()
            if not self._is_running:
                self._is_running = True
                self._activations.home.begin(self._run())

    def followers_of(self, agent: str) -> list[str]:
        """The nodes that keep a copy of this node's agent, up to the wanted number."""
        activation, sleeper = self._activations.live.get(agent), self._activations.asleep.get(agent)
        wanted = copies_wanted(activation) if activation is not None else sleeper.copies if sleeper is not None else 0
        return self._followers.get(agent, [])[:wanted]

    def _backed(self) -> list[tuple[Planned, int]]:
        """The agents of this node that want copies, and how many."""
        activations = self._activations
        backed = list[tuple[Planned, int]]()
        backed += [(one.fold, copies) for one in activations.live.values() if (copies := copies_wanted(one))]
        backed += [(one, one.copies) for one in activations.asleep.values() if one.copies]
        return backed

    async def _run(self) -> None:
        activations = self._activations
        while not activations.is_stopping:
            self._wake.clear()
            try:
                await self._round()
            except Exception as error:  # whatever the store raises: the nodes that follow go on meanwhile
                logger.info(
                    "node %s: checking standby copies failed; trying again later: %s",
                    activations.name,
                    described(error),
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), activations.settings.reconcile_s)

    async def _round(self) -> None:
        """Asks the followers to continue, and chooses another node for each one that does not."""
        activations = self._activations
        backed = self._backed()
        self._followers = {agent.agent: self.followers_of(agent.agent) for agent, _ in backed}
        asked: dict[str, set[str]] = {agent: set() for agent in self._followers}
        """By agent, the nodes that were asked in this round."""
        spread: Placer | None = None
        while backed:
            batches: dict[str, list[Planned]] = defaultdict(list)
            for one, wanted in backed:
                agent = one.agent
                followers = self._followers[agent]
                for name in followers:
                    if name not in asked[agent]:
                        batches[name].append(one)
                while len(followers) < wanted:
                    if spread is None:
                        spread = Placer(activations.home.log)
                        spread.follow(activations.members.table, None)
                    but = {activations.name, *followers, *asked[agent]}
                    need, places = await spread.look(need_of(one))
                    chosen = spread.choose(but, need, places) if need.is_known else None  # the next round asks again
                    if chosen is None:
                        break
                    followers.append(chosen)
                    batches[chosen].append(one)
            if not batches:
                return
            for name, some in batches.items():
                for one in some:
                    asked[one.agent].add(name)
                await self._ask(name, some)

    async def _ask(self, name: str, backed: list[Planned]) -> None:
        """Asks a node to keep copies, and strikes it off for each agent that it does not follow."""
        for at in range(0, len(backed), BATCH):
            some = backed[at : at + BATCH]
            request = requests.Follow([prepare(one, self._activations.name) for one in some])
            try:
                refused = [*await call(self._activations.home.wire, name, request, ASK_S)]
            except CellError as error:
                logger.info("node %s keeps no copies now: %s", name, error)
                refused = [one.agent for one in some]
            for agent in refused:
                followers = self._followers.get(agent, [])
                if name in followers:
                    followers.remove(name)


def copies_wanted(activation: Activation) -> int:
    """The wanted number of copies: as ordered for the agent, else as its policy says, else as its class says."""
    fold = activation.fold
    if fold.standby is not None:
        return fold.standby
    by_policy = fold.policy.standby
    return activation.spec.cls.__mielin_standby__ if by_policy is None else by_policy
