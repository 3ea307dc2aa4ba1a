"""Hot copies: nodes that follow an agent's log, so that losing its owner costs the detection and one append, and no load.

A copy grants nothing: it is a fold that somebody keeps up to date, and whoever claims the agent with it appends as any other would.
The owner chooses who follows, and asks them again in every round; a copy that is not asked for any more is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from mielin_cells.errors import AgentTerminated, CellError, NoSuchAgent, described
from mielin_cells.log.fold import Fold
from mielin_cells.log.ids import log_subject
from mielin_cells.log.lifecycle import Phase
from mielin_cells.membership import selection
from mielin_cells.rpc import requests
from mielin_cells.rpc.call import call
from mielin_cells.store.reader import load, take
from mielin_cells.substrate.ports import Tail
from mielin_cells.tasks.supervision import Backoff

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activation
    from mielin_cells.node.activation.activations import Activations
    from mielin_cells.node.moves.admission import Copies

logger = logging.getLogger("mielin_cells.standby")

BATCH = 500
"""Agents in one request."""

ROUNDS_KEPT = 12
"""Rounds without a word from the owner before a copy is dropped: longer than any failover."""


class Copy:
    """One agent's log, followed here.  `fold` is None until it was loaded."""

    def __init__(self, activations: Activations, agent: str, closed: Callable[[Copy], None]) -> None:
        self.agent = agent
        self.fold: Fold | None = None
        self.asked_at = activations.clock()
        self._activations = activations
        self._closed = closed
        self._tail: Tail | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def run(self) -> None:
        self._task, backoff = asyncio.current_task(), Backoff()
        while not self._is_closed:
            try:
                await self._follow()
                backoff.reset()
            except (NoSuchAgent, AgentTerminated):
                break
            except Exception as error:  # of the store, or of what its owner will say louder
                logger.info("node %s reads agent %s anew: %s", self._activations.name, self.agent, described(error))
            self.fold = None
            await backoff.wait()
        self.close()

    async def _follow(self) -> None:
        log = self._activations.home.log
        fold = await load(log, self.agent)
        if self._is_closed:
            return
        self._tail = tail = log.tail(log_subject(self.agent), fold.seq)
        self.fold = fold
        try:
            async for batch in tail:
                for entry in batch:
                    await take(log, fold, entry)
                if fold.phase is Phase.TERMINATED:
                    self._is_closed = True
                if self._is_closed:
                    return
        finally:
            tail.close()

    async def detach(self) -> Fold | None:
        """The fold, which nobody folds on any more; None if there is none.  The copy is closed."""
        self.close()
        fold, self.fold = self.fold, None
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))
        return fold

    def close(self) -> None:
        self._is_closed = True
        if self._tail is not None:
            self._tail.close()
        self._closed(self)


