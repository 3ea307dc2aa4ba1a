"""Getting in: wrong addresses, credentials, certificates and servers.  Each is named, with the next step, in bounded time."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.nats_servers import WAIT_S, free_ports, insisted, listening, nats_server, opened, refused, stored

from mielin_cells.deployment.connect import find_address
from mielin_cells.errors import (
    AuthFailed,
    CellError,
    ConfigError,
    JetStreamDisabled,
    ServerTooOld,
    StoreUnreachable,
)
from mielin_cells.redaction import redacted, scrubbed
from mielin_cells.substrate.jetstream import JetStream, connection
from mielin_cells.substrate.ports import Appended, Entry


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """Neither a task that goes on trying, nor (as warnings are errors) a socket."""
    yield
    for _ in range(3):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ---- the wrong place -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "", "nats://", "nats://:4222", "nats://127.0.0.1:0", "nats://127.0.0.1:99999", "nats://127.0.0.1:port", "://x",
        "nats://user:secret@", "nats://user:secret/x@127.0.0.1:1", "http://127.0.0.1:1", "ws://127.0.0.1:1",
        "nats://127.0.0.1:1\r\nPUB x 0", "nats://a b:1", "nats://[::1", "user:secret@host:port",
    ],
)  # fmt: skip
async def test_a_malformed_address_is_refused_before_anything_is_tried(url: str) -> None:
    assert (await refused(JetStream.open(url), ConfigError)).field == "connect"


async def test_a_closed_port_is_named_with_the_next_step() -> None:
    (port,) = free_ports(1)
    for url in (f"nats://user:secret@127.0.0.1:{port}", f"127.0.0.1:{port}", f"tls://127.0.0.1:{port}"):
        error = await refused(JetStream.open(url), StoreUnreachable)
        assert f"127.0.0.1:{port}" in str(error)
        assert "--connect" in str(error)


async def test_a_scheme_in_capitals_is_a_scheme(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server, opened(server.url.replace("nats://", "NATS://")) as substrate:
        assert isinstance(await substrate.log.append("a.x", b"1", 0), Appended)
    assert find_address("Tls://Host:4222").url == "tls://Host:4222"
    assert find_address(environment={"MIELIN_URL": "NATS://Host:4222"}).url == "nats://Host:4222"


async def test_an_unknown_host_is_named() -> None:
    assert "no-such-host.invalid" in str(
        await refused(JetStream.open("nats://no-such-host.invalid:4222"), StoreUnreachable)
    )


@pytest.mark.parametrize(
    "greeting",
    [
        b"", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"INFO\r\n", b"INFO \r\n",
        b"INFO {\r\n", b"INFO []\r\n", b"INFO {}\r\n", b'INFO {"version": 2, "max_payload": 5}\r\n', b"\x00" * 200_000,
        b'INFO {"version": "2.15.0", "max_payload": "big"}\r\n', b"INFO " + b"x" * 200_000 + b"\r\n", b"INFO \xff\r\n",
        b'INFO {"version": "2.15.0", "max_payload": 1048576}\r\n-ERR \'no\'\r\n',
        b'INFO {"version": "2.15.0", "max_payload": 1048576}\r\nwhatever\r\n',
        b'INFO {"version": "2.15.0", "max_payload": 1048576, "connect_urls": 5}\r\n',
    ],
)  # fmt: skip
async def test_a_service_that_does_not_speak_nats_is_named(greeting: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some other service has the port: it says something else, or waits for us to begin."""
    monkeypatch.setitem(connection._OPTIONS, "connect_timeout", 0.2)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read()

    async with listening(serve) as port:
        error = await refused(JetStream.open(f"nats://127.0.0.1:{port}"), StoreUnreachable)
        assert f"127.0.0.1:{port}" in str(error)


async def test_a_service_that_hangs_up_is_named() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with listening(serve) as port:
        await refused(JetStream.open(f"nats://127.0.0.1:{port}"), StoreUnreachable)


async def test_giving_up_an_open_leaves_nothing() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " + json.dumps(greeting_of("2.15.1")).encode() + b"\r\n")
        await reader.readline()
        reached.set()
        await reader.read()

    reached = asyncio.Event()
    async with listening(serve) as port:
        opening = asyncio.create_task(JetStream.open(f"nats://127.0.0.1:{port}"))
        await reached.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening


# ---- the wrong server ----------------------------------------------------------------------------------------


async def test_a_server_without_jetstream_is_named(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "s", jetstream=None) as server:
        assert "nats-server -js" in str(await refused(JetStream.open(server.url), JetStreamDisabled))


