"""What a rollback goes back to, and the proof that it did."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from blake3 import blake3

from mielin_cells.agents.agent import Agent, agent_id
from mielin_cells.errors import DigestMismatch, RecordInvalid
from mielin_cells.log.ids import AgentId
from mielin_cells.log.policy import Policy


def checksum(data: bytes) -> bytes:
    """BLAKE3, 32 bytes: it takes the place of the seed's positional sum, which cannot see appended zeros."""
    return blake3(data).digest()


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
        """Of an agent that is paused, or of a record of its log: the bytes are taken as they are.  Raises `InvalidAgentId`."""
        return cls(
            agent_id=str(AgentId(agent)) if isinstance(agent, str) else agent_id(agent),
            original_state=bytes(state),
            original_checksum=checksum(state),
            original_policy_data=msgspec.msgpack.encode(policy or Policy()),
            created_at=now,
            source_node=source_node,
        )

    @property
    def policy(self) -> Policy:
        """Raises `RecordInvalid` if the stored bytes are no policy."""
        try:
            return msgspec.msgpack.decode(self.original_policy_data, type=Policy)
        except (msgspec.MsgspecError, ValueError) as error:
            raise RecordInvalid(
                f"The policy kept for a rollback of agent {self.agent_id!r} does not decode; roll back from the agent's log.",
                subject=self.agent_id,
            ) from error

    def verify(self) -> None:
        """Raises `DigestMismatch` if the state is not the one that was captured: it must not be restored then."""
        if checksum(self.original_state) != self.original_checksum:
            raise DigestMismatch(
                f"The state kept for a rollback of agent {self.agent_id!r} has changed; it is not restored, and stays as it is.",
                subject=self.agent_id,
            )

    def age_secs(self, now: float) -> float:
        """Never below 0."""
        return max(0.0, now - self.created_at)

    def is_valid(self, max_age_secs: float, now: float) -> bool:
        """Younger than `max_age_secs`; of that very age is too old, so 0 is never valid."""
        return self.age_secs(now) < max_age_secs
