"""Replicas, shards and the deployment's name: from the command line and from Python, kept, refused, or changed on order."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.commands import run
from support.nats_servers import WAIT_S, NatsServer, list_streams, nats_cluster, opened, raw_client
from support.processes import APP, deployment

import mielin_cells as cells
from mielin_cells.deployment.connect import find_address
from mielin_cells.substrate.jetstream import JetStream
from mielin_cells.substrate.jetstream.server import Server


async def streams_of(url: str) -> dict[str, int]:
    """The copies that the server keeps, by stream."""
    async with raw_client(url) as client:
        return {str(found.config.name): found.config.num_replicas or 0 for found in await list_streams(client)}


async def elected(servers: list[NatsServer]) -> None:
    """Returns when the cluster takes orders about streams: an order that comes earlier is lost, and waited for in vain."""
    async with raw_client(servers[0].url) as client, asyncio.timeout(WAIT_S):
        while True:
            try:
                await client.request("$JS.API.STREAM.NAMES", b"", timeout=0.2)
                return
            except TimeoutError:
                continue


async def test_only_a_store_that_syncs_each_write_is_spread_over_several_streams(server: Server) -> None:
    for name, sync, shards in (("synced", "power", 4), ("lazy", "process", 1)):
        async with opened(server.url, deployment=name, sync=sync) as first:
            assert first.shards == shards
    async with opened(server.url, deployment="lazy", sync="power") as again:
        assert again.shards == 1


async def test_options_that_differ_from_the_deployment_are_refused_everywhere(server: Server, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    options: dict[str, Any] = {"deployment": "has_two"}
    async with opened(server.url, shards=2, **options) as first:
        assert (first.shards, first.replicas) == (2, 1)
    async with cells.connect(server.url, shards=2, replicas=1, **options):
        pass
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"replicas": 3}, "keeps 1 replica"),
        ({"shards": 3}, "made with 2 shards"),
    ]
    for given, says in wrong:
        with pytest.raises(cells.ConfigError, match=says):
            async with cells.connect(server.url, **options, **given):
                pass
    there = ("--connect", server.url, "--deployment", "has_two")
    for words, says in (
        (
            ("node", "--name", "n", "--app", "app.py", "--replicas", "3"),
            "`mielin doctor --fix --replicas 3` changes it",
        ),
        (("node", "--name", "n", "--app", "app.py", "--shards", "1"), "made with 2 shards, 1 were asked for"),
        (("up", "--app", "app.py", "--replicas", "3"), "`mielin doctor --fix --replicas 3` changes it"),
        (("doctor", "--fix", "--shards", "3"), "number of shards is fixed"),
        (("doctor", "--replicas", "3"), "needs --fix"),
        (("doctor", "--fix", "--replicas", "3"), "a server alone keeps one copy"),
        (("node", "--name", "n", "--app", "app.py", "--replicas", "9"), "replicas is 9; it is 1 to 5"),
    ):
        done = await asyncio.to_thread(run, tmp_path, *words, *there)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
    fixed = await asyncio.to_thread(run, tmp_path, "doctor", "--fix", *there)
    assert fixed.returncode == 0
    assert fixed.stdout.startswith("nothing was changed")
    found = dict(line.split(maxsplit=1) for line in fixed.stdout.splitlines() if " " in line)
    assert (found["deployment"], found["shards"], found["replicas"]) == ("has_two", "2", "1")


async def test_a_look_makes_no_deployment(server: Server, tmp_path: Path) -> None:
    done = await asyncio.to_thread(run, tmp_path, "agents", "--connect", server.url, "--deployment", "mistyped")
    assert (done.returncode, "There is no deployment 'mistyped'" in done.stderr) == (1, True)
    assert not [name for name in await streams_of(server.url) if name.startswith("mistyped")]
    for words in (("agents",), ("doctor",), ("doctor", "--fix")):
        done = await asyncio.to_thread(run, tmp_path, *words, "--connect", server.url, "--deployment", "no.name>")
        assert (done.returncode, "letters, digits and _" in done.stderr) == (2, True)
    for wrong in ({"replicas": "3"}, {"shards": 0}, {"replicas": True}, {"deployment": 7}, {"deployment": ""}):
        with pytest.raises(cells.ConfigError, match=next(iter(wrong))):
            async with cells.connect(server.url, **wrong):
                pass


def test_the_deployments_name_comes_from_the_argument_the_environment_or_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / ".mielin"
    folder.mkdir()
    left = {"url": "nats://h:1", "creds": None, "tls_ca": None, "sync": "power"}
    for kept, variable, argument, found in (
        ({}, {}, None, "mielin"),
        ({"deployment": "left"}, {}, None, "left"),
        ({"deployment": "left"}, {"MIELIN_DEPLOYMENT": "named"}, None, "named"),
        ({"deployment": "left"}, {"MIELIN_DEPLOYMENT": "named"}, "given", "given"),
        ({"deployment": "left"}, {"MIELIN_URL": "nats://h:2"}, None, "mielin"),
    ):
        (folder / "address.json").write_text(json.dumps({**left, **kept}))
        address = find_address(deployment=argument, environment=variable, directory=tmp_path)
        assert address.deployment == found


def test_two_deployments_of_one_folder_do_not_see_each_other(tmp_path: Path) -> None:
    with deployment(tmp_path, 1, "--deployment", "other", "--shards", "2") as up:
        server = up.wait({"event": "server"})
        assert (server["deployment"], server["shards"], server["replicas"]) == ("other", 2, 1)
        assert up.value("spawn", "Counter", "anna")["new"] is True  # the folder says which deployment
        assert [info["id"] for info in up.value("agents")] == ["anna"]
        done = up.run("agents", "--deployment", "mielin")
        assert (done.returncode, "no deployment 'mielin'" in done.stderr) == (1, True)


async def insistently(stack: contextlib.AsyncExitStack, url: str, **options: Any) -> JetStream:
    """Opened as soon as the cluster has made the streams."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(cells.RetryError):
                return await stack.enter_async_context(opened(url, **options))
            await asyncio.sleep(0.05)


async def test_a_cluster_keeps_three_copies_unless_other_ones_are_asked_for(tmp_path: Path) -> None:
    async with nats_cluster(tmp_path / "servers") as servers:
        await elected(servers)
        url = servers[1].url
        async with contextlib.AsyncExitStack() as stack:
            made = await insistently(stack, url)
            single = await insistently(stack, url, deployment="single", replicas=1)
            assert (made.replicas, single.replicas) == (3, 1)
            with pytest.raises(cells.ConfigError, match="keeps 3 replicas"):
                await JetStream.open(servers[0].url, replicas=1)
            with pytest.raises(cells.ConfigError, match="too few servers"):
                await JetStream.open(servers[0].url, deployment="five", replicas=5)
            done = await asyncio.to_thread(
                run, tmp_path, "doctor", "--fix", "--connect", url, "--deployment", "single", "--json"
            )
            fixed, health = (json.loads(line) for line in done.stdout.splitlines())
            assert fixed["replicas"] == {
                name: {"from": 1, "to": 3}
                for name in ("single-own-2", "single-topic-0", "single-part-0", "single-log-0")
            }
            assert (health["replicas"], health["servers"]) == (3, 3)
            assert set((await streams_of(url)).values()) == {3}
        async with opened(url, deployment="single", replicas=3):
            pass
