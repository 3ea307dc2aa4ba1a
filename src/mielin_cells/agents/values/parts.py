"""The parts that a handler yields: how they are encoded, and what a turn runs to send them."""

from __future__ import annotations

import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine
from typing import Any, cast

from mielin_cells.agents.context import turn
from mielin_cells.agents.values.changes import LOAD_ERRORS, reason
from mielin_cells.agents.values.codec import Codec
from mielin_cells.agents.values.wire import encode, giver
from mielin_cells.errors import BadArguments, FieldRefused, MessageTooLarge
from mielin_cells.settings import MESSAGE_BYTES_MAX


def part_type(kind: Any, path: str) -> Any:
    """The type of the parts, from the handler's return annotation.  Raises `FieldRefused`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin not in (AsyncIterator, AsyncGenerator, AsyncIterable) or not arguments:
        raise FieldRefused.at(path, ": it yields; say of what type, as `-> AsyncIterator[str]`.")
    return arguments[0]


class PartCodec:
    """How the parts of one handler's streams are encoded."""

    __slots__ = ("_codec", "_handler", "_path")

    def __init__(self, kind: Any, handler: str, path: str) -> None:
        self._codec = Codec(part_type(kind, path), f"{path} -> part")
        self._handler = handler
        self._path = path

    def encode(self, value: Any) -> bytes:
        """Raises `BadArguments` if the value is not of the declared type, `MessageTooLarge`."""
        try:
            data = self._codec.settle(value, encode(value))[0]
        except LOAD_ERRORS as error:
            why = reason(value, error)
            raise BadArguments(
                f"{self._path} yielded a value that does not fit its declared type: {why}.", handler=self._handler
            ) from error
        if len(data) > MESSAGE_BYTES_MAX:
            raise MessageTooLarge(
                f"{self._path} yielded {len(data)} bytes; the limit is {MESSAGE_BYTES_MAX}. Yield smaller parts.",
                limit=MESSAGE_BYTES_MAX, size=len(data),
            )  # fmt: skip
        return data

    def decode(self, data: bytes, caller: object = None) -> Any:
        """`caller`: what references in the part are to use.  Raises `BadArguments`."""
        token = giver.set(caller) if caller is not None and self._codec.has_refs else None
        try:
            return self._codec.decode(data)
        except LOAD_ERRORS as error:
            raise BadArguments(
                f"{self._path}: a part of the stream does not fit its declared type: {error}.", handler=self._handler
            ) from error
        finally:
            if token is not None:
                giver.reset(token)

    def runs(self, fn: Callable[..., AsyncIterator[Any]]) -> Callable[..., Coroutine[Any, Any, int]]:
        """What a turn runs for the generator function: it gives each part to the turn, and returns how many there were."""

        async def run(agent: Any, /, **args: Any) -> int:
            running: Any = turn.get()
            parts = cast("AsyncGenerator[Any]", fn(agent, **args))
            try:
                async for value in parts:
                    await running.send_part(self.encode(value))
            except Exception:
                await running.end_parts()  # what it yielded before it failed is stored before the error is the answer
                raise
            finally:
                await parts.aclose()
            count: int = await running.end_parts()
            return count

        return run
