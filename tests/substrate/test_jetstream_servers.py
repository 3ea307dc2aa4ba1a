"""A deployment that several servers have: what a client does when the one that it is connected to dies."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import pytest
from support.nats_servers import WAIT_S, NatsServer, free_ports, insisted, nats_cluster, nats_server, refused

from mielin_cells.deployment.connect import find_address
from mielin_cells.errors import AuthFailed, CellError, ConfigError, StoreUnreachable
from mielin_cells.redaction import redacted
from mielin_cells.substrate.jetstream import JetStream, connection
from mielin_cells.substrate.ports import Appended

USERS = {"users": [{"user": "u", "password": "secret"}]}


async def led(url: str) -> JetStream:
    """Open, once the cluster has a leader."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(StoreUnreachable):
                return await JetStream.open(url)
            await asyncio.sleep(0.1)


def server_of(substrate: JetStream, servers: list[NatsServer]) -> NatsServer:
    """The one that it is connected to."""
    uri = substrate._connection._nc.connected_url
    assert uri is not None
    return next(server for server in servers if server.port == uri.port)


async def test_a_client_with_a_password_goes_on_at_another_server_of_the_cluster(tmp_path: Path) -> None:
    """The other servers are only known from the first one, without a password."""
    async with nats_cluster(tmp_path, authorization=USERS) as servers:
        substrate = await led(servers[0].url_of("u"))
        try:
            first = await insisted(substrate.log, "a.x", b"1", 0)
            assert isinstance(first, Appended)
            servers[0].kill()
            assert isinstance(await insisted(substrate.log, "a.x", b"2", first.seq), Appended)
        finally:
            await substrate.close()


async def test_a_client_names_several_servers_and_opens_at_one_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is dead, and one is stopped: it takes the connection and says nothing."""
    monkeypatch.setitem(connection._OPTIONS, "connect_timeout", 0.5)
    (port,) = free_ports(1)
    dead = f"nats://127.0.0.1:{port}"
    async with nats_server(tmp_path / "a") as stopped, nats_server(tmp_path / "b", authorization=USERS) as serving:
        stopped.signal(signal.SIGSTOP)
        for _ in range(3):
            substrate = await JetStream.open(f"{dead},{stopped.url}, {serving.url_of('u')}")
            assert server_of(substrate, [stopped, serving]) is serving
            await substrate.close()
        error = await refused(JetStream.open(f"{dead},{stopped.url}"), StoreUnreachable)
        assert dead in str(error)
        assert stopped.url in str(error)
        await refused(JetStream.open(f"{serving.url_of('u', 'wrong')},{dead}"), AuthFailed)


async def test_of_several_servers_that_are_named_a_client_goes_on_at_one_that_lives(tmp_path: Path) -> None:
    """Also if none of them has told it of the others."""
    async with nats_cluster(tmp_path, authorization=USERS, advertise=False) as servers:
        substrate = await led(",".join(server.url_of("u") for server in servers))
        try:
            seq = 0
            for number in range(2):  # two of three, one after the other: the first is up again
                mine = server_of(substrate, servers)
                mine.kill()
                outcome = await insisted(substrate.log, "a.x", b"%d" % number, seq)
                assert isinstance(outcome, Appended)
                seq = outcome.seq
                await mine.start()
        finally:
            await substrate.close()


def test_several_addresses_are_checked_each(tmp_path: Path) -> None:
    given = "nats://u:p,q@A:1, TLS://B:2"
    assert find_address(given).url == "nats://u:p,q@A:1,tls://B:2"
    assert redacted("nats://u:p@a:1,nats://u:p@b:2") == "nats://a:1,nats://b:2"
    for wrong in ("nats://a:1,ws://b:2", "nats://a:1,nats://", "nats://u:p@a:1,nats://v:q@b:1"):
        with pytest.raises(ConfigError):
            find_address(wrong)
    assert issubclass(ConfigError, CellError)
