"""Attributes in the simulator's mix: what accounts set, and the checker of what is written of it (I36)."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import mielin_cells as cells
from mielin_cells.log.attributes.entries import Listing
from mielin_cells.log.attributes.values import Attributes, Value, attributes_of
from mielin_cells.log.lifecycle import Phase
from mielin_cells.testing.checkers.checker import Checker, ListingStep, Step
from mielin_cells.testing.checkers.scene import Scene

WORLDS = 0.5
"""The share of the worlds in which accounts have attributes."""
SEARCHES = 0.3
"""How often a client searches by them, after a change."""
CONDITIONS = ("mood == 1", "mood > 0 and not loud", "loud", "exists(mood)", 'name == "x" or mood < 2')


class Labelled(cells.Agent, name="SimLabelled"):
    """What an account does with attributes."""

    def _heard(self, sender: str, n: int) -> int:
        raise NotImplementedError

    @cells.handler
    async def label(self, sender: str, n: int, loud: str, mood: int) -> int:
        cells.attributes(mood=mood, loud=loud == "True" or None)
        return self._heard(sender, n)


class Change(NamedTuple):
    """A call that sets attributes; `searches`: the condition of a search after it, if there is one."""

    rest_s: float
    agent: str
    mood: int
    loud: bool
    searches: str


def has_attributes(seed: int) -> bool:
    return Random(f"attributes {seed}").random() < WORLDS


def attribute_changes(seed: int, name: str, agents: list[str]) -> list[Change]:
    """What one client has the agents set; nothing in most worlds."""
    if not agents or not has_attributes(seed):
        return []
    rng = Random(f"attributes {seed} {name}")
    return [
        Change(
            rng.choice((0.0, 0.02, 0.2, 2.0)) * rng.random(),
            rng.choice(agents),
            rng.randint(0, 2),
            rng.random() < 0.3,
            rng.choice(CONDITIONS) if rng.random() < SEARCHES else "",
        )
        for _ in range(rng.randint(4, 20))
    ]


class AttributesFollow(Checker):
    """I36: what is written of an agent's attributes is what some record of its log has, and never older than what was written before.

    At rest it is what the agent's log ends with, and a directory that is made anew says the same.
    """

    invariant = "I36"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._committed: dict[str, dict[int, dict[str, Value]]] = {}
        """By agent and number."""
        self._written: dict[str, Listing] = {}

    def record(self, step: Step) -> None:
        now = self._attributes(step.agent)
        if now is None:
            return
        known = self._committed.setdefault(step.agent, {})
        if known.setdefault(now.n, now.values) != now.values:
            self.fails(f"{step.what} gives attributes {now.n} the values {now.values}; they had {known[now.n]}")
        if now.n < max(known):
            self.fails(f"{step.what} goes back to attributes {now.n}; there were {max(known)}")

    def listed(self, step: ListingStep) -> None:
        listing, before = step.listing, self._written.get(step.listing.agent)
        what = f"{step.author.label} wrote attributes {listing.n} of {listing.agent} at {step.seq}"
        if before is not None and listing.n <= before.n:
            self.fails(f"{what}, behind {before.n}")
        if listing.has_ended:
            if self.scene.folds[listing.agent].phase is not Phase.TERMINATED:
                self.fails(f"{what}, as if it had ended")
        elif self._committed.get(listing.agent, {}).get(listing.n) != listing.values:
            self.fails(f"{what}, {listing.values}, which its log does not have")
        self._written[listing.agent] = listing

    def behind(self) -> str:
        """What is not written yet; "" if everything is."""
        for agent, fold in self.scene.folds.items():
            now, written = self._attributes(agent), self._written.get(agent)
            if now is None or fold.phase is Phase.TERMINATED or agent not in self.scene.observed:
                continue
            if written is None or written.n != now.n:
                return (
                    f"{agent} has attributes {now.n}, and {written.n if written is not None else 'none'} were written"
                )
        return ""

    def at_rest(self) -> None:
        if behind := self.behind():
            self.fails(f"at rest {behind}")
        for agent, (n, values) in self.scene.directory.items():
            written = self._written.get(agent)
            if written is None or (written.n, written.values) != (n, values):
                self.fails(f"a directory that was made anew says {n} {values} of {agent}; {written} was written last")
        alive = {agent for agent, written in self._written.items() if not written.has_ended}
        if self.scene.directory and alive - self.scene.directory.keys():
            self.fails(f"a directory that was made anew lacks {sorted(alive - self.scene.directory.keys())}")
        self.scene.counts["attributes written"] += len(self._written)

    def _attributes(self, agent: str) -> Attributes | None:
        return attributes_of(self.scene.folds[agent].state) if agent in self.scene.folds else None
