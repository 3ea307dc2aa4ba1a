"""What a move would take, as a node tells its clients."""

from __future__ import annotations

import msgspec


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes are those of the state; what changes meanwhile comes on top.  `pause_ms` as in reports; `basis`: what it is drawn from."""

    agent: str
    source: str
    target: str
    bytes: int
    rounds: int
    pause_ms: float
    basis: str
    reasons: list[str] = []
    """Every reason why the target would refuse now."""
