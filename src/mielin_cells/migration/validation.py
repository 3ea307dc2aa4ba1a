"""The seed's validator: checks before and after a migration, and the way back if it fails."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from blake3 import blake3

from mielin_cells.agents.agent import Agent
from mielin_cells.agents.reference import agent_id
from mielin_cells.errors import CellError, ConfigError, DigestMismatch, NoSuchMigration, RecordInvalid, RollbackExpired
from mielin_cells.log.ids import AgentId
from mielin_cells.log.policy import Policy
from mielin_cells.migration.admission import (
    AgentRequirements,
    CompatibilityStatus,
    NodeCapabilities,
    check_compatibility,
)
from mielin_cells.migration.audit import AuditEvent, MigrationAuditLog

ROLLBACK_AGE_SECS = 3600.0
"""How long a log is kept for a rollback: older information may name records that are gone."""


def checksum(data: bytes) -> bytes:
    """BLAKE3, 32 bytes: it takes the place of the seed's positional sum, which cannot see appended zeros."""
    return blake3(data).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Digest and size of a state, as its source says; the target computes its own and compares."""

    checksum: bytes
    """BLAKE3."""
    size: int

    @classmethod
    def of(cls, state: bytes) -> Manifest:
        return cls(checksum=checksum(state), size=len(state))


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackInfo:
    """An agent's state and policy at the rollback point.  Checked by `verify` before it is used."""

    agent_id: str
    original_state: bytes = field(repr=False)
    original_checksum: bytes
    """BLAKE3 of the state."""
    original_policy_data: bytes
    """The `Policy`, as MessagePack."""
    created_at: float
    """Monotonic seconds."""
    source_node: str | None = None
    sealed_size: int | None = None
    """Of a state that stays in the agent's log, sealed by the record before the handover: `original_state` is empty then."""

    @classmethod
    def capture(
        cls,
        agent: Agent | str,
        state: bytes,
        now: float,
        *,
        policy: Policy | None = None,
        source_node: str | None = None,
    ) -> RollbackInfo:
        """Captures a paused agent, or a record of its log; the bytes are taken unchanged.  Raises `InvalidAgentId`."""
        return cls(
            agent_id=str(AgentId(agent)) if isinstance(agent, str) else agent_id(agent),
            original_state=bytes(state),
            original_checksum=checksum(state),
            original_policy_data=msgspec.msgpack.encode(policy or Policy()),
            created_at=now,
            source_node=source_node,
        )

    @classmethod
    def sealed(cls, agent: str, seal: Manifest, now: float, *, policy: Policy, source_node: str) -> RollbackInfo:
        """For an agent that is about to be handed over: its log holds the state, so nothing is copied."""
        return cls(
            agent_id=agent,
            original_state=b"",
            original_checksum=seal.checksum,
            original_policy_data=msgspec.msgpack.encode(policy),
            created_at=now,
            source_node=source_node,
            sealed_size=seal.size,
        )

    @property
    def manifest(self) -> Manifest:
        """What the agent must be back at."""
        size = len(self.original_state) if self.sealed_size is None else self.sealed_size
        return Manifest(checksum=self.original_checksum, size=size)

    @property
    def policy(self) -> Policy:
        """Raises `RecordInvalid` if the stored bytes are no policy."""
        try:
            return msgspec.msgpack.decode(self.original_policy_data, type=Policy)
        except (msgspec.MsgspecError, ValueError) as error:
            raise RecordInvalid(
                f"The policy kept for a rollback of agent {self.agent_id!r} cannot be decoded; roll back from the agent's log.",
                subject=self.agent_id,
            ) from error

    def verify(self) -> None:
        """Raises `DigestMismatch` if the state is not the one that was captured: it must not be restored then."""
        if self.sealed_size is None and checksum(self.original_state) != self.original_checksum:
            raise DigestMismatch(
                f"The state kept for a rollback of agent {self.agent_id!r} does not match its digest; it is not restored.",
                subject=self.agent_id,
            )

    def age_secs(self, now: float) -> float:
        """Never below 0."""
        return max(0.0, now - self.created_at)

    def is_valid(self, max_age_secs: float, now: float) -> bool:
        """True if younger than `max_age_secs`; exactly that age is too old, so 0 is never valid."""
        return self.age_secs(now) < max_age_secs


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationResult:
    """`passed` only if checksum and size are right and the agent answered its probe.  `details` says every reason against."""

    passed: bool
    checksum_valid: bool
    size_valid: bool
    agent_responsive: bool
    details: str = ""


