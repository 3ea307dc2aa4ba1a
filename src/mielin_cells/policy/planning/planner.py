"""What the leader does about wishes and plans: a machine `on(event) -> (machine, effects)`.

The log of the members is the truth: a plan is open if the log says so, and a leader that has just begun knows nothing else.  It begins
each move of the open plans, as its predecessor may have done: a move has its id from the plan, so beginning it twice is beginning it
once.  All times are the store's.  The machine holds many wishes and is changed in place: `on` returns it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from blake3 import blake3

from mielin_cells.policy.evaluation.wishes import Wish
from mielin_cells.policy.placement.values import Need
from mielin_cells.policy.placement.values import Places as Whereabouts
from mielin_cells.policy.planning.choice import Choice, Node, choose, need_of
from mielin_cells.policy.planning.plan import POLICY, Limits, Places, Plan, PlannedMove, Plans, Recent, why_rests
from mielin_cells.policy.triggers.conditions import CRITICAL

PLAN_S = 120.0
"""A plan that is older is ended, whatever its moves do: those that run go on as what they are, ordinary migrations."""

WISH_S = 5.0
"""A node's wishes count for so long, unless it repeats them."""

REFUSED_S = 60.0
"""A target that has not taken an agent is not chosen for that agent again within this time."""

IMMOVABLE = "its policy says that it is immovable"

# ---- events --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wished:
    """A node's wishes, instead of those that it had.  `run` is `POLICY`, or the rebalancing that they belong to."""

    now: float
    node: str
    wishes: tuple[Wish, ...]
    run: str = POLICY


@dataclass(frozen=True, slots=True)
class Looked:
    """What the log of the members says now."""

    now: float
    term: int
    seq: int
    nodes: Mapping[str, Node]
    plans: Plans
    places: Whereabouts = field(default_factory=dict)
    """Where the agents are that policies of wished agents look at."""
    needs: Mapping[str, Need] | None = None
    """By wished agent: its policy as entries of `mielin.toml` change it, and its attributes.  An agent that is not among them was
    wished since they were read, and waits.  None: what wishes say is all that counts."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A move has ended; `outcome` is that of the migration, or "not begun".  While nobody knows its end, there is no such event."""

    now: float
    move: PlannedMove
    outcome: str
    why: str = ""


Event: TypeAlias = Wished | Looked | Ended

