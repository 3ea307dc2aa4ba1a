"""May this agent go to that node?  The seed's compatibility check, with every reason, and its keeper of rollback information."""

from __future__ import annotations

from dataclasses import dataclass

from mielin_cells.errors import ConfigError, DigestMismatch, NoSuchMigration, RollbackExpired
from mielin_cells.migration.audit import AuditEvent, MigrationAuditLog
from mielin_cells.migration.refusal import Refusal, refusal
from mielin_cells.migration.refusal import RefusalKind as Kind
from mielin_cells.migration.rollback import RollbackInfo
from mielin_cells.migration.verification import Manifest, StateVerifier, VerificationResult
from mielin_cells.migration.versions import Version

HEADROOM = 5
"""Less than a fifth of the free memory left over is worth a warning."""

GIB = 1 << 30

ROLLBACK_AGE_SECS = 3600.0
"""How long a log is kept for a rollback: older information may name records that are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRequirements:
    """What an agent needs.  Bytes; no architectures and no version: any."""

    architectures: tuple[str, ...] = ()
    required_memory: int = 0
    required_storage: int = 0
    state_size: int = 0
    features: tuple[str, ...] = ()
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCapabilities:
    """What a node has.  Defaults: the crate's."""

    architectures: tuple[str, ...] = ("x86_64", "aarch64")
    available_memory: int = 8 * GIB
    available_storage: int = 100 * GIB
    features: tuple[str, ...] = ("bulk-memory", "simd")
    max_state_size: int = GIB
    version: str = "0.1.0"
    min_version: str = "0.1.0"
    name: str = "the node"
    """As reasons call it."""
    reserved: int = 0
    """Of the memory and of the storage: promised to agents that are on their way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompatibilityStatus:
    """Every reason against, and every warning.  `can_proceed` unless there is a reason."""

    refusals: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """The refusals as sentences."""
        return tuple(map(str, self.refusals))

    @property
    def name(self) -> str:
        """The seed's name of it."""
        if self.refusals:
            return "Incompatible"
        return "CompatibleWithWarnings" if self.warnings else "Compatible"

    @property
    def is_compatible(self) -> bool:
        """Without reservation."""
        return not self.refusals and not self.warnings

    @property
    def can_proceed(self) -> bool:
        return not self.refusals


def check_compatibility(agent: AgentRequirements, node: NodeCapabilities) -> CompatibilityStatus:
    """All that the crate checks, in its order, and none of it left out because something before it failed."""
    found: list[Refusal] = []
    warnings: list[str] = []
    if agent.architectures and not set(agent.architectures) & set(node.architectures):
        have = " and ".join(node.architectures) or "of an unknown architecture"
        found.append(refusal(Kind.ARCHITECTURE, node=node.name, need=" or ".join(agent.architectures), have=have))
    # The state is held in memory, so it counts, too.
    need = agent.required_memory + agent.state_size
    left = _left(node.available_memory, node.reserved) - need
    if left < 0:
        found.append(_short(Kind.MEMORY, need, node.available_memory, node))
    elif left * HEADROOM < node.available_memory - node.reserved:
        warnings.append(f"{left:,} bytes of memory would be left, less than a fifth of what is free")
    if agent.required_storage > _left(node.available_storage, node.reserved):
        found.append(_short(Kind.STORAGE, agent.required_storage, node.available_storage, node))
    if agent.state_size > node.max_state_size:
        found.append(refusal(Kind.STATE_TOO_LARGE, node=node.name, size=agent.state_size, limit=node.max_state_size))
    found += [
        refusal(Kind.FEATURE, node=node.name, feature=name) for name in agent.features if name not in node.features
    ]
    if agent.version:
        _check_version(agent.version, node, found, warnings)
    return CompatibilityStatus(refusals=tuple(found), warnings=tuple(warnings))


def _left(free: int, reserved: int) -> int:
    return max(0, free - reserved)


def _short(kind: Kind, need: int, free: int, node: NodeCapabilities) -> Refusal:
    left = _left(free, node.reserved)
    return refusal(kind, node=node.name, need=need, left=left, free=free, reserved=node.reserved)


