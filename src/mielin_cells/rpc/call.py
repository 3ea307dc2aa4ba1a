"""Requests to nodes, sent: the one place where they are encoded, and their answers decoded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import msgspec

from mielin_cells.errors import WireTimeout
from mielin_cells.log.ids import control_subject
from mielin_cells.rpc.pages import PAGE_MAX
from mielin_cells.rpc.requests import Request, decode_response, encode_request
from mielin_cells.substrate.ports import Wire

R = TypeVar("R")
T = TypeVar("T")


async def call(wire: Wire, node: str, request: Request[R], timeout_s: float) -> R:
    """The node's answer.

    Raises the error that the node refuses with, `NoResponder` if the node is not there, `WireTimeout` after `timeout_s` (the
    request may still be carried out), and `RecordInvalid` for an answer that cannot be decoded.
    """
    try:
        data = await wire.request(control_subject(node), encode_request(request), timeout_s)
    except WireTimeout as error:  # the wire names a subject, which says nothing to an operator
        said = f"Node {node} did not answer within {timeout_s:.3g} s; the request may still be acted on."
        raise WireTimeout(said, **error.facts) from error
    return decode_response(request, data, node)


async def call_pages(
    wire: Wire, node: str, request: Request[list[T]], key: Callable[[T], str], timeout_s: float, size: int = PAGE_MAX
) -> AsyncIterator[list[T]]:
    """The answers to `ListAgents`, `ListIds` or `ListCopies`, page by page; `key` gives the id of an item.  Raises as `call`.

    `size`: of a page that has others behind it.
    """
    while True:
        page = await call(wire, node, request, timeout_s)
        yield page
        if len(page) < size:
            return
        request = msgspec.structs.replace(request, after=key(page[-1]))
