"""What a node says of itself: what its machine was measured to be, and what waits for its agents.

Its heartbeats carry facts only while the table of members says something noticeably different, so a deployment at rest sends and
stores none.  A heartbeat that is lost, or a leader that is, costs the time until the next one.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from msgspec.structs import replace

from mielin_cells.membership.members import NOBODY, AnyRecord, Loads, Status, Table
from mielin_cells.policy.facts import UNKNOWN, Facts, packed, tidied
from mielin_cells.policy.noticeable import Change, change_of

if TYPE_CHECKING:
    from mielin_cells.node.activation.activation import Activations

TRIPS = 5
"""Round trips to the store of which the median is told."""

SLICE = 500
"""Agents that are looked at before others run."""

SHARE = 1000
"""A look at the agents takes at most about one part in so many of this node's time."""


class Waiting:
    """How many messages wait in the inboxes of a node's agents, and for how long the oldest has."""

    def __init__(self, activations: Activations) -> None:
        self._activations = activations
        self._marks: dict[str, tuple[int, float]] = {}
        """By agent with messages that wait: how many had come by when."""
        self.weights: dict[str, int] = {}
        """By agent, the messages that it took between the last two looks; those that took none are not there."""
        self._taken: dict[str, int] = {}
        """By agent in memory: messages that it had taken when it was looked at."""
        self._looked_at: float | None = None
        self.messages: int | None = None
        self.oldest_s: float | None = None
        self.taken_s: float | None = None
        """Messages taken in a second, between the last two looks."""

    async def look(self, now: float) -> None:
        """Looks at all agents in memory, some at a time; of those that have left memory nothing waits."""
        live, marks, messages, oldest_s = self._activations.live, dict[str, tuple[int, float]](), 0, 0.0
        taken, weights = dict[str, int](), dict[str, int]()
        agents = iter(list(live))
        while some := list(islice(agents, SLICE)):
            for agent in some:
                activation = live.get(agent)
                come = activation.inbox.arrived_in_all if activation is not None else 0
                waits = activation.inbox.waiting_in_all if activation is not None else 0
                if come:
                    taken[agent] = max(0, come - waits)
                    if (more := taken[agent] - self._taken.get(agent, 0)) > 0:
                        weights[agent] = more
                if not waits:
                    continue
                messages += waits
                mark = self._marks.get(agent)
                if mark is None or not come - waits < mark[0] <= come:  # all that had come by then were taken
                    mark = come, now
                marks[agent] = mark
                oldest_s = max(oldest_s, now - mark[1])
            await asyncio.sleep(0)
        self._marks, self.messages, self.oldest_s = marks, messages, round(oldest_s, 1)
        if self._looked_at is not None and now > self._looked_at:
            self.taken_s = round(sum(weights.values()) / (now - self._looked_at), 1)
        self._taken, self.weights, self._looked_at = taken, weights, now


class OwnFacts:
    """Of one node.  `current` and `news` may be called from any thread."""

    def __init__(
        self, activations: Activations, measure: Callable[[], Facts], coming: Callable[[], int] = lambda: 0
    ) -> None:
        """`measure` gives what was measured last, at once, on any thread; `coming`, how many agents are being moved here."""
        self._activations = activations
        self._measure = measure
        self._coming = coming
        self._waiting = Waiting(activations)
        self._trips = deque[float](maxlen=TRIPS)
        self._look_at = 0.0

    def note_trip(self, seconds: float) -> None:
        """A short request to the store has taken so long."""
        self._trips.append(seconds)

    def current(self) -> Facts:
        waiting, trips, machine = self._waiting, list(self._trips), self._measure()
        own: dict[str, float | int | None] = {
            "waiting": waiting.messages, "oldest_s": waiting.oldest_s, "messages_s": waiting.taken_s,
            "store_ms": round(statistics.median(trips) * 1000, 2) if trips else None, "slots": self._slots(),
        }  # fmt: skip
        # A sensor of that name goes before what the node counts itself, also one that fails.
        known = {*machine.known(), *machine.failing}
        return tidied(
            replace(
                machine,
                agents=self._activations.count,
                **{name: value for name, value in own.items() if name not in known},
            )
        )

    def _slots(self) -> int | None:
        """Agents that it takes until it has `agents_max`; those on their way here count."""
        most = self._activations.settings.agents_max
        return max(0, most - self._activations.count - self._coming()) if most else None

    def weights(self) -> dict[str, int]:
        """By agent, the messages that it took lately; those that took none are not there."""
        return self._waiting.weights

    def news(self) -> bytes:
        """The facts for a heartbeat, if the table of members says something noticeably different of this incarnation; else empty."""
        home, facts = self._activations.home, self.current()
        me = self._activations.members.table.get(home.name)
        if me is None or me.incarnation != home.incarnation or me.status is Status.LEFT:
            return b""
        return packed(facts) if change_of(me.facts, facts) is not Change.NONE else b""

    async def tell(self) -> None:
        """Notes them in the log of members itself: where no node hears heartbeats, no other node does.

        Raises a `RetryError` while the store does not answer.
        """
        home, facts = self._activations.home, self.current()

        def decide(table: Table) -> AnyRecord | None:
            me = table.get(home.name)
            is_there = me is not None and table.is_current(home.name, home.incarnation) and table.leader == NOBODY
            if me is None or not is_there or change_of(me.facts, facts) is Change.NONE:
                return None
            return Loads(home.name, home.incarnation, 0, {}, {home.name: facts})

        await self._activations.members.append(decide)

    async def look(self) -> None:
        """Looks at the agents, unless that would take too much of this node's time.  Called now and then."""
        began = self._activations.clock()
        if began >= self._look_at:
            await self._waiting.look(began)
            self._look_at = began + SHARE * (self._activations.clock() - began)


def nothing() -> Facts:
    """Of a machine that nobody measures."""
    return UNKNOWN