async def test_an_account_without_jetstream_is_named(tmp_path: Path) -> None:
    accounts = {
        "WITH": {"jetstream": "enabled", "users": [{"user": "with", "password": "secret"}]},
        "WITHOUT": {"users": [{"user": "without", "password": "secret"}]},
    }
    async with nats_server(tmp_path / "s", accounts=accounts) as server:
        await refused(JetStream.open(server.url_of("without")), JetStreamDisabled)
        async with opened(server.url_of("with")) as substrate:
            await stored(substrate.log, "a.x", b"1", 0)


def greeting_of(version: str) -> dict[str, Any]:
    return {"server_id": "x", "version": version, "max_payload": 1_048_576, "headers": True, "proto": 1}


@pytest.mark.parametrize(
    ("version", "is_refused"),
    [
        ("2.9.25", True),
        ("2.11.99", True),
        ("1.4.1", True),
        ("banana", True),
        ("", True),
        ("2.12.0", False),
        ("3.0.0-beta", False),
    ],
)
async def test_an_old_server_is_named_with_what_is_needed(version: str, is_refused: bool) -> None:
    """A server of another version is not at hand; what it says of itself is what counts."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " + json.dumps(greeting_of(version)).encode() + b"\r\n")
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
            elif line.startswith((b"PUB", b"HPUB")):
                writer.close()

    async with listening(serve) as port:
        error = await refused(
            JetStream.open(f"nats://127.0.0.1:{port}"), ServerTooOld if is_refused else StoreUnreachable
        )
        if is_refused:
            assert (error.have, error.need) == (version, "2.12.0")


# ---- the wrong credential ------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["", "user:wrong@", "other:secret@", "user@", "user:secr@et@", ":@"])
async def test_a_wrong_credential_is_named(who: str, tmp_path: Path) -> None:
    users = {"users": [{"user": "user", "password": "secret"}]}
    async with nats_server(tmp_path / "s", authorization=users) as server:
        error = await refused(JetStream.open(f"nats://{who}127.0.0.1:{server.port}"), AuthFailed)
        assert f"nats://127.0.0.1:{server.port}" in str(error)
        assert "--creds" in str(error)
        async with opened(server.url_of("user")) as substrate:
            await stored(substrate.log, "a.x", b"1", 0)


async def test_a_credential_that_was_withdrawn_is_named_and_tried_again(tmp_path: Path) -> None:
    users = {"users": [{"user": "user", "password": "secret"}]}
    async with nats_server(tmp_path / "s", authorization=users) as server, opened(server.url_of("user")) as substrate:
        seq = await stored(substrate.log, "a.x", b"1", 0)
        server.kill()
        users["users"][0]["password"] = "another"
        await server.start()
        async with asyncio.timeout(WAIT_S):
            while "uthorization" not in (said := str(await refused(substrate.log.last("a.x"), StoreUnreachable))):
                await asyncio.sleep(0.01)
        assert "another" not in said
        server.kill()
        users["users"][0]["password"] = "secret"
        await server.start()
        assert isinstance(await insisted(substrate.log, "a.x", b"2", seq), Appended)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://user:secret@host:1", "nats://host:1"), ("nats://secret@host", "nats://host"), ("nats://host:1", "nats://host:1"),
        ("nats://u:se/cret@host:1", "nats://host:1"), ("nats://u:secr@et@host:1", "nats://host:1"), ("u:secret@host", "host"),
        ("nats://u:sec\nret@host", "nats://host"), ("host:1", "host:1"), ("tls://u:a//b@host", "tls://host"),
        ("nats://host:1?password=secret", "nats://host:1?..."), ("nats://u:a?b@host", "nats://host"), ("nats://host#secret", "nats://host#..."),
        ("user:secret", "user:..."), ("nats://user:secret", "nats://user:..."), ("nats://[::1]:4222", "nats://[::1]:4222"),
        ("nats://host:1/", "nats://host:1/"), ("host", "host"), ("nats:/host:1", "nats:/host:1"),
    ],
)  # fmt: skip
def test_an_address_is_shown_without_what_lets_one_in(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_addresses_in_a_text_are_shown_without_what_lets_one_in() -> None:
    told = "no route to 'nats://u:secret@h:1', nor to tls://secret@g; ask admin@example.com"
    assert scrubbed(told) == "no route to 'nats://h:1', nor to tls://g; ask admin@example.com"
    assert scrubbed("""no route to "nats://u:o'se"cret@h:1".""") == 'no route to "nats://h:1".'
    kept = """{"url":"nats://h:1","mail":"admin@example.com"} ('nats://h', 'a@b')"""
    assert scrubbed(kept) == kept


