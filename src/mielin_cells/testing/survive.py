"""Your own agents in the simulated world: `Survival.run` plays a story of yours under faults that seeds draw, and checks it.

With pytest it is the fixture `mielin_world` (`testing.plugin`); `docs/testing.md` has an example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, TypeAlias, TypeVar

from mielin_cells.agents.agent import Agent
from mielin_cells.client.client import Client
from mielin_cells.errors import AlreadyThere, ConfigError, MigrationInProgress, RetryError, UnknownNode
from mielin_cells.testing.simulator.deployment import Deployment
from mielin_cells.testing.simulator.scenario import Scenario, play
from mielin_cells.testing.simulator.story import STEPS_MAX
from mielin_cells.testing.simulator.swarm import ASKER, HARMS, REFUSED, Swarm, drawn
from mielin_cells.testing.simulator.workload import Workload

A = TypeVar("A", bound=Agent)

ASK_S = 60.0
"""Timeout of a call in virtual seconds, longer than most faults last."""

HAPPENS = frozenset({"move", "stop", *HARMS}) - {"clock step"}
"""The interference while a story runs.  Clocks are right, so that timers fire when they are due."""


class Play:
    """One seed's world, as a story sees it."""

    def __init__(self, scenario: Deployment, client: Client) -> None:
        self.seed = scenario.swarm.seed
        self.nodes = scenario.swarm.nodes
        self.cluster = client
        """A client in a process of its own, which nothing kills."""
        self.acknowledged = 0
        """Calls by `call` that have taken effect."""
        self.unknown = 0
        """Calls with an unknown outcome: they may have taken effect, may do so later, or never."""
        self.agents: list[str] = []
        """Those that `spawn` has made; the world moves them about."""
        self._scenario = scenario

    async def spawn(self, cls: type[A], id: str) -> A:
        """Spawns an agent of the class, or returns the one of this id; tries until it exists."""
        await self._scenario.until_done(lambda: self._scenario.operator.spawn(cls, id))
        if id not in self.agents:
            self.agents.append(id)
        return self.cluster.get(cls, id)

    async def call(self, handler: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """The answer; None if it is not known whether the call has taken effect (`unknown` counts it)."""
        try:
            answer = await handler(*args, **kwargs)
        except RetryError:
            self.unknown += 1
            return None
        self.acknowledged += 1
        return answer

    async def surely(self, handler: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """The answer, asked for until there is one: for calls that may take effect more than once, as reads."""
        while True:
            try:
                return await handler(*args, **kwargs)
            except RetryError:
                self._scenario.scene.counts["asked again"] += 1

    async def migrate(self, agent: Agent, to: str | None = None) -> str:
        """Moves the agent; "completed", "rolled_back", "gave_up", or "" if the move was not begun or its end is not known."""
        try:
            return (await self.cluster.migrate(agent, to=to)).outcome
        except (RetryError, AlreadyThere, MigrationInProgress):
            return ""
        except UnknownNode:
            if to is not None:
                raise
            return ""  # no other node answers now


Story: TypeAlias = Callable[[Play], Awaitable[None]]


class _UserStory(Workload):
    """A story of the user's."""

    def __init__(self, story: Story, invariant: Story | None) -> None:
        self._story = story
        self._invariant = invariant
        self.play: Play
        self._run: Callable[[Coroutine[Any, Any, None]], Awaitable[None]]

    def agent(self, name: str) -> str:
        agents = self.play.agents
        return agents[int(name[1:]) % len(agents)] if agents else name

    async def begin(self, scenario: Deployment) -> None:
        view, client = await scenario.client("client-story")
        self.play, self._run = Play(scenario, client), view.process.run

    def lives(self, scenario: Deployment) -> list[Coroutine[Any, Any, None]]:
        return [self._run_story(scenario, self._story, "the story")]

    async def _run_story(self, scenario: Deployment, story: Story, what: str) -> None:
        async def body() -> None:
            await story(self.play)

        try:
            await self._run(body())
        except Exception as error:  # noqa: BLE001 - whatever a user's story raises is its finding
            scenario.violate(f"{what}: {type(error).__name__}: {error}")

    async def has_arrived(self, scenario: Deployment) -> bool:
        if self._invariant is not None:
            await self._run_story(scenario, self._invariant, "the invariant")
        return True


class Broken(AssertionError):
    """A story that did not come out as it must."""


class Survival:
    """Plays stories.  What the last `run` came to is in `counts`: faults, moves, failovers, by kind.

    >>> from mielin_cells.testing.survive import Play, Survival
    >>> async def a_day(world: Play) -> None:
    ...     shop = await world.spawn(Till, "shop")
    ...     for _ in range(5):
    ...         await world.call(shop.sell, 100)
    ...     await world.migrate(shop)
    ...
    >>> async def books_are_right(world: Play) -> None:
    ...     total = await world.surely(world.cluster.get(Till, "shop").sell, 0)
    ...     assert 100 * world.acknowledged <= total <= 100 * (world.acknowledged + world.unknown)
    ...
    >>> Survival().run(a_day, seeds=3, invariant=books_are_right)
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def run(self, story: Story, *, seeds: int | Iterable[int] = 20, invariant: Story | None = None) -> None:
        """Plays the story once for each seed (1 to N, or those given).  Raises `Broken`, naming the first seed that breaks a rule.

        Each seed draws 2 to 5 nodes and what goes wrong while the story runs and its agents are moved: crashes, pauses, partitions,
        a store that is slow, away, or does not answer.  Then the world heals, but for a minority of nodes that may stay dead.

        The rules: at each record of an agent's log, one owner, who writes; each message takes effect once, each output arrives once,
        what was acknowledged stays; each migration has one end, which its report names; everything comes to rest.  And
        `invariant`, called when everything is at rest, must not raise.  Not for async tests: it runs a loop of its own.
        """
        if isinstance(seeds, int) and seeds < 1:
            raise ConfigError(f"seeds = {seeds} plays nothing; 1 is the least.", field="seeds", range="1 and more")
        self.counts = Counter()
        for seed in range(1, seeds + 1) if isinstance(seeds, int) else seeds:
            scenario = play(partial(_make, seed, story, invariant), seed=seed, steps_max=STEPS_MAX)
            self.counts.update(scenario.world.counts)
            self.counts.update(scenario.scene.counts)
            if scenario.violations:
                trace = "\n".join(scenario.world.trace[-20:])
                raise Broken(f"seed {seed}: {scenario.violations[0]}\nreplay: seeds=[{seed}]; it ended so:\n{trace}")


def _make(seed: int, story: Story, invariant: Story | None) -> Scenario:
    return Scenario(swarm_of(seed), _UserStory(story, invariant))


def swarm_of(seed: int) -> Swarm:
    """What the seed draws for a user's story: nobody but the nemesis interferes, and nothing is forgotten by contract."""
    swarm = drawn(seed)
    soon = Random(f"survival {seed}").choice((0.05, 0.3, 1.0))
    swarm.lives = []
    swarm.odd = swarm.crowd = swarm.old = ()
    swarm.faults = swarm.faults.without("read_torn", "look_torn", "refused")
    swarm.dead = {name: "crash" if how == REFUSED else how for name, how in swarm.dead.items()}
    swarm.ops = [op._replace(at=op.at * soon) for op in swarm.ops if op.what in HAPPENS and op.who != ASKER]
    swarm.settings = replace(swarm.settings, ask_timeout_s=ASK_S)
    return swarm
