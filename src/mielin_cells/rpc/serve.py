"""Answers requests on a node: one table from request type to handler."""

from __future__ import annotations

import inspect
import logging
import typing
from collections.abc import Callable
from typing import Any, TypeAlias

from mielin_cells.errors import CellError, InternalError, RecordInvalid, described, never
from mielin_cells.rpc.requests import AnyRequest, Request, decode_request, encode_error, encode_result

Handlers: TypeAlias = dict[type[Request[Any]], Callable[[Any], Any]]
"""A handler takes the request and gives its answer, or a coroutine of it."""

logger = logging.getLogger("mielin_cells.node")


class Server:
    """Answers the requests to one node."""

    def __init__(self, node: str, handlers: Handlers, check: Callable[[AnyRequest], None]) -> None:
        """`check` raises the error that refuses a request whatever it asks."""
        missing = set(typing.get_args(AnyRequest)) - handlers.keys()
        if missing:
            raise never(f"every request has a handler, but not {missing}")
        self._node = node
        self.handlers = handlers
        self._check = check

    async def answer(self, data: bytes) -> bytes:
        try:
            request = decode_request(data)
        except RecordInvalid as error:
            logger.warning("node %s: %s", self._node, error)
            return encode_error(error)
        try:
            self._check(request)
            result = self.handlers[type(request)](request)
            return encode_result(await result if inspect.isawaitable(result) else result)
        except CellError as error:
            return encode_error(error)
        except Exception as error:
            logger.exception("node %s: a request failed", self._node)
            return encode_error(InternalError(f"Node {self._node}: {described(error)}."))