class StateVerifier:
    """Compares what arrived with the source's manifest.  Nothing is taken for granted: the probe's answer is passed in."""

    def verify(self, expected: Manifest, state: bytes | Manifest, *, agent_responsive: bool) -> VerificationResult:
        actual = state if isinstance(state, Manifest) else Manifest.of(state)
        reasons: list[str] = []
        if actual.size != expected.size:
            reasons.append(f"{actual.size:,} bytes arrived of {expected.size:,}")
        if actual.checksum != expected.checksum:
            reasons.append(f"their checksum is {actual.checksum.hex()[:16]}, not {expected.checksum.hex()[:16]}")
        if not agent_responsive:
            reasons.append("the agent does not answer its probe")
        return VerificationResult(
            passed=not reasons,
            checksum_valid=actual.checksum == expected.checksum,
            size_valid=actual.size == expected.size,
            agent_responsive=agent_responsive,
            details="; ".join(reasons),
        )

    def verify_delta(
        self, base: Manifest, expected: Manifest, before: bytes, after: bytes, *, agent_responsive: bool
    ) -> VerificationResult:
        """The same for a state made by a delta, which must have been applied to the right base: a torn or replayed delta shows."""
        result = self.verify(expected, after, agent_responsive=agent_responsive)
        if Manifest.of(before) == base:
            return result
        details = "; ".join(filter(None, ("the delta was made for another base", result.details)))
        return VerificationResult(
            passed=False,
            checksum_valid=False,
            size_valid=result.size_valid,
            agent_responsive=agent_responsive,
            details=details,
        )


