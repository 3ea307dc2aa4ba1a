"""Is the state that arrived the state that left?"""

from __future__ import annotations

from dataclasses import dataclass

from mielin_cells.migration.rollback import checksum


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a source says of a state; it travels beside it, and the target computes its own."""

    checksum: bytes
    """BLAKE3."""
    size: int

    @classmethod
    def of(cls, state: bytes) -> Manifest:
        return cls(checksum=checksum(state), size=len(state))


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

    def verify(self, expected: Manifest, state: bytes, *, agent_responsive: bool) -> VerificationResult:
        found = Manifest.of(state)
        reasons: list[str] = []
        if found.size != expected.size:
            reasons.append(f"{found.size:,} bytes arrived of {expected.size:,}")
        if found.checksum != expected.checksum:
            reasons.append(f"their checksum is {found.checksum.hex()[:16]}, not {expected.checksum.hex()[:16]}")
        if not agent_responsive:
            reasons.append("the agent does not answer its probe")
        return VerificationResult(
            passed=not reasons,
            checksum_valid=found.checksum == expected.checksum,
            size_valid=found.size == expected.size,
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
