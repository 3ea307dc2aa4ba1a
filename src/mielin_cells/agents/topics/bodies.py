"""Bodies of messages that other systems have published, as values of ours."""

from __future__ import annotations

import msgspec

from mielin_cells.agents.signature import HandlerSpec
from mielin_cells.agents.values.wire import encode, plain

_FIRST = 0x80
"""A body of one byte below this is text to most, and a number to msgpack."""


class BodyUnreadable(ValueError):
    """The body is neither JSON nor msgpack."""


def takes_bytes(handler: HandlerSpec | None) -> bool:
    """True if the handler's first parameter is of type `bytes`: then it gets bodies as they are."""
    return handler is not None and next(iter(handler.parameters.values()), None) is bytes


def value_of(data: bytes, as_bytes: bool) -> bytes:
    """msgpack of what the body holds: JSON, msgpack, or nothing.  Raises `BodyUnreadable`."""
    if as_bytes:
        return encode(data)
    if not data:
        return encode(None)
    try:
        return encode(msgspec.json.decode(data))
    except (ValueError, RecursionError, OverflowError):  # no JSON, or a value that cannot be kept
        pass
    if data[0] >= _FIRST:
        try:
            plain(data)
            return data
        except (ValueError, RecursionError, OverflowError):
            pass
    raise BodyUnreadable
