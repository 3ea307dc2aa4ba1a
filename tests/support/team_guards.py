"""Guards of services, groups, timers by cron and trace context, taken away one at a time."""

from __future__ import annotations

from typing import Any

from mielin_cells.agents.reports import AgentInfo
from mielin_cells.client.finding import service
from mielin_cells.client.groups import orders
from mielin_cells.log.commit import Timer
from mielin_cells.log.message import Terms
from mielin_cells.log.undo import Undoing
from mielin_cells.node.activation import timers
from mielin_cells.node.activation.calls.spans import Traced
from support.guards import Patch, guard


@guard(within=20)
def what_may_have_run_is_not_called_elsewhere(patch: Patch) -> None:
    """A service calls another agent, also if the first one may have taken the call."""
    patch.setattr(service, "UNDONE", service.FAILING)


@guard(within=40)
def an_order_that_fails_is_taken_back(patch: Patch) -> None:
    """An order for a group that fails for one member stays done for the others."""
    all_or_none = orders._all_or_none

    async def nothing() -> None:
        return

    async def forgetful(client: Any, agents: list[str], order: str, work: orders.Work) -> Any:
        def done(info: AgentInfo) -> tuple[orders.Step, orders.Step] | None:
            steps = work(info)
            return None if steps is None else (steps[0], nothing)

        return await all_or_none(client, agents, order, done)

    patch.setattr(orders, "_all_or_none", forgetful)


@guard(within=100)
def a_named_node_is_where_members_go(patch: Patch) -> None:
    """An order to move a group to a node counts as done, also if a recovery took a member to another one."""
    patch.setattr(orders, "is_elsewhere", lambda report, to: False)


@guard(within=100)
def a_timer_by_cron_goes_on_behind_an_undo(patch: Patch) -> None:
    """An undo takes a timer back to the time that it was due at, although it has fired since."""

    def as_it_was(self: Undoing) -> list[Timer]:
        return [timer for name, timer in self.back.ledger.timers.items() if name not in self._fired]

    patch.setattr(Undoing, "_timers", as_it_was)


@guard(within=20)
def a_timer_by_cron_goes_on_in_the_commit_that_sends(patch: Patch) -> None:
    """When a timer by cron is due next is kept in memory, and is not in the commit that sends its message."""
    fire = timers.Timers._fire

    def sent(self: timers.Timers, timer: Timer, due: float, now: float) -> None:
        fire(self, timer, due, now)
        if timer.cron:
            _ = self._core.batch.timers.pop(timer.id, None)

    patch.setattr(timers.Timers, "_fire", sent)


@guard(within=20)
def a_turn_hands_on_its_trace(patch: Patch) -> None:
    """What a turn asks and tells is part of no trace."""

    def as_it_is(self: Traced, terms: Terms | None) -> Terms | None:
        return terms

    patch.setattr(Traced, "traced", as_it_is)


@guard(within=40)
def a_timer_keeps_its_trace(patch: Patch) -> None:
    """The message of a timer is part of no trace."""
    patch.setattr(Terms, "of_trace", lambda trace: None)
