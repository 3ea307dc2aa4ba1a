"""Requests to nodes: each has an answer of its own type, and what goes wrong is named."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from mielin_cells.agents.reports import NodeInfo
from mielin_cells.errors import NodeStopping, RecordInvalid, WireTimeout
from mielin_cells.log.ids import control_subject
from mielin_cells.rpc import requests
from mielin_cells.rpc.answers import InboxRoom
from mielin_cells.rpc.call import call, call_pages
from mielin_cells.rpc.pages import PAGE_MAX, page_of
from mielin_cells.rpc.serve import Handlers, Server
from mielin_cells.substrate.embedded.wire import EmbeddedWire

KINDS: list[type[requests.Request[Any]]] = list(typing.get_args(requests.AnyRequest))
INFO = NodeInfo(name="n", incarnation=1, agents=2)


def handlers(**own: Callable[[Any], Any]) -> Handlers:
    return {kind: own.get(kind.__name__, lambda _: None) for kind in KINDS}


async def wire_of(handlers: Handlers) -> EmbeddedWire:
    wire = EmbeddedWire()
    await wire.serve(control_subject("n"), Server("n", handlers, lambda _: None).answer)
    return wire


async def test_an_answer_has_the_type_that_its_request_names() -> None:
    async def waiting(request: requests.CountWaiting) -> InboxRoom:
        return InboxRoom(len(request.agent), 5, "wait")

    wire = await wire_of(handlers(Ping=lambda _: INFO, CountWaiting=waiting))
    assert await call(wire, "n", requests.Ping(), 1.0) == INFO
    assert await call(wire, "n", requests.CountWaiting("abc"), 1.0) == InboxRoom(3, 5, "wait")
    await call(wire, "n", requests.Release("a", "m-1"), 1.0)


async def test_an_answer_of_another_type_is_one_nodes_trouble_and_named() -> None:
    wire = await wire_of(handlers(Ping=lambda _: "another version"))
    with pytest.raises(RecordInvalid, match=r"The answer of node n to Ping cannot be read: .*str"):
        await call(wire, "n", requests.Ping(), 1.0)


async def test_an_error_of_the_node_is_raised_at_the_caller_and_a_bug_is_told_as_one() -> None:
    def stopping(_: object) -> None:
        raise NodeStopping("It is stopping.")

    def wrong(_: object) -> None:
        raise KeyError("never foreseen")

    wire = await wire_of(handlers(Ping=stopping, ListBeats=wrong))
    with pytest.raises(NodeStopping, match="It is stopping"):
        await call(wire, "n", requests.Ping(), 1.0)
    with pytest.raises(Exception, match="Node n: KeyError: 'never foreseen'"):
        await call(wire, "n", requests.ListBeats(), 1.0)


async def test_a_node_that_does_not_answer_in_time_is_named() -> None:
    async def never_answers(_: object) -> None:
        await asyncio.Event().wait()

    wire = await wire_of(handlers(Ping=never_answers))
    with pytest.raises(WireTimeout, match=r"^Node n did not answer within 0\.05 s; the request may still be acted on"):
        await call(wire, "n", requests.Ping(), 0.05)


@pytest.mark.parametrize("count", [0, 1, PAGE_MAX, 2 * PAGE_MAX + 1])
async def test_pages_hold_every_item_once_and_in_order(count: int) -> None:
    ids = [f"a{n:06}" for n in range(count)]
    wire = await wire_of(handlers(ListCopies=lambda request: page_of(reversed(ids), request.after)))
    pages = [page async for page in call_pages(wire, "n", requests.ListCopies(), str, 1.0)]
    assert [one for page in pages for one in page] == ids
    assert all(len(page) <= PAGE_MAX for page in pages)


def test_a_node_without_a_handler_for_some_request_does_not_start() -> None:
    known = handlers()
    del known[requests.Ping]
    with pytest.raises(AssertionError, match="Ping"):
        Server("n", known, lambda _: None)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_request_names_a_type_that_can_be_decoded(kind: type[requests.Request[Any]]) -> None:
    (base,) = kind.__orig_bases__  # type: ignore[attr-defined]
    msgspec.msgpack.Decoder(typing.get_args(base)[0])
