"""Guards of policies that move agents and of plans of moves (P1 to P6), which the simulator misses when they are taken away."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import msgspec

from mielin_cells.log.policy import DEFAULT
from mielin_cells.membership.members import Table
from mielin_cells.migration import admission as rules
from mielin_cells.migration.admission import Facts, Offer
from mielin_cells.migration.refusal import Refusal
from mielin_cells.node.moves import admission
from mielin_cells.node.moves.bounds.places import Gate
from mielin_cells.node.plans.leading import Leading
from mielin_cells.policy.evaluation.evaluation import Came, Evaluation
from mielin_cells.policy.placement import place as placement
from mielin_cells.policy.placement.values import Need, Placement, Places
from mielin_cells.policy.planning import choice, planner
from mielin_cells.policy.planning import plan as plans
from mielin_cells.policy.planning.lending import Lending
from mielin_cells.policy.planning.plan import Plan
from mielin_cells.policy.planning.planner import Begin, Close, Effect, Event, Looked, Planner, Record
from mielin_cells.policy.triggers.machine import Effect as Change
from mielin_cells.policy.triggers.needs import Answer, Fits
from support.guards import Patch, guard


@guard(within=100)
def a_planned_target_meets_the_policy(patch: Patch) -> None:
    """The leader chooses targets whatever the agents' policies demand of nodes (P1)."""
    place = placement.place

    def anywhere(need: Need, *args: Any, **more: Any) -> Placement:
        return place(need._replace(policy=DEFAULT), *args, **more)

    patch.setattr(choice, "place", anywhere)


@guard(within=100)
def entries_count_for_plans(patch: Patch) -> None:
    """The leader plans by the agents' own policies, and not by what entries of `mielin.toml` make of them (P1)."""
    describe = Leading._describe

    async def as_they_say(self: Leading) -> tuple[dict[str, Need] | None, Places]:
        _, places = await describe(self)
        return None, places

    patch.setattr(Leading, "_describe", as_they_say)


@guard(within=100)
def a_target_has_what_the_trigger_needs(patch: Patch) -> None:
    """Whether a node is better than the one that the agent leaves is not asked (P1)."""
    patch.setattr(choice, "check", lambda needs, facts: Answer(Fits.YES, ""))


@guard(within=100)
def plans_count_what_is_open(patch: Patch) -> None:
    """There is a place for every wish (P3)."""
    patch.setattr(plans.Places, "why_full", lambda *args, **more: "")


@guard(within=100)
def moves_wait_for_their_place(patch: Patch) -> None:
    """A node begins every move at once (P3)."""

    async def enter(self: Gate, unless: asyncio.Future[None]) -> bool:
        return not unless.done()

    patch.setattr(Gate, "enter", enter)
    patch.setattr(Gate, "leave", lambda self: None)


@guard(within=100)
def what_is_lent_is_counted(patch: Patch) -> None:
    """The leader lends each node as many places as it wants (P8)."""
    patch.setattr(Lending, "lend", lambda self, now, ask, pool: min(ask.want, pool))


@guard(within=100)
def a_full_target_refuses(patch: Patch) -> None:
    """A node takes agents however many are on their way to it (P3)."""
    refusals = rules.refusals

    def without(offer: Offer, facts: Facts) -> tuple[Refusal, ...]:
        return refusals(offer, replace(facts, moves=0))

    patch.setattr(admission, "refusals", without)


@guard(within=100)
def an_agent_that_was_moved_rests(patch: Patch) -> None:
    """An agent is planned again whenever a condition holds (P6)."""
    patch.setattr(planner, "why_rests", lambda *args, **more: "")


@guard(within=100)
def an_agent_that_has_come_rests(patch: Patch) -> None:
    """An agent that has just come to a node leaves it as soon as a condition holds (P6)."""
    take = Evaluation._take

    def as_if_long_there(self: Evaluation, event: Came) -> tuple[Change, ...]:
        return take(self, replace(event, now=-1e9))

    patch.setattr(Evaluation, "_take", as_if_long_there)


@guard(within=100)
def a_plan_is_recorded_before_its_moves_begin(patch: Patch) -> None:
    """The leader begins moves as soon as it has decided on them (P2)."""
    append = Leading._append

    async def begun(self: Leading, effect: Record | Close, table: Table) -> bool:
        if isinstance(effect, Record):
            plan = Plan(table.seq, table.term, effect.run, effect.at, effect.until, effect.moves)
            table.plans.begin(plan)
            for move in effect.moves:
                self._begin(Begin(plan, move))
            await asyncio.sleep(0.5)
        return await append(self, effect, table)

    patch.setattr(Leading, "_append", begun)


@guard(within=100)
def a_plan_ends_with_its_moves(patch: Patch) -> None:
    """The leader ends a plan once its moves have begun, and has places for others then (P4)."""
    patch.setattr(Planner, "_is_open", lambda self, plan, move: move.migration not in self._begun)


@guard(within=100)
def a_new_leader_goes_on_with_plans(patch: Patch) -> None:
    """A leader looks at its own plans alone (P5)."""
    on = Planner.on

    def own(self: Planner, event: Event) -> tuple[Planner, tuple[Effect, ...]]:
        if isinstance(event, Looked):
            mine = {seq: plan for seq, plan in event.plans.open.items() if plan.term == event.term}
            event = replace(event, plans=msgspec.structs.replace(event.plans, open=mine))
        return on(self, event)

    patch.setattr(Planner, "on", own)