def _check_version(text: str, node: NodeCapabilities, found: list[Refusal], warnings: list[str]) -> None:
    try:
        version, have, least = Version(text), Version(node.version), Version(node.min_version)
    except ConfigError as error:
        found.append(refusal(Kind.VERSION_UNREADABLE, node=node.name, why=error.message.rstrip(".")))
        return
    if version.major not in (have.major, least.major):
        found.append(refusal(Kind.VERSION_MAJOR, node=node.name, need=str(version), have=str(have)))
    elif version < least:
        found.append(refusal(Kind.VERSION_OLD, node=node.name, need=str(version), least=str(least)))
    elif version > have:
        warnings.append(f"it was made for version {version}, and {node.name} has {have}")


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
        status = check_compatibility(agent, node)
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
        """Keeps it.  The first capture of a migration counts: a later one may be of a state that the move has touched."""
        if migration_id in self._rollbacks:
            return
        self._rollbacks[migration_id] = info
        self.audit.add(migration_id, info.agent_id, AuditEvent.SNAPSHOT_CAPTURED, now=now, source=info.source_node)

    def verify_post(
        self,
        migration_id: str,
        agent_id: str,
        expected: Manifest,
        state: bytes,
        *,
        agent_responsive: bool,
        now: float,
        target: str | None = None,
    ) -> VerificationResult:
        """`expected` comes from the source, `state` and `agent_responsive` from the target."""
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
        """What is kept, of whatever age: for an operator."""
        return self._rollbacks.get(migration_id)

    def execute_rollback(self, migration_id: str, *, now: float) -> RollbackInfo:
        """What to go back to, checked.  It stays until `confirm_rollback`: asked for twice, it is given twice.

        Raises `NoSuchMigration` if nothing was captured, `RollbackExpired` if it is too old (it is kept for an operator), and
        `DigestMismatch` if its bytes have changed.  Each is in the audit.
        """
        info = self._rollbacks.get(migration_id)
        error: NoSuchMigration | RollbackExpired | DigestMismatch | None = None
        if info is None:
            error = NoSuchMigration(
                f"There is no rollback information of migration {migration_id}; recover the agent from its log.",
                migration=migration_id,
            )
        elif not info.is_valid(self._max_age, now):
            error = RollbackExpired(
                f"The rollback information of migration {migration_id} is {info.age_secs(now):.0f} s old and the limit is "
                f"{self._max_age:g} s; it is kept, and an operator may use it.",
                migration=migration_id,
            )
        else:
            try:
                info.verify()
            except DigestMismatch as mismatch:
                error = mismatch
        agent = info.agent_id if info is not None else ""
        if info is None or error is not None:
            error = error or NoSuchMigration(f"There is no migration {migration_id}.", migration=migration_id)
            self._audit_rollback(AuditEvent.ROLLBACK_STARTED, migration_id, agent, now, error.message, success=False)
            raise error
        self._audit_rollback(AuditEvent.ROLLBACK_STARTED, migration_id, agent, now, "", success=True)
        return info

    def confirm_rollback(self, migration_id: str, restored: Manifest, *, now: float) -> None:
        """The rollback was performed: `restored` is what the agent now runs with.  Only then is the information let go.

        Raises `NoSuchMigration`, and `DigestMismatch` if that is not what was captured; then it is kept.
        """
        info = self._rollbacks.get(migration_id)
        if info is None:
            raise NoSuchMigration(f"No rollback of migration {migration_id} is open.", migration=migration_id)
        if restored != Manifest(checksum=info.original_checksum, size=len(info.original_state)):
            error = DigestMismatch(
                f"Agent {info.agent_id!r} was rolled back to another state than the one captured; roll back again.",
                subject=info.agent_id,
            )
            self.fail_rollback(migration_id, error.message, now=now)
            raise error
        del self._rollbacks[migration_id]
        self._ended.discard(migration_id)
        self._audit_rollback(AuditEvent.ROLLBACK_COMPLETED, migration_id, info.agent_id, now, "", success=True)

    def fail_rollback(self, migration_id: str, reason: str, *, now: float) -> None:
        """The rollback could not be performed; its information is kept."""
        info = self._rollbacks.get(migration_id)
        agent = info.agent_id if info is not None else ""
        self._audit_rollback(AuditEvent.ROLLBACK_COMPLETED, migration_id, agent, now, reason, success=False)

    def complete(self, migration_id: str, agent_id: str, *, success: bool, now: float, details: str = "") -> None:
        """The migration has ended, which is always told.  Only after success is there nothing to go back to."""
        if success:
            self._rollbacks.pop(migration_id, None)
            self._ended.discard(migration_id)
        elif migration_id in self._rollbacks:
            self._ended.add(migration_id)
        event = AuditEvent.MIGRATION_COMPLETED if success else AuditEvent.MIGRATION_FAILED
        self.audit.add(migration_id, agent_id, event, now=now, details=details, success=success)

    def cleanup_expired(self, *, now: float) -> int:
        """Lets go what is too old and belongs to a migration that has ended; how many.  That of an open one is never let go."""
        old = [name for name in self._ended if not self._rollbacks[name].is_valid(self._max_age, now)]
        for name in old:
            del self._rollbacks[name]
            self._ended.discard(name)
        return len(old)

    def _audit_rollback(
        self, event: AuditEvent, migration_id: str, agent_id: str, now: float, details: str, *, success: bool
    ) -> None:
        self.audit.add(migration_id, agent_id, event, now=now, details=details, success=success)
