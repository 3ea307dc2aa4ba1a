"""A deploy as a machine: `on(event)` gives the machine after it, and what is to be done now.  Pure.

Events are records (`events`), so every process that reads them has the same machine; the one that drives it does what is due, and
appends what came of it.  What is due may be begun again by another driver, so each effect can be repeated.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from mielin_cells.policy.deploys.events import (
    AnyEvent,
    Began,
    Drives,
    Failed,
    Moved,
    Opened,
    Passed,
    Retired,
    Served,
    Stopped,
    TakenBack,
    Wished,
)


class Phase(enum.Enum):
    STARTING = "starting"
    """New nodes start beside the old ones, and take no agents but those that are moved to them by name."""
    MOVING = "moving"
    """The agents of a stage move."""
    WATCHING = "watching"
    """The agents of a stage are watched."""
    OPENING = "opening"
    """The first stage has passed: new agents are placed on new nodes from now on."""
    RETIRING = "retiring"
    """All agents have moved; the old nodes are stopped."""
    DONE = "done"
    TAKING_BACK = "taking back"
    """An undo: agents move to old nodes."""
    STOPPING = "stopping"
    """An undo: new nodes are stopped."""
    UNDONE = "undone"
    PARTLY_UNDONE = "partly undone"
    """Some agents cannot go back, and new nodes stay for them."""


OVER = frozenset({Phase.DONE, Phase.UNDONE, Phase.PARTLY_UNDONE})
UNDOING = frozenset({Phase.TAKING_BACK, Phase.STOPPING})


# ---- effects -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AwaitNodes:
    """Wait until every new node serves."""


@dataclass(frozen=True, slots=True)
class MoveAgents:
    """Move agents to new nodes until so many percent are there, or, `where` given, those that meet the condition."""

    stage: int
    percent: int
    where: str = ""


@dataclass(frozen=True, slots=True)
class WatchHealth:
    """Compare the agents on new nodes with those on old ones for so long."""

    stage: int
    seconds: float


@dataclass(frozen=True, slots=True)
class OpenNodes:
    """Let new nodes take agents, and old ones no more."""


@dataclass(frozen=True, slots=True)
class RetireNodes:
    """Wait until the old nodes have gone, or have no agents."""


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Let old nodes take agents, and new ones no more; move every agent of a new node to an old one."""


@dataclass(frozen=True, slots=True)
class StopNodes:
    """Wait until the new nodes have gone."""


Effect: TypeAlias = AwaitNodes | MoveAgents | WatchHealth | OpenNodes | RetireNodes | TakeBack | StopNodes


