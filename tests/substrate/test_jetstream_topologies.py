"""The substrate on servers that are no single one: a supercluster, leaf servers, JetStream domains."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

from support.nats_servers import (
    WAIT_S,
    free_ports,
    insisted,
    nats_cluster,
    nats_server,
    opened,
    raw_client,
    refused,
    stored,
)
from support.topologies import leaf, open_when_led, supercluster

from mielin_cells.errors import ConfigError, JetStreamDisabled, NoResponder, NotConnected, WireTimeout
from mielin_cells.log.ids import log_subject
from mielin_cells.substrate.jetstream import JetStream
from mielin_cells.substrate.ports import Appended, Entry


async def stream_of(url: str, name: str, api: str = "$JS.API") -> dict[str, Any]:
    async with raw_client(url) as client:
        found: dict[str, Any] = json.loads((await client.request(f"{api}.STREAM.INFO.{name}", b"", timeout=5)).data)
        return found


async def is_whole(here: JetStream, there: JetStream, name: str) -> None:
    """What one appends, the other reads, hears live, and finds in the index; and requests are answered."""
    subject = log_subject(name)
    tail = there.log.tail(subject, 0)
    heard = list[Entry]()

    async def hear() -> None:
        async for batch in tail:
            heard.extend(batch)
            if len(heard) == 3:
                return

    listening = asyncio.create_task(hear())
    seq = 0
    for number in range(3):
        outcome = await here.log.append(subject, b"%d" % number, seq, "node-1" if number != 1 else None)
        assert isinstance(outcome, Appended)
        seq = outcome.seq
    async with asyncio.timeout(WAIT_S):
        await listening
        assert [one.data for one in heard] == [b"0", b"1", b"2"]
        assert [one.data for one in await there.log.read(subject, 0, 10)] == [b"0", b"1", b"2"]
        last = await there.log.settled(subject)
        assert last is not None
        assert last.seq == seq
        while subject not in await there.log.owned("node-1"):
            await asyncio.sleep(0.02)
    tail.close()

    async def answer(data: bytes) -> bytes:
        return data + b"!"

    served, answered = await there.wire.serve(f"of.{name}", answer), b""
    async with asyncio.timeout(WAIT_S):
        while not answered:  # it takes a moment until every server knows who serves
            with contextlib.suppress(NoResponder, WireTimeout):
                answered = await here.wire.request(f"of.{name}", b"hi", 5.0)
    assert answered == b"hi!"
    served.close()


async def test_streams_of_a_supercluster_are_placed_by_tag_and_used_from_both_clusters(tmp_path: Path) -> None:
    async with supercluster(tmp_path) as clusters:
        east, west = (clusters[name][0].url for name in ("east", "west"))
        # Asked for in the west: without tags they would be there.
        far = await open_when_led(west, shards=2, placement_tags=("region:east",))
        assert (far.replicas, far.shards) == (3, 2)
        for name in ("mielin-log-0", "mielin-log-1", "mielin-part-0", "mielin-own-1"):
            info = await stream_of(west, name)
            assert info["config"]["placement"] == {"tags": ["region:east"]}
            assert info["cluster"]["name"] == "east"
        near = await JetStream.open(east, placement_tags=("REGION:east",))
        await is_whole(near, far, "a")
        await is_whole(far, near, "b")
        error = await refused(JetStream.open(west, placement_tags=("region:west",)), ConfigError)
        assert error.field == "placement_tags"
        error = await refused(JetStream.open(west, deployment="other", placement_tags=("region:north",)), ConfigError)
        assert error.field == "placement_tags"
        async with opened(west, deployment="local", placement_tags=("region:west",)) as alone:
            assert alone.replicas == 1
            assert (await stream_of(east, "local-log-0"))["cluster"]["name"] == "west"

        # The whole west dies; the east has a majority of all servers, and goes on.
        clusters["west"][0].kill()
        seq = await stored(near.log, "a.x", b"1", 0)
        outcome = asyncio.create_task(insisted(far.log, "a.x", b"2", seq))
        await asyncio.sleep(0)
        await clusters["west"][0].start()
        assert isinstance(await outcome, Appended)
        await is_whole(near, far, "c")
        await near.close()
        await far.close()


async def test_a_leaf_without_jetstream_is_a_way_to_the_hub(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    async with (
        nats_server(
            tmp_path / "hub", leafnodes={"host": "127.0.0.1", "port": port}, jetstream={"domain": "hub"}
        ) as hub,
        leaf(tmp_path / "leaf", [port], jetstream=None) as edge,
        opened(hub.url) as near,
        opened(edge.url, domain="hub") as far,
    ):
        assert "--domain" in str(await refused(JetStream.open(edge.url), JetStreamDisabled))
        await refused(JetStream.open(edge.url, domain="a.b"), ConfigError)
        await is_whole(near, far, "a")
        await is_whole(far, near, "b")
        hub.kill()
        waiting = asyncio.create_task(insisted(far.log, "a.x", b"1", 0))
        await asyncio.sleep(0)
        await hub.start()
        assert isinstance(await waiting, Appended)
        await is_whole(near, far, "c")


async def test_a_leaf_with_a_jetstream_of_its_own_reaches_the_hubs_by_its_domain(tmp_path: Path) -> None:
    """And without it makes a deployment of its own, of another name, in its own."""
    (port,) = free_ports(1)
    async with (
        nats_server(
            tmp_path / "hub", leafnodes={"host": "127.0.0.1", "port": port}, jetstream={"domain": "hub"}
        ) as hub,
        leaf(tmp_path / "leaf", [port], jetstream={"domain": "edge"}) as edge,
        opened(hub.url, shards=2) as near,
    ):
        await refused(JetStream.open(edge.url, makes=False), NotConnected)
        await refused(JetStream.open(edge.url, domain="nowhere"), JetStreamDisabled)
        async with opened(edge.url, domain="hub") as far, opened(edge.url, deployment="own") as own:
            assert far.shards == 2
            await is_whole(near, far, "a")
            await is_whole(far, near, "b")
            await is_whole(own, own, "c")
            assert "error" in await stream_of(edge.url, "mielin-log-0")


async def test_a_client_at_a_leaf_of_a_cluster_reads_as_one_of_the_cluster(tmp_path: Path) -> None:
    """A leaf says nothing of a cluster: that there are replicas, which may be behind, is seen from the streams."""
    ports = free_ports(3)
    async with (
        nats_cluster(tmp_path / "hub", leafs=ports, jetstream={"domain": "hub"}) as servers,
        leaf(tmp_path / "leaf", ports, jetstream=None) as edge,
    ):
        far = await open_when_led(edge.url, domain="hub")
        assert far.replicas == 3
        facts = await JetStream.inspected(edge.url, domain="hub")
        assert facts.in_cluster
        assert not facts.missing
        async with opened(servers[1].url) as near:
            await is_whole(near, far, "a")
            await is_whole(far, near, "b")
            await insisted(far.log, "a.x", b"1", 0)
            async with raw_client(servers[0].url) as client:
                asked = json.dumps({"subjects_filter": "mielin.log.0.mark"}).encode()
                info = json.loads((await client.request("$JS.API.STREAM.INFO.mielin-log-0", asked)).data)
                marks = info["state"]["subjects"]["mielin.log.0.mark"]
                await far.log.settled("a.x")
                info = json.loads((await client.request("$JS.API.STREAM.INFO.mielin-log-0", asked)).data)
                assert info["state"]["subjects"]["mielin.log.0.mark"] == marks + 1
        await far.close()