# ---- effects -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """Append the plan to the log of the members; its moves begin once it is there."""

    run: str
    at: float
    until: float
    moves: tuple[PlannedMove, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    plan: Plan
    move: PlannedMove


@dataclass(frozen=True, slots=True)
class Cancel:
    """An operator has stopped the plan: cancel the move, unless it has handed over."""

    move: PlannedMove


@dataclass(frozen=True, slots=True)
class Close:
    """Append that the plan has ended."""

    plan: Plan
    moved: int
    failed: tuple[str, ...]
    """Of each move that did not complete: the agent, and why."""
    dropped: int
    """Moves whose end is not known: nobody waits for them any more."""


Effect: TypeAlias = Record | Begin | Cancel | Close

# ---- the machine ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Planner:
    """Of one term of one leader."""

    limits: Limits = field(default_factory=Limits)
    waits: dict[str, str] = field(default_factory=dict)
    """By agent, why a wish is not granted yet."""
    _wishes: dict[tuple[str, str], tuple[float, tuple[Wish, ...]]] = field(default_factory=dict)
    """By run and node, with their time."""
    _begun: set[str] = field(default_factory=set)
    _cancelled: set[str] = field(default_factory=set)
    _ended: dict[str, Ended] = field(default_factory=dict)
    """By migration, as long as its plan is open."""
    _refused: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)
    """By agent and target: until when, and why."""

    def on(self, event: Event) -> tuple[Planner, tuple[Effect, ...]]:
        match event:
            case Wished():
                self._wishes.pop((event.run, event.node), None)
                if event.wishes:
                    self._wishes[event.run, event.node] = event.now, event.wishes
            case Ended(move=move):
                self._ended[move.migration] = event
                if event.outcome != "completed":
                    self._refused[move.agent, move.target] = event.now + REFUSED_S, event.why or event.outcome
            case Looked():
                return self, self._look(event)
        return self, ()

    def wished(self) -> list[Wish]:
        """All that nodes wish."""
        return [wish for _, some in self._wishes.values() for wish in some]

    @property
    def is_idle(self) -> bool:
        """Nothing is wished, and nothing runs."""
        return not self._wishes and not self._begun

    # ---- one look --------------------------------------------------------------------------------------------

    def _look(self, look: Looked) -> tuple[Effect, ...]:
        effects = list[Effect]()
        known = {move.migration for move in look.plans}
        self._begun &= known
        self._cancelled &= known
        self._ended = {name: ended for name, ended in self._ended.items() if name in known}
        closing = list[Close]()
        for plan in look.plans.open.values():
            close = self._close(plan, look.now)
            if close is not None:
                closing.append(close)
            effects += self._steer(plan, is_closing=close is not None)
        if closing:
            return (*effects, *closing)  # what follows is decided on the log that says so
        record = self._plan(look)
        return (*effects, record) if record is not None else tuple(effects)

    def _steer(self, plan: Plan, *, is_closing: bool) -> list[Effect]:
        """Begins the moves of a plan, or cancels those of one that was stopped, which its last leader may have begun."""
        effects = list[Effect]()
        for move in plan.moves:
            if plan.is_stopped:
                if move.migration not in self._cancelled | self._ended.keys():
                    self._cancelled.add(move.migration)
                    effects.append(Cancel(move))
            elif not is_closing and move.migration not in self._begun:
                self._begun.add(move.migration)
                effects.append(Begin(plan, move))
        return effects

    def _close(self, plan: Plan, now: float) -> Close | None:
        open_ = [move for move in plan.moves if self._is_open(plan, move)]
        if open_ and now < plan.until:
            return None
        ends = [self._ended[move.migration] for move in plan.moves if move.migration in self._ended]
        failed = tuple(f"{end.move.agent}: {end.why or end.outcome}" for end in ends if end.outcome != "completed")
        moved = sum(end.outcome == "completed" for end in ends)
        return Close(plan, moved, failed, len(plan.moves) - len(ends))

    def _is_open(self, plan: Plan, move: PlannedMove) -> bool:
        """A move of a stopped plan that this leader has not begun is not waited for."""
        return move.migration not in self._ended and (not plan.is_stopped or move.migration in self._begun)

    # ---- a new plan ------------------------------------------------------------------------------------------

    def _plan(self, look: Looked) -> Record | None:
        """As many wishes as there are places for in one plan, the most urgent first; those of one run in one record."""
        self._wishes = {key: one for key, one in self._wishes.items() if look.now - one[0] < WISH_S}
        self._refused = {key: one for key, one in self._refused.items() if one[0] > look.now}
        self.waits = {}
        moving = {move.agent for move in look.plans}
        wishes = sorted(
            (
                (run, node, wish)
                for (run, node), (_, some) in self._wishes.items() if run not in look.plans.stopped
                for wish in some if wish.agent not in moving and (look.needs is None or wish.agent in look.needs)
            ),
            key=lambda one: -one[2].priority,
        )  # fmt: skip
        if not wishes:
            return None
        recent, names = defaultdict[str, list[Recent]](list), {wish.agent for _, _, wish in wishes}
        for one in look.plans.recent:
            if one.agent in names:
                recent[one.agent].append(one)
        places, coming = Places(self.limits, look.plans), Counter(move.target for move in look.plans)
        chosen, first = list[PlannedMove](), ""
        full = set[tuple[str, bool]]()
        for run, node, wish in wishes:
            if len(chosen) >= self.limits.of_plan:
                break
            critical = wish.priority >= CRITICAL
            if (
                (first and run != first)
                or wish.agent in moving
                or not full.isdisjoint(((node, critical), ("", critical)))
            ):
                continue
            for place in ("", node):
                if why := places.why_full(place, "", is_critical=critical):
                    full.add((place, critical))
                    self.waits[wish.agent] = why
            if not full.isdisjoint(((node, critical), ("", critical))):
                continue
            target, why = self._place(look, node, wish, recent[wish.agent], places, coming)
            if not target:
                self.waits[wish.agent] = why
                continue
            first, said = run, f"{wish.why}; {why}" if why else wish.why
            move = PlannedMove(wish.agent, _name(look, wish.agent), wish.epoch, node, target, wish.priority, said)
            moving.add(wish.agent)
            places.take(move)
            coming[target] += 1
            chosen.append(move)
        return Record(first, look.now, look.now + PLAN_S, tuple(chosen)) if chosen else None

    def _place(
        self, look: Looked, source: str, wish: Wish, recent: list[Recent], places: Places, coming: Counter[str]
    ) -> Choice:  # fmt: skip
        critical, need = wish.priority >= CRITICAL, look.needs[wish.agent] if look.needs is not None else need_of(wish)
        why = why_rests(recent, look.now, cooldown_s=wish.cooldown_s, per_hour=wish.per_hour, is_critical=critical)
        if why or need.policy.immovable:
            return Choice("", why or IMMOVABLE)
        refused = {
            target: f"it did not take the agent lately ({said})"
            for (agent, target), (_, said) in self._refused.items() if agent == wish.agent
        }  # fmt: skip
        return choose(
            wish, source, look.nodes.values(), coming, refused,
            lambda target: places.why_full(source, target, is_critical=critical), look.places, need,
        )  # fmt: skip


def _name(look: Looked, agent: str) -> str:
    """The migration's id: a plan that lands is the only one of its place in the log."""
    return f"m-{blake3(f'{look.term} {look.seq} {agent}'.encode()).hexdigest(8)}"
