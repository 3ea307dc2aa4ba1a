"""What an agent was made with, as a digest: so that a second spawn with another initial state can be told."""

from __future__ import annotations

from typing import Any

import msgspec
from blake3 import blake3

from mielin_cells.log.delta import StateDelta

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def born(state: StateDelta) -> bytes:
    """16 bytes over an initial state.  The order in what a field holds does not count: that of a set differs by process."""
    fields = [(name, _unordered(_decode(data))) for name, data in state.plain.items()]
    for name, table in state.tables.items():
        fields.append((name, b"".join(sorted(_pair(key, value) for key, value in table.sets.items()))))
    for name, buffer in state.buffers.items():
        fields.append((name, _encode((buffer.size, sorted(buffer.pages.items())))))
    return blake3(_encode(sorted(fields))).digest(16)


def _pair(key: bytes, value: bytes) -> bytes:
    return blake3(_encode((key, value))).digest(16)


def _unordered(value: Any) -> bytes:
    if isinstance(value, (list, tuple)):
        parts = sorted(_unordered(item) for item in value)
    elif isinstance(value, dict):
        parts = sorted(_unordered(key) + _unordered(item) for key, item in value.items())
    else:
        return blake3(_encode(value)).digest(16)
    return blake3(_encode((type(value).__name__, parts))).digest(16)
