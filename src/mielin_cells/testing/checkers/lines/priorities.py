"""Priorities in the simulator's mix: what accounts send to each other with them, and the checker of what comes (I32)."""

from __future__ import annotations

import contextlib
from random import Random
from typing import NamedTuple

import mielin_cells as cells
from mielin_cells.log.inboxes.lines import NORMAL, Priority, priority_of
from mielin_cells.log.records import Committed
from mielin_cells.testing.checkers.checker import Checker, Letter, Step
from mielin_cells.testing.checkers.lines.cancels import Lingering
from mielin_cells.testing.checkers.scene import Scene

LEVELS: tuple[Priority, ...] = ("low", "normal", "high", "critical")
WORLDS = 0.35
"""The share of the worlds in which messages have priorities."""
URGE_S = 4.0
"""An account's patience with an ask of this kind."""


class Urgent(Lingering, name="SimUrgent"):
    """What an account does with priorities."""

    urged: dict[str, int] = {}  # noqa: RUF012 - a mutable default is copied for each agent
    urgent: dict[str, list[int]] = {}  # noqa: RUF012

    @cells.handler(tries=20)
    async def urge(self, sender: str, n: int, to: str, priority: Priority, asks: bool) -> int:
        """Sends the next number of its count to `to` at this priority."""
        place, key = self._heard(sender, n), f"{to} {priority}"
        number = self.urged[key] = self.urged.get(key, 0) + 1
        bound = cells.this().cluster.get(type(self), to).take_urgent.options(priority=priority, timeout=URGE_S)
        if asks:
            with contextlib.suppress(cells.AskTimeout):
                await bound(f"{cells.this().id} {priority}", number)
        else:
            await bound.tell(f"{cells.this().id} {priority}", number)
        return place

    @cells.handler
    async def take_urgent(self, line: str, number: int) -> None:
        self.urgent.setdefault(line, []).append(number)

    @cells.handler
    async def urgencies(self) -> tuple[dict[str, int], dict[str, list[int]], list[str]]:
        return self.urged, self.urgent, self.wronged


class Urge(NamedTuple):
    """A call with a priority."""

    rest_s: float
    agent: str
    kind: str
    to: str
    asks: bool
    priority: Priority
    inner: Priority
    """That of the message that the call has the agent send."""
    patience_s: float
    """After which its caller gives it up; 0: never."""


def urges(seed: int, name: str, agents: list[str]) -> list[Urge]:
    """What one client calls with priorities; nothing in most worlds."""
    if len(agents) < 2 or Random(f"priorities {seed}").random() > WORLDS:
        return []
    rng, made = Random(f"priorities {seed} {name}"), list[Urge]()
    for _ in range(rng.randint(6, 24)):
        agent, to = rng.sample(agents, 2)
        rest_s = rng.choice((0.0, 0.0, 0.02, 0.3, 1.5)) * rng.random()
        kind = rng.choice(("note", "urge", "urge", "dawdle"))
        gives_up = kind == "dawdle" or (kind == "note" and rng.random() < 0.4)
        patience_s = rng.choice((0.02, 0.3, 1.0, 3.0)) if gives_up else 0.0
        priority, inner = rng.choice(LEVELS), rng.choice(LEVELS)
        made.append(Urge(rest_s, agent, kind, to, rng.random() < 0.4, priority, inner, patience_s))
    return made


class PrioritiesInOrder(Checker):
    """I32: what one agent sends to another at one priority arrives, once and in order, whatever its other messages do.

    Before its first mail of a priority is in an inbox, its sender has opened that inbox: an owner would not read it otherwise.
    """

    invariant = "I32"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._opened: set[tuple[str, str]] = set()
        self._differing = set[str]()
        """Agents that made other calls after an undo than before: what they had sent stands for these."""

    def record(self, step: Step) -> None:
        replayed = step.record.commit.replayed if isinstance(step.record, Committed) else None
        if replayed is not None and replayed.differing:
            self._differing.add(step.agent)

    def mail(self, letter: Letter) -> None:
        mail = letter.mail
        if not mail.messages:
            self._opened.add((mail.to, mail.sender))
        elif priority_of(mail.sender) != NORMAL and (mail.to, mail.sender) not in self._opened:
            self.fails(
                f"{letter.author.label} sent mail of {mail.sender!r} to {mail.to}, and has not opened that inbox"
            )

    def behind(self) -> bool:
        """True while something that was sent has not arrived."""
        observed = self.scene.observed
        return any(
            len(observed[to].urgent.get(f"{agent} {priority}", [])) < count
            for agent, state in observed.items()
            if agent not in self._differing
            for (to, _, priority), count in ((key.partition(" "), count) for key, count in state.urged.items())
            if to in observed
        )

    def at_rest(self) -> None:
        observed = self.scene.observed
        for agent, state in observed.items():
            for key, count in state.urged.items():
                to, _, priority = key.partition(" ")
                came = observed[to].urgent.get(f"{agent} {priority}", []) if to in observed else [*range(1, count + 1)]
                if came != (sorted(came) if agent in self._differing else [*range(1, count + 1)]):
                    self.fails(f"{agent} has sent {count} messages to {to} with priority {priority}; there came {came}")