# ---- the machine ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deploy:
    """One deploy, as of the last event."""

    began: Began
    phase: Phase = Phase.STARTING
    stage: int = 0
    is_paused: bool = False
    driver: str = ""
    """The process that carries out what is due."""
    driven_by: str = ""
    why: str = ""
    """Why it is paused or undone."""
    moved: int = 0
    """Agents that have moved to new nodes."""
    back: TakenBack | None = field(default=None)
    at: float = 0.0

    @classmethod
    def begin(cls, event: Began) -> tuple[Deploy, tuple[Effect, ...]]:
        made = cls(event, at=event.at)
        return made, made.due

    @property
    def name(self) -> str:
        return self.began.deploy

    @property
    def is_over(self) -> bool:
        return self.phase in OVER

    def refusal(self, event: AnyEvent) -> str:
        """Why the event cannot be the next one; "" if it can."""
        if isinstance(event, Began):
            return "" if self.is_over else f"deploy {self.name} is {self.phase.value}; end it first"
        if event.deploy != self.name:
            return f"{event.deploy} is not the deploy that goes on, which is {self.name}"
        if self.is_over:
            return f"deploy {self.name} is {self.phase.value}"
        stage = event.stage if isinstance(event, (Moved, Passed)) else self.stage
        if self.phase not in _WHEN.get(type(event), frozenset(Phase)) or stage != self.stage:
            return f"deploy {self.name} is {self.phase.value}, and {type(event).__name__} cannot follow"
        if isinstance(event, Wished):
            return self._refused_wish(event)
        return ""

    def _refused_wish(self, event: Wished) -> str:
        if event.wish == "pause" and self.is_paused:
            return f"deploy {self.name} is paused already"
        if event.wish == "resume" and not self.is_paused:
            return f"deploy {self.name} is not paused"
        if event.wish == "undo" and self.phase in UNDOING and not self.is_paused:
            return f"deploy {self.name} is being undone already"
        return ""

    def on(self, event: AnyEvent) -> tuple[Deploy, tuple[Effect, ...]]:
        """An event that cannot follow changes nothing: its writer had not seen what came before."""
        if self.refusal(event):
            return self, self.due
        if isinstance(event, Began):
            return Deploy.begin(event)
        after = self._after(event)
        return after, after.due

    def _after(self, event: AnyEvent) -> Deploy:
        match event:
            case Drives():
                return replace(self, driver=event.driver, driven_by=event.by)
            case Served():
                return replace(self, phase=Phase.MOVING)
            case Moved():
                return replace(self, phase=Phase.WATCHING, moved=self.moved + event.agents)
            case Passed():
                return self._passed()
            case Opened():
                return replace(self, phase=Phase.MOVING, stage=self.stage + 1)
            case Retired():
                return replace(self, phase=Phase.DONE, at=event.at)
            case Failed():
                is_undone = self.began.undoes and self.phase not in UNDOING
                phase = Phase.TAKING_BACK if is_undone else self.phase
                return replace(self, phase=phase, is_paused=not is_undone, why=event.why)
            case Wished(wish="undo"):
                phase = self.phase if self.phase in UNDOING else Phase.TAKING_BACK
                return replace(self, phase=phase, is_paused=False, why=event.why or self.why)
            case Wished(wish=wish):
                return replace(self, is_paused=wish == "pause", why=event.why if wish == "pause" else "")
            case TakenBack():
                phase = Phase.PARTLY_UNDONE if event.stay else Phase.STOPPING
                return replace(self, phase=phase, back=event, at=event.at)
            case Stopped():
                return replace(self, phase=Phase.UNDONE, at=event.at)
            case _:
                return self

    def _passed(self) -> Deploy:
        if self.stage + 1 >= len(self.began.stages):
            return replace(self, phase=Phase.RETIRING)
        if self.stage == 0:
            return replace(self, phase=Phase.OPENING)
        return replace(self, phase=Phase.MOVING, stage=self.stage + 1)

    @property
    def due(self) -> tuple[Effect, ...]:
        """What is to be done now, by whoever drives."""
        began = self.began
        if self.is_paused or self.is_over:
            return ()
        match self.phase:
            case Phase.STARTING:
                return (AwaitNodes(),)
            case Phase.MOVING:
                return (MoveAgents(self.stage, began.stages[self.stage], began.where if self.stage == 0 else ""),)
            case Phase.WATCHING:
                return (WatchHealth(self.stage, began.watch_s),)
            case Phase.OPENING:
                return (OpenNodes(),)
            case Phase.RETIRING:
                return (RetireNodes(),)
            case Phase.TAKING_BACK:
                return (TakeBack(),)
            case _:
                return (StopNodes(),)

    @property
    def nodes(self) -> tuple[list[str], list[str]]:
        """The old and the new nodes that are to run now: what whoever starts processes goes by."""
        old, new = self.began.old, self.began.new
        if self.phase in (Phase.RETIRING, Phase.DONE):
            return [], new
        if self.phase in (Phase.STOPPING, Phase.UNDONE):
            return old, []
        return old, new


_WHEN: dict[type[AnyEvent], frozenset[Phase]] = {
    Served: frozenset({Phase.STARTING}),
    Moved: frozenset({Phase.MOVING}),
    Passed: frozenset({Phase.WATCHING}),
    Opened: frozenset({Phase.OPENING}),
    Retired: frozenset({Phase.RETIRING}),
    TakenBack: frozenset({Phase.TAKING_BACK}),
    Stopped: frozenset({Phase.STOPPING}),
}
"""In which phases an event can come; others can always."""


def fold(events: list[AnyEvent]) -> Deploy | None:
    """The newest deploy; None if there was none."""
    deploy: Deploy | None = None
    for event in events:
        if deploy is not None:
            deploy, _ = deploy.on(event)
        elif isinstance(event, Began):
            deploy, _ = Deploy.begin(event)
    return deploy