class Standbys:
    """Of one node: the copies that it keeps for others, and who keeps those of its own agents."""

    def __init__(self, activations: Activations, moving: Copies) -> None:
        self._activations = activations
        self._moving = moving
        self.copies: dict[str, Copy] = {}
        self._by: dict[str, list[str]] = {}
        """Agents of this node that want copies, with the nodes that keep them."""
        self._wake = asyncio.Event()
        self._is_running = False

    def _closed(self, copy: Copy) -> None:
        if self.copies.get(copy.agent) is copy:
            del self.copies[copy.agent]

    def close(self) -> None:
        for copy in list(self.copies.values()):
            copy.close()

    # ---- of others' agents -----------------------------------------------------------------------------------

    def follow(self, request: requests.Follow) -> dict[str, str]:
        """Keeps a copy of each agent; those that it does not keep, with every reason."""
        activations, refused = self._activations, dict[str, str]()
        for wanted in request.agents:
            agent = wanted.agent
            copy = self.copies.get(agent)
            if copy is not None and not self._moving.is_cordoned():
                copy.asked_at = activations.clock()
                continue
            offer = requests.Prepare(
                agent, "standby", request.owner, wanted.cls, wanted.version, wanted.bytes, wanted.epoch,
                wanted.architectures, is_dry=True,
            )  # fmt: skip
            reasons = self._moving.prepare(offer).reasons
            if reasons:
                refused[agent] = "; ".join(reasons)
                if copy is not None:
                    copy.close()
            else:
                copy = self.copies[agent] = Copy(activations, agent, self._closed)
                activations.home.begin(copy.run())
        return refused

    async def taken(self, agent: str) -> Fold | None:
        """The agent's fold, for whoever is about to claim it; there is no copy any more, and nobody else folds on."""
        copy = self.copies.get(agent)
        return await copy.detach() if copy is not None else None

    def expire(self) -> None:
        """Drops what was not asked for in a long time, or runs here by now."""
        activations = self._activations
        for agent, copy in list(self.copies.items()):
            if (
                agent in activations.live
                or activations.clock() - copy.asked_at > ROUNDS_KEPT * activations.settings.reconcile_s
            ):
                copy.close()

    # ---- of own agents ---------------------------------------------------------------------------------------

    def arrived(self, activation: Activation) -> None:
        """The agent runs here now, or wants another number of copies."""
        if wanted(activation) or activation.fold.agent in self._by:
            self._wake.set()
            if not self._is_running:
                self._is_running = True
                self._activations.home.begin(self._run())

    def of(self, activation: Activation) -> list[str]:
        """The nodes that keep a copy of this node's agent, and are to go on."""
        return self._by.get(activation.fold.agent, [])[: wanted(activation)]

    async def _run(self) -> None:
        activations = self._activations
        while not activations.is_stopping:
            self._wake.clear()
            try:
                await self._round()
            except Exception as error:  # whatever the store raises: who follows goes on meanwhile
                logger.info("node %s looks after its standbys later: %s", activations.name, described(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), activations.settings.reconcile_s)

    async def _round(self) -> None:
        """Who follows is asked to go on; for each that does not, another is chosen."""
        activations = self._activations
        backed = [activation for activation in activations.live.values() if wanted(activation)]
        self._by = {
            activation.fold.agent: self._by.get(activation.fold.agent, [])[: wanted(activation)]
            for activation in backed
        }
        if not backed:
            return
        asked: dict[str, set[str]] = {agent: set() for agent in self._by}
        """By agent, the nodes that were asked in this round."""
        spread: selection.Spread | None = None
        while True:
            batches: dict[str, list[Activation]] = defaultdict(list)
            for activation in backed:
                agent = activation.fold.agent
                for name in self._by[agent]:
                    if name not in asked[agent]:
                        batches[name].append(activation)
                while len(self._by[agent]) < wanted(activation):
                    spread = spread or selection.Spread(
                        await selection.alive(activations.home.log, activations.home.wire)
                    )
                    but = {activations.name, *self._by[agent], *asked[agent]}
                    chosen = spread.choose(but, activation.fold.cls, activation.fold.policy.preferred_architectures)
                    if chosen is None:
                        break
                    self._by[agent].append(chosen)
                    batches[chosen].append(activation)
            if not batches:
                return
            for name, some in batches.items():
                for activation in some:
                    asked[activation.fold.agent].add(name)
                await self._ask(name, some)

    async def _ask(self, name: str, backed: list[Activation]) -> None:
        for at in range(0, len(backed), BATCH):
            some = backed[at : at + BATCH]
            request = requests.Follow(self._activations.name, [_wanted_of(activation) for activation in some])
            refused: Iterable[str]
            try:
                refused = await call(self._activations.home.wire, name, request, selection.PING_S)
            except CellError as error:
                logger.info("node %s keeps no copies now: %s", name, error)
                refused = [activation.fold.agent for activation in some]
            for agent in refused:
                if name in self._by.get(agent, ()):
                    self._by[agent].remove(name)


def wanted(activation: Activation) -> int:
    """How many nodes are to keep a copy of the agent: as was ordered for it, or else as its class says."""
    fold = activation.fold
    return activation.spec.cls.__mielin_standby__ if fold.standby is None else fold.standby


def _wanted_of(activation: Activation) -> requests.FollowOffer:
    fold = activation.fold
    return requests.FollowOffer(
        fold.agent, fold.cls, fold.version, fold.size_bytes, fold.epoch, list(fold.policy.preferred_architectures)
    )