class MigrationValidator:
    """Checks before and after a migration, an audit of both, and rollback information by migration.

    Rollback information leaves by a confirmed rollback, by `complete` after success, and by `cleanup_expired` once its migration
    has ended; nothing else takes the way back away.  `now` is monotonic seconds.
    """

    def __init__(
        self, *, max_rollback_age_secs: float = ROLLBACK_AGE_SECS, audit: MigrationAuditLog | None = None
    ) -> None:
        self.audit = audit if audit is not None else MigrationAuditLog()
        self.set_max_rollback_age(max_rollback_age_secs)
        self._rollbacks: dict[str, RollbackInfo] = {}
        self._ended: set[str] = set()
        """Migrations that failed, whose rollback information is kept."""
        self._verifier = StateVerifier()

    @property
    def max_rollback_age_secs(self) -> float:
        return self._max_age

    def set_max_rollback_age(self, seconds: float) -> None:
        """Raises `ConfigError` unless above 0."""
        if not seconds > 0:
            raise ConfigError(
                f"max_rollback_age_secs = {seconds!r} is out of range (above 0).",
                field="max_rollback_age_secs",
                range="above 0",
            )
        self._max_age = seconds

    def validate_pre(
        self,
        migration_id: str,
        agent_id: str,
        agent: AgentRequirements,
        node: NodeCapabilities,
        *,
        now: float,
        target: str | None = None,
    ) -> CompatibilityStatus:
        return self.record_pre(migration_id, agent_id, check_compatibility(agent, node), now=now, target=target)

    def record_pre(
        self, migration_id: str, agent_id: str, status: CompatibilityStatus, *, now: float, target: str | None = None
    ) -> CompatibilityStatus:
        """A check that was made, of which the compatibility check may be a part."""
        self.audit.add(
            migration_id,
            agent_id,
            AuditEvent.VALIDATION_COMPLETED,
            now=now,
            target=target,
            details="; ".join(status.reasons or status.warnings),
            success=status.can_proceed,
        )
        return status

    def capture_rollback(self, migration_id: str, info: RollbackInfo, *, now: float) -> None:
        """Keeps it.  The first capture of an attempt counts: a later one may be of a state that the move has touched."""
        if migration_id in self._rollbacks and migration_id not in self._ended:
            return
        self._rollbacks[migration_id] = info
        self._ended.discard(migration_id)
        self.audit.add(migration_id, info.agent_id, AuditEvent.SNAPSHOT_CAPTURED, now=now, source=info.source_node)

    def verify_post(
        self,
        migration_id: str,
        agent_id: str,
        expected: Manifest,
        state: bytes | Manifest,
        *,
        agent_responsive: bool,
        now: float,
        target: str | None = None,
    ) -> VerificationResult:
        """`expected` comes from the source, `state` (or its manifest) and `agent_responsive` from the target."""
        result = self._verifier.verify(expected, state, agent_responsive=agent_responsive)
        self.audit.add(
            migration_id,
            agent_id,
            AuditEvent.VERIFICATION_COMPLETED,
            now=now,
            target=target,
            details=result.details,
            success=result.passed,
        )
        return result

    # ---- rollback --------------------------------------------------------------------------------------------

    def rollback_info(self, migration_id: str) -> RollbackInfo | None:
        """The kept information of any age, for an operator."""
        return self._rollbacks.get(migration_id)

    def execute_rollback(self, migration_id: str, *, now: float) -> RollbackInfo:
        """The checked state to go back to.  It is kept until `confirm_rollback`, so it can be asked for again.

        Raises `NoSuchMigration` if nothing was captured, `RollbackExpired` if it is too old (it is kept for an operator), and
        `DigestMismatch` if its bytes have changed.  Each is in the audit.
        """
        info = self._rollbacks.get(migration_id)
        agent = info.agent_id if info is not None else ""
        try:
            if info is None:
                raise NoSuchMigration(
                    f"There is no rollback information of migration {migration_id}; recover the agent from its log.",
                    migration=migration_id,
                )
            if not info.is_valid(self._max_age, now):
                raise RollbackExpired(
                    f"The rollback information of migration {migration_id} is {info.age_secs(now):.0f} s old and the limit is "
                    f"{self._max_age:g} s; it is kept, and an operator may use it.",
                    migration=migration_id,
                )
            info.verify()
        except CellError as error:
            self._audit_rollback(AuditEvent.ROLLBACK_STARTED, migration_id, agent, now, error.message, success=False)
            raise
        self._audit_rollback(AuditEvent.ROLLBACK_STARTED, migration_id, agent, now, "", success=True)
        return info

    def confirm_rollback(self, migration_id: str, restored: Manifest, *, now: float, details: str = "") -> None:
        """The rollback was performed: `restored` is what the agent now runs with.  Only then is the information discarded.

        Raises `NoSuchMigration`, and `DigestMismatch` if that is not what was captured; then it is kept.
        """
        info = self._rollbacks.get(migration_id)
        if info is None:
            raise NoSuchMigration(f"No rollback of migration {migration_id} is open.", migration=migration_id)
        if restored != info.manifest:
            error = DigestMismatch(
                f"Agent {info.agent_id!r} was rolled back to another state than the one captured; roll back again.",
                subject=info.agent_id,
            )
            self.fail_rollback(migration_id, error.message, now=now)
            raise error
        self._audit_rollback(AuditEvent.ROLLBACK_COMPLETED, migration_id, info.agent_id, now, details, success=True)
        del self._rollbacks[migration_id]
        self._ended.discard(migration_id)

    def fail_rollback(self, migration_id: str, reason: str, *, now: float, is_final: bool = False) -> None:
        """Notes that the rollback failed; its information is kept.  `is_final`: this node does not try again."""
        info = self._rollbacks.get(migration_id)
        if info is not None and is_final:
            self._ended.add(migration_id)
        agent = info.agent_id if info is not None else ""
        self._audit_rollback(AuditEvent.ROLLBACK_COMPLETED, migration_id, agent, now, reason, success=False)

    def complete(
        self,
        migration_id: str,
        agent_id: str,
        *,
        success: bool,
        now: float,
        details: str = "",
        source: str | None = None,
        target: str | None = None,
    ) -> None:
        """Notes in the audit that the migration has ended.  After a success the rollback information is discarded."""
        if success:
            self._rollbacks.pop(migration_id, None)
            self._ended.discard(migration_id)
        elif migration_id in self._rollbacks:
            self._ended.add(migration_id)
        event = AuditEvent.MIGRATION_COMPLETED if success else AuditEvent.MIGRATION_FAILED
        self.audit.add(
            migration_id, agent_id, event, now=now, source=source, target=target, details=details, success=success
        )

    def cleanup_expired(self, *, now: float) -> int:
        """Discards information that is too old and whose migration has ended; returns how many.  That of an open one is kept."""
        old = [name for name in self._ended if not self._rollbacks[name].is_valid(self._max_age, now)]
        for name in old:
            del self._rollbacks[name]
            self._ended.discard(name)
        return len(old)

    def _audit_rollback(
        self, event: AuditEvent, migration_id: str, agent_id: str, now: float, details: str, *, success: bool
    ) -> None:
        info = self._rollbacks.get(migration_id)
        source = info.source_node if info is not None else None
        self.audit.add(migration_id, agent_id, event, now=now, source=source, details=details, success=success)
