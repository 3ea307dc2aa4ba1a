"""Failed migrations of agent "a", and their next attempts, for the tests of the recovery manager."""

from __future__ import annotations

from mielin_cells.migration import MigrationErrorType, MigrationRecoveryManager, RecoveryConfig, RecoveryStrategy
from mielin_cells.migration.breaker import Targets
from mielin_cells.migration.failure import MigrationError

TIMEOUT = MigrationErrorType.TIMEOUT
INCOMPATIBLE = MigrationErrorType.INCOMPATIBLE_TARGET
UNREACHABLE = MigrationErrorType.TARGET_UNREACHABLE
CORRUPTION = MigrationErrorType.STATE_CORRUPTION
SAME = RecoveryStrategy.RETRY_ON_SAME_TARGET
ELSEWHERE = RecoveryStrategy.RETRY_ON_DIFFERENT_TARGET
ROLLBACK = RecoveryStrategy.ROLLBACK
GIVE_UP = RecoveryStrategy.GIVE_UP


def failure(
    now: float = 0.0, kind: MigrationErrorType = TIMEOUT, agent: str = "a", target: str | None = "node-2"
) -> MigrationError:
    return MigrationError.new(kind, f"{kind.value} at {now:g}", agent, target, now=now)


def managed(config: RecoveryConfig | None = None, targets: Targets | None = None) -> MigrationRecoveryManager:
    """With a failure at 0 of agent "a", with "node-2"."""
    found = MigrationRecoveryManager(config, targets=targets)
    found.record_failure(failure(), source="node-1", migration="m-1")
    return found


def due(manager: MigrationRecoveryManager, agent: str = "a") -> float:
    found = manager.next_retry_time(agent)
    assert found is not None
    return found


def fail_next(manager: MigrationRecoveryManager, took: float = 1.0, kind: MigrationErrorType = TIMEOUT) -> float:
    """Runs the next attempt when it is due, which fails; the time of its end."""
    now = due(manager)
    ticket = manager.begin("a", now)
    if ticket.strategy is ELSEWHERE:
        assert manager.assign(ticket.token, "node-3", now)
    assert manager.finish(ticket.token, now + took, failure(now + took, kind, target=ticket.target_node or "node-3"))
    return now + took


def nobody(manager: MigrationRecoveryManager, token: int) -> float:
    """No node can be had for the attempt, when it begins; that time."""
    now = (manager.get_history("a") or [])[-1].timestamp
    assert manager.finish(token, now, failure(now, UNREACHABLE, target=None))
    return now
