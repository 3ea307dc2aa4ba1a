"""Any order of calls: the recovery manager against what must always hold of it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mielin_cells.errors import CellError, NoSuchMigration, RecoveryNotDue
from mielin_cells.migration import MigrationErrorType, MigrationRecoveryManager, RecoveryConfig, RecoveryStrategy
from mielin_cells.migration.breaker import BreakerConfig, Targets
from mielin_cells.migration.case import ROLLBACKS_MAX, Ticket
from mielin_cells.migration.failure import MigrationError

agents = st.sampled_from("abcd")
nodes = st.sampled_from(["node-1", "node-2", "node-3", "node-4"])
kinds = st.sampled_from(MigrationErrorType)


class Recoveries(RuleBasedStateMachine):
    """Every ticket that was ever given is kept, and reported at any time, also twice and late."""

    def __init__(self) -> None:
        super().__init__()
        self.config = RecoveryConfig(max_retries=3, recovery_timeout_secs=100)
        self.targets = Targets(BreakerConfig(running_max=2))
        self.manager = MigrationRecoveryManager(self.config, targets=self.targets, attempt_timeout_secs=30)
        self.now = 0.0
        self.tickets: list[Ticket] = []
        self.running: dict[str, Ticket] = {}
        self.expired: set[int] = set()
        self.retries: dict[str, int] = {}
        """Of the open recovery of an agent."""
        self.incompatible: dict[str, set[str]] = {}

    def error(self, agent: str, kind: MigrationErrorType, node: str | None) -> MigrationError:
        return MigrationError.new(kind, "it failed", agent, node, now=self.now)

    def noted(self, agent: str, kind: MigrationErrorType, node: str | None) -> None:
        self.retries.setdefault(agent, 0)
        if kind is MigrationErrorType.INCOMPATIBLE_TARGET and node is not None:
            self.incompatible.setdefault(agent, set()).add(node)

    def ended(self, agent: str) -> None:
        self.running.pop(agent, None)
        if self.manager.next_retry_time(agent) is None and not self.manager.is_running(agent):
            self.retries.pop(agent, None)
            self.incompatible.pop(agent, None)

    @rule(seconds=st.sampled_from([0.0, 1.0, 10.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(agent=agents, kind=kinds, node=nodes)
    def fail(self, agent: str, kind: MigrationErrorType, node: str) -> None:
        self.manager.record_failure(self.error(agent, kind, node), self.now, source="node-1")
        self.running.pop(agent, None)
        self.noted(agent, kind, node)

    @rule(agent=agents)
    def begin(self, agent: str) -> None:
        was_running, was_open = agent in self.running, agent in self.retries
        try:
            ticket = self.manager.begin(agent, self.now)
        except NoSuchMigration:
            assert not was_open
            return
        except RecoveryNotDue:
            assert was_open
            return
        assert was_open
        assert not was_running
        assert ticket.strategy is not None
        self.tickets.append(ticket)
        if ticket.strategy.is_retry:
            self.retries[agent] += 1
            assert self.retries[agent] <= self.config.max_retries
            assert ticket.target_node not in self.incompatible.get(agent, ())
            assert self.incompatible.get(agent, set()) <= ticket.excluded or ticket.target_node is not None
        if ticket.strategy is RecoveryStrategy.GIVE_UP:
            self.ended(agent)
        else:
            self.running[agent] = ticket

    @rule(data=st.data(), node=nodes)
    def assign(self, data: st.DataObject, node: str) -> None:
        if self.tickets:
            ticket = data.draw(st.sampled_from(self.tickets))
            try:
                taken = self.manager.assign(ticket.token, node, self.now)
            except CellError:
                return
            if taken:
                assert self.running[ticket.agent_id].token == ticket.token
                assert node not in self.incompatible.get(ticket.agent_id, ())
                assert node != "node-1"

    @rule(data=st.data(), kind=st.none() | kinds, node=nodes)
    def finish(self, data: st.DataObject, kind: MigrationErrorType | None, node: str) -> None:
        if self.tickets:
            ticket = data.draw(st.sampled_from(self.tickets))
            agent = ticket.agent_id
            held = self.running.get(agent)
            error = self.error(agent, kind, node) if kind is not None else None
            assert self.manager.finish(ticket.token, self.now, error) == (
                held is not None and held.token == ticket.token
            )
            if held is not None and held.token == ticket.token:
                if kind is not None:
                    self.noted(agent, kind, node)
                self.ended(agent)

    @rule()
    def expire(self) -> None:
        for ticket in self.manager.expire(self.now):
            assert ticket.deadline <= self.now
            assert self.running[ticket.agent_id].token == ticket.token
            assert ticket.token not in self.expired
            self.expired.add(ticket.token)

    @rule(agent=agents)
    def settle(self, agent: str) -> None:
        assert self.manager.settle(agent, self.now) == (agent in self.retries)
        self.ended(agent)

    @rule(agent=agents)
    def clear(self, agent: str) -> None:
        self.manager.clear_history(agent)

    @invariant()
    def what_is_open_runs_or_is_due(self) -> None:
        manager = self.manager
        assert {error.agent_id for error in manager.get_pending()} == set(self.retries)
        for agent in self.retries:
            assert manager.is_running(agent) == (agent in self.running)
            assert (manager.next_retry_time(agent) is None) == (agent in self.running)

    @invariant()
    def places_of_targets_are_those_of_what_runs(self) -> None:
        for node in ("node-1", "node-2", "node-3", "node-4"):
            held = [
                agent
                for agent in self.running
                if (ticket := self.manager.ticket(agent)) is not None
                and ticket.target_node == node
                and ticket.strategy is not None
                and ticket.strategy.is_retry
            ]
            assert self.targets.running(node) == len(held)

    def teardown(self) -> None:
        """Whatever happened, if every attempt fails and no node can be had, each recovery ends, and soon."""
        for agent, ticket in self.running.items():
            if ticket.token in self.expired:  # its runner was told to stop, and says that it has
                self.manager.finish(ticket.token, self.now, self.error(agent, MigrationErrorType.TIMEOUT, None))
        steps = 0
        while self.manager.pending_count:
            steps += 1
            assert steps < 100 * (ROLLBACKS_MAX + self.config.max_retries), "a recovery never ends"
            wake = self.manager.next_wake()
            assert wake is not None
            self.now = max(self.now, wake)
            for ticket in self.manager.expire(self.now):
                self.manager.finish(
                    ticket.token, self.now, self.error(ticket.agent_id, MigrationErrorType.TIMEOUT, None)
                )
            for agent in self.manager.get_ready_for_retry(self.now):
                try:
                    ticket = self.manager.begin(agent, self.now)
                except RecoveryNotDue:
                    continue
                if ticket.strategy is not RecoveryStrategy.GIVE_UP:
                    kind = MigrationErrorType.TIMEOUT
                    self.manager.finish(ticket.token, self.now, self.error(agent, kind, ticket.target_node))


TestRecoveries = pytest.mark.timeout(120)(Recoveries.TestCase)
TestRecoveries.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