CREDS = """-----BEGIN NATS USER JWT-----
eyJ0eXAiOiJKV1QifQ.e30.c2ln
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
SUAIBDPBAUTWCWBKIO6XHQNINK5FWJW4OHLXC3HQ2KFE4PEJUA44CNHTC4
------END USER NKEY SEED------
"""


@pytest.mark.parametrize("text", [None, b"", b"\xff\xfe" * 100, CREDS.partition("-----BEGIN USER")[0].encode()])
async def test_a_file_without_credentials_is_refused_at_once(text: bytes | None, tmp_path: Path) -> None:
    """The library would look for its lines for ever."""
    path = tmp_path / "user.creds"
    if text is not None:
        path.write_bytes(text)
    error = await refused(JetStream.open("nats://127.0.0.1:1", creds=path), ConfigError)
    assert error.field == "creds"
    assert str(path) in str(error)


async def test_a_credentials_file_without_its_package_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nkeys", None)
    path = tmp_path / "user.creds"
    path.write_text(CREDS)
    error = await refused(JetStream.open("nats://127.0.0.1:1", creds=path), ConfigError)
    assert error.field == "creds"
    assert "pip install nkeys" in str(error)


# ---- TLS -----------------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority of the test's own, and certificates by it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.path = folder / "ca.pem"
        self._run("req", "-x509", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem", *KEY)

    def certificate(self, names: str) -> dict[str, str]:
        """The server's `tls` settings with a certificate for these names."""
        (self.folder / "names").write_text(f"subjectAltName={names}")
        self._run("req", "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.csr", *KEY)
        self._run(
            "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-extfile", "names", "-out", "server.pem",
        )  # fmt: skip
        return {"cert_file": str(self.folder / "server.pem"), "key_file": str(self.folder / "server.key")}

    def _run(self, *words: str) -> None:
        program = shutil.which("openssl")
        assert program, "these tests make certificates with openssl"
        subprocess.run([program, *words], cwd=self.folder, check=True, capture_output=True)


KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


async def test_tls_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    """Right, wrong and no authority; a certificate for another name; and everything over it."""
    right, wrong = Authority(tmp_path / "right"), Authority(tmp_path / "wrong")
    settings = right.certificate("IP:127.0.0.1")
    async with nats_server(tmp_path / "s", tls=settings) as server:
        seq = 0
        for scheme in ("nats", "tls"):
            url = f"{scheme}://127.0.0.1:{server.port}"
            async with opened(url, tls_ca=right.path) as substrate:
                seq = await stored(substrate.log, "a.x", scheme.encode(), seq)
                assert await substrate.log.last("a.x") == Entry(seq, scheme.encode())
            for authority in (wrong.path, None):
                error = await refused(JetStream.open(url, tls_ca=authority), AuthFailed)
                assert "--tls-ca" in str(error)
        error = await refused(JetStream.open(f"tls://localhost:{server.port}", tls_ca=right.path), AuthFailed)
        assert "localhost" in str(error)
        async with opened(server.url, tls_ca=right.path) as substrate:
            server.kill()
            await server.start()
            await insisted(substrate.log, "a.x", b"again", seq)
            assert [entry.data for entry in await substrate.log.read("a.x")] == [b"nats", b"tls", b"again"]


@pytest.mark.parametrize("scheme", ["nats", "tls"])
async def test_a_server_without_tls_does_not_get_the_password(scheme: str, tmp_path: Path) -> None:
    """Somebody in between could take the word TLS out of its greeting."""
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " + json.dumps({**greeting_of("2.15.1"), "tls_available": True}).encode() + b"\r\n")
        heard.extend(await reader.read())

    authority = Authority(tmp_path / "ca").path if scheme == "nats" else None
    async with listening(serve) as port:
        url = f"{scheme}://user:secret@127.0.0.1:{port}"
        assert "TLS" in str(await refused(JetStream.open(url, tls_ca=authority), AuthFailed))
    assert heard == b""


@pytest.mark.parametrize("text", [None, "", "no certificate"])
async def test_a_file_that_is_no_certificate_is_named(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    error: CellError = await refused(JetStream.open("nats://127.0.0.1:1", tls_ca=path), ConfigError)
    assert error.field == "tls_ca"
    assert str(path) in str(error)
