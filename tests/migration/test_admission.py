"""What a node takes by a move: every reason against it is named, and what is promised to one agent is not to another."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.nodes import deployment
from support.waiting import until

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.migration.admission import Facts, Offer, refusals
from mielin_cells.node.moves.admission import Room, room_of
from mielin_cells.rpc import requests
from mielin_cells.rpc.call import call

OFFER = Offer(cls="Shelf", version=2, state_bytes=1000)
ABLE = Facts(
    name="node-2", version=2, architecture="riscv64", memory_bytes=1000, storage_bytes=1000, state_bytes_max=1000
)


def test_a_node_that_has_just_enough_takes_the_agent() -> None:
    assert refusals(OFFER, ABLE) == ()


def test_unknown_quantities_are_not_checked() -> None:
    unknown = replace(ABLE, memory_bytes=None, storage_bytes=None, state_bytes_max=None, reserved_bytes=10**12)
    assert refusals(replace(OFFER, state_bytes=10**15), unknown) == ()


@pytest.mark.parametrize(
    ("offer", "node", "reason"),
    [
        ({}, {"is_stopping": True}, "node-2 is stopping and takes no agents"),
        ({}, {"is_hosting": True}, "node-2 runs it already"),
        ({}, {"verifies": "m-9"}, "node-2 is verifying migration m-9 of it"),
        ({}, {"version": None}, "node-2 does not know the agent class 'Shelf'; import its module there"),
        (
            {},
            {"version": None, "class_error": "Shelf.x: Any cannot be stored."},
            "node-2 cannot use the agent class 'Shelf': Shelf.x: Any cannot be stored",
        ),
        ({"version": 3}, {}, "its state is of Shelf version 3, and node-2 has version 2"),
        ({"version": 0}, {}, "its state is of Shelf version 0, and versions begin at 1"),
        ({"version": -(2**63)}, {}, f"its state is of Shelf version {-(2**63)}, and versions begin at 1"),
        (
            {"version": 1},
            {"version": 4, "upgrades_from": frozenset({1, 3})},
            "its state is of Shelf version 1, and node-2 has version 4 without an upgrade from 2",
        ),
        ({"architectures": ("x86_64", "arm64")}, {}, "it runs on x86_64 or arm64, and node-2 is riscv64"),
        (
            {"architectures": ("x86_64",)},
            {"architecture": ""},
            "it runs on x86_64, and node-2 is of an unknown architecture",
        ),
        ({}, {"state_bytes_max": 999}, "its state has 1,000 bytes, and node-2 takes at most 999"),
        ({}, {"memory_bytes": 999}, "it needs 1,000 bytes of memory, and node-2 has 999 free"),
        ({}, {"storage_bytes": 999}, "it needs 1,000 bytes of storage, and node-2 has 999 free"),
        ({"state_bytes": -1}, {}, "its state is said to have -1 bytes, which is not a size"),
    ],
)
def test_each_reason_names_what_there_is_and_what_is_needed(
    offer: dict[str, Any], node: dict[str, Any], reason: str
) -> None:
    assert list(map(str, refusals(replace(OFFER, **offer), replace(ABLE, **node)))) == [reason]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_older_state_is_taken_where_every_upgrade_is_there(version: int) -> None:
    node = replace(ABLE, version=3, upgrades_from=frozenset({1, 2}))
    assert refusals(replace(OFFER, version=version, architectures=("riscv64", "x86_64")), node) == ()


def test_reserved_memory_is_not_free() -> None:
    node = replace(ABLE, memory_bytes=1999, storage_bytes=500, reserved_bytes=1000)
    assert list(map(str, refusals(OFFER, node))) == [
        "it needs 1,000 bytes of memory, and node-2 has 999 free (1,999 less 1,000 reserved)",
        "it needs 1,000 bytes of storage, and node-2 has 0 free (500 less 1,000 reserved)",
    ]


def test_every_reason_is_named_not_the_first_alone() -> None:
    offer = replace(OFFER, version=3, state_bytes=5000, architectures=("x86_64",))
    node = replace(ABLE, is_stopping=True, is_hosting=True, verifies="m-9")
    reasons = list(map(str, refusals(offer, node)))
    words = [
        "is stopping",
        "runs it already",
        "is verifying",
        "version 3",
        "x86_64",
        "of memory",
        "of storage",
        "at most",
    ]
    assert [next(word for word in words if word in reason) for reason in reasons] == words


# ---- nodes -----------------------------------------------------------------------------------------------------


class Shelf(cells.Agent):
    load: bytes = b""

    @cells.handler
    async def size(self) -> int:
        return len(self.load)

    @cells.handler
    async def rest(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Archive(cells.Agent, version=2):
    load: bytes = b""

    @cells.handler
    async def size(self) -> int:
        return len(self.load)


async def offered(cluster: Client, to: str, request: requests.Prepare) -> list[str]:
    return (await call(cluster.wire, to, request, 5.0)).reasons


def offer_of(agent: str, size: int, migration: str = "m-1", **more: Any) -> requests.Prepare:
    return requests.Prepare(agent, migration, "node-1", "Shelf", 1, size, 1, **more)


async def test_a_refused_move_names_every_reason_and_the_agent_keeps_running() -> None:
    settings = cells.Settings(state_bytes_max=100)
    async with deployment("node-1", "node-2", settings=settings, recovery=None) as made:
        cluster, running = made.client, made.nodes
        running["node-2"].copies._room = lambda: Room(memory_bytes=64, storage_bytes=32)
        shelf = await cluster.on("node-1").spawn(Shelf, "s", load=b"x" * 500)

        with pytest.raises(cells.MigrationRefused) as refused:
            await cluster.migrate(shelf, to="node-2")

        assert [reason.partition(", and node-2 ")[2] for reason in refused.value.reasons] == [
            "has 64 free", "has 32 free", "takes at most 100",
        ]  # fmt: skip
        assert all(reason in refused.value.message for reason in refused.value.reasons)
        assert "which runs on at node-1" in refused.value.message
        assert running["node-2"].copies.by_agent == {}
        assert await shelf.size() == 500
        assert (await cluster.show(shelf)).node == "node-1"


async def test_a_node_that_stops_says_so_among_the_other_reasons() -> None:
    async with deployment("node-1", "node-2", recovery=None) as made:
        cluster, running = made.client, made.nodes
        shelf = await cluster.on("node-1").spawn(Shelf, "s", load=b"x" * 500)
        running["node-2"].copies._room = lambda: Room(memory_bytes=64)
        running["node-2"].activations.stop()

        with pytest.raises(cells.MigrationRefused, match="node-2 is stopping and takes no agents; it needs 5"):
            await cluster.migrate(shelf, to="node-2")

        assert await shelf.size() == 500


async def test_two_moves_to_one_node_do_not_count_the_same_memory() -> None:
    async with deployment("node-1", "node-2", recovery=None) as made:
        cluster, running = made.client, made.nodes
        running["node-2"].copies._room = lambda: Room(memory_bytes=1000)
        first, second = [await cluster.on("node-1").spawn(Shelf, name, load=b"x" * 500) for name in ("a", "b")]

        assert await offered(cluster, "node-2", offer_of("a", 600)) == []
        with pytest.raises(cells.MigrationRefused, match=r"has 400 free \(1,000 less 600 reserved\)"):
            await cluster.migrate(second, to="node-2")
        await call(cluster.wire, "node-2", requests.Release("a", "m-1"), 5.0)

        assert (await cluster.migrate(second, to="node-2")).ok
        assert running["node-2"].copies.by_agent == {}
        assert (await cluster.migrate(first, to="node-2")).ok
        assert [await first.size(), await second.size()] == [500, 500]


async def test_a_repeated_request_meets_its_own_reservation_and_a_later_move_replaces_it() -> None:
    async with deployment("node-1", "node-2", recovery=None) as made:
        cluster, running = made.client, made.nodes
        target = running["node-2"]
        target.copies._room = lambda: Room(memory_bytes=1000)
        for migration in ("m-1", "m-1", "m-2", "m-2"):
            assert await offered(cluster, "node-2", offer_of("a", 600, migration)) == []
        assert [copy.migration for copy in target.copies.by_agent.values()] == ["m-2"]
        assert sum(copy.reserved_bytes for copy in target.copies.by_agent.values()) == 600


async def test_a_reservation_that_no_copy_follows_expires() -> None:
    async with deployment("node-1", "node-2", settings=cells.Settings(prepare_s=0.02), recovery=None) as made:
        cluster, running = made.client, made.nodes
        assert await offered(cluster, "node-2", offer_of("a", 600)) == []
        assert "a" in running["node-2"].copies.by_agent
        await until(lambda: not running["node-2"].copies.by_agent)


@pytest.mark.parametrize("end", ["completed", "cancelled"])
async def test_the_reservation_ends_with_the_move(end: str) -> None:
    async with deployment("node-1", "node-2", recovery=None) as made:
        cluster, running = made.client, made.nodes
        shelf = await cluster.on("node-1").spawn(Shelf, "s", load=b"x" * 500)
        busy = asyncio.create_task(shelf.rest(0.2))
        moving = asyncio.create_task(cluster.migrate(shelf, to="node-2"))
        await until(lambda: running["node-2"].copies.by_agent, pause_s=0)
        reserved = running["node-2"].copies.by_agent["s"].reserved_bytes
        if end == "cancelled":
            await cluster.abort(shelf)

        report = await moving
        await busy

        assert reserved >= 500
        assert report.ok is (end == "completed")
        await until(lambda: not running["node-2"].copies.by_agent, pause_s=0)
        assert await shelf.size() == 500


async def test_the_wire_carries_where_an_agent_can_run() -> None:
    async with deployment("node-1", "node-2", recovery=None) as made:
        cluster, running = made.client, made.nodes
        running["node-2"].copies._architecture = "riscv64"
        reasons = await offered(cluster, "node-2", offer_of("a", 1, architectures=["x86_64"]))
        assert reasons == ["it runs on x86_64, and node-2 is riscv64"]
        assert await offered(cluster, "node-2", offer_of("a", 1, architectures=["x86_64", "riscv64"])) == []


async def test_a_state_without_an_upgrade_is_refused_before_it_is_copied() -> None:
    async with deployment("node-1", "node-2") as made:
        cluster = made.client
        old = requests.Prepare("a", "m-1", "node-1", "Archive", 1, 1, 1)
        assert await offered(cluster, "node-2", old) == [
            "its state is of Archive version 1, and node-2 has version 2 without an upgrade from 1"
        ]


async def test_a_local_cluster_looks_at_this_machine(tmp_path: Path) -> None:
    on_disk, in_memory = room_of(str(tmp_path / "cells.db"))(), room_of(None)()
    assert on_disk.memory_bytes
    assert on_disk.storage_bytes
    assert in_memory.memory_bytes
    assert in_memory.storage_bytes is None

    async with cells.local(
        nodes=2, path=tmp_path / "cells.db", settings=cells.Settings(state_bytes_max=100)
    ) as cluster:
        shelf = await cluster.spawn(Shelf, "s", load=b"x" * 500)
        with pytest.raises(cells.MigrationRefused, match="takes at most 100"):
            await cluster.migrate(shelf, to="node-2")
        small = await cluster.on("node-1").spawn(Shelf, "t")
        assert (await cluster.migrate(small, to="node-2")).ok


async def test_free_storage_that_cannot_be_seen_is_not_checked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert room_of(str(tmp_path / "gone" / "cells.db"))().storage_bytes is None
    assert "free storage" in caplog.text
