"""Names of nodes: incarnations grow whatever is in a node's log, the newer process stops the older, a clean stop is noted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from random import Random

import msgspec
import pytest
import pytest_asyncio

import mielin_cells as cells
from mielin_cells.agents.reference import classes
from mielin_cells.client.client import Client
from mielin_cells.client.operator import Operator
from mielin_cells.log.codec import framed
from mielin_cells.log.ids import MEMBERS
from mielin_cells.membership import table
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.heartbeat import FORGET_S, HEARD_MAX, Listener, decode_beat
from mielin_cells.membership.members import Leads
from mielin_cells.membership.table import Members
from mielin_cells.node.node import Node
from mielin_cells.rpc.answers import Beat
from mielin_cells.substrate.embedded import Embedded

BEGUN = asyncio.Event()


class Lamp(cells.Agent):
    n: int = 0

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.n += n
        return self.n

    @cells.handler
    async def hang(self) -> None:
        BEGUN.set()
        await asyncio.Event().wait()


def node_of(substrate: Embedded, name: str = "n1") -> Node:
    about = Announcement(classes={"Lamp": 1}, labels={"zone": "eu"}, cores=2, at=time.time())
    return Node(name, substrate.log, substrate.wire, classes.get, rng=Random(), wall=time.time, about=about)


@pytest_asyncio.fixture
async def store() -> AsyncIterator[Embedded]:
    substrate = await Embedded.open(None)
    yield substrate
    await substrate.close()


async def test_the_newer_of_two_processes_of_a_name_goes_on_and_the_older_says_once_that_it_stops(
    store: Embedded, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(store.log, store.wire)
    await client.open()
    older, newer = node_of(store), node_of(store)
    replaced: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    older._replaced = replaced.set_result
    await older.start()
    lamps = [await client.spawn(Lamp, f"lamp-{n}") for n in range(3)]
    assert [await lamp.add() for lamp in lamps] == [1, 1, 1]

    with caplog.at_level(logging.WARNING):
        await newer.start()
        assert await replaced == 2

    assert not older.activations.live
    (said,) = [record.getMessage() for record in caplog.records if "was started again" in record.getMessage()]
    assert said.startswith("node n1 was started again as incarnation 2: this process, incarnation 1, stops at once")
    assert [await lamp.add() for lamp in lamps] == [2, 2, 2]
    assert len(newer.activations.live) == 3
    await newer.stop()
    await client.close()


@pytest.mark.parametrize("rubbish", [b"", b"rubbish", framed(b"\xc1"), framed(b"\x90"), framed(b"\x93\xa1x\xa1y\xa1z")])
async def test_an_incarnation_is_above_every_earlier_one_also_behind_rubbish(store: Embedded, rubbish: bytes) -> None:
    given = list[int]()
    for _ in range(2):
        for n in range(2):
            given.append((await table.enter(Members(store.log), "n1", Announcement(), b"%d" % n)).incarnation)
        await store.log.append(MEMBERS, rubbish)
    assert given == sorted(set(given))
    assert given[2] > 3  # what cannot be read may have given the next one


async def test_a_clean_stop_is_noted_and_the_next_process_goes_on(store: Embedded) -> None:
    client = Client(store.log, store.wire)
    await client.open()
    operator = Operator(client)
    first, other = node_of(store), node_of(store, "n2")
    await first.start()
    await other.start()
    lamp = await client.on("n1").spawn(Lamp, "lamp")
    assert await lamp.add() == 1
    await first.stop()

    nodes = {node.name: node for node in await operator.nodes()}
    assert (nodes["n1"].state, nodes["n2"].state) == ("stopped", "alive")
    assert (nodes["n1"].labels, nodes["n1"].classes, nodes["n1"].cores) == ({"zone": "eu"}, {"Lamp": 1}, 2)
    (info,) = await operator.agents()
    assert (info.id, info.cls, info.node, info.state) == ("lamp", "Lamp", "n1", "unreachable")

    again = node_of(store)
    await again.start()
    assert (await operator.show("n1")).incarnation == 2  # type: ignore[union-attr]
    assert await lamp.add() == 2
    await again.stop()
    await other.stop()
    await client.close()


async def test_a_node_that_dies_often_while_an_agent_has_nothing_to_do_costs_it_no_message(store: Embedded) -> None:
    client = Client(store.log, store.wire)
    await client.open()
    first = node_of(store)
    await first.start()
    lamp = await client.spawn(Lamp, "lamp")
    first.kill()
    for n in range(3 * client.settings.tries):
        node = node_of(store)
        await node.start()
        if n < 2 * client.settings.tries:
            node.kill()
        else:
            await node.stop()
    last = node_of(store)
    await last.start()
    assert await lamp.add() == 1
    await last.stop()
    await client.close()


async def test_a_message_that_ends_its_process_each_time_is_a_dead_letter_in_the_end(store: Embedded) -> None:
    client = Client(store.log, store.wire)
    await client.open()
    node = node_of(store)
    await node.start()
    lamp = await client.spawn(Lamp, "lamp")
    await lamp.hang.tell()
    for _ in range(client.settings.tries + 2):  # the first of them is not counted: nobody had marked the turn
        await BEGUN.wait()
        BEGUN.clear()
        node.kill()
        node = node_of(store)
        await node.start()
    assert await lamp.add() == 1
    (letter,) = await Operator(client).letters("lamp")
    assert (letter.handler, "lost its process" in letter.cause) == ("hang", True)
    await node.stop()
    await client.close()


async def test_an_agent_of_a_node_that_is_gone_is_claimed_without_force(store: Embedded) -> None:
    client = Client(store.log, store.wire)
    await client.open()
    gone, other = node_of(store), node_of(store, "n2")
    await gone.start()
    await other.start()
    lamp = await client.on("n1").spawn(Lamp, "lamp")
    await lamp.add()
    gone.kill()

    operator = Operator(client)
    assert {node.name: node.state for node in await operator.nodes()} == {"n1": "silent", "n2": "alive"}
    assert await operator.claim("lamp", "n2", force=False) == "n1"

    assert await lamp.add() == 2
    await other.stop()
    await client.close()


async def test_a_node_whose_loop_is_held_is_stuck_and_not_silent(store: Embedded) -> None:
    client = Client(store.log, store.wire)
    await client.open()
    held, other = node_of(store), node_of(store, "n2")
    await held.start()
    await other.start()
    held.kill()  # it answers no request any more
    listener = await leads(other)
    listener.receive(beat_of("n1", 1, 7.5))

    (found,) = [node for node in await Operator(client).nodes() if node.name == "n1"]

    assert (found.state, found.since_s) == ("stuck", 7.5)
    await other.stop()
    await client.close()


async def test_a_node_that_was_heard_before_its_process_died_is_silent(store: Embedded) -> None:
    client = Client(store.log, store.wire)
    await client.open()
    dead, other = node_of(store), node_of(store, "n2")
    await dead.start()
    await other.start()
    dead.kill()
    listener = await leads(other)
    listener.receive(beat_of("n1", 1, 0.0))
    listener._heard["n1"] = listener._heard["n1"][0], listener.clock() - 3.0

    (found,) = [node for node in await Operator(client).nodes() if node.name == "n1"]

    assert found.state == "silent"
    assert 2.5 < found.since_s < 5.0
    await other.stop()
    await client.close()


async def leads(node: Node) -> Listener:
    """What the node hears, which leads from here on."""
    await node.members.append(lambda table: Leads(node.name, 1) if not node.leads else None)
    listener = node._questions._listener
    listener.receive(beat_of(node.name, 1, 0.0))
    return listener


def beat_of(name: str, incarnation: int, stuck_s: float) -> bytes:
    return msgspec.msgpack.encode(Beat(name, incarnation, stuck_s))


def test_malformed_heartbeats_are_logged_once_and_use_no_memory(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    for data in (b"", b"\xc1", b"rubbish", b"\x93\x01\x02\x03", b"\x81" * 5000):
        listener.receive(data)
        with pytest.raises(cells.errors.RecordInvalid):
            decode_beat(data)
    assert len(caplog.records) == 1
    for n in range(HEARD_MAX + 10):
        listener.receive(beat_of(f"n{n}", 1, 0.0))
    listener.receive(beat_of("late", 1, 0.0))
    heard = {beat.node for beat in listener.beats()}
    assert len(heard) == HEARD_MAX
    assert "late" in heard  # garbage does not keep a node from being heard


def test_a_node_that_was_not_heard_for_long_is_forgotten() -> None:
    now = 0.0
    listener = Listener(lambda: now)
    listener.receive(beat_of("old", 1, 0.0))
    now = FORGET_S
    listener.receive(beat_of("new", 1, 0.0))
    assert {beat.node: beat.ago_s for beat in listener.beats()} == {"old": FORGET_S, "new": 0.0}
    now += 1
    assert {beat.node for beat in listener.beats()} == {"new"}
