"""The server of `mielin up`: private, on the loopback, one for each folder, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from support.nats_servers import WAIT_S, opened, refused, stored

from mielin_cells.errors import AuthFailed, ConfigError, StoreInUse, StoreUnreachable
from mielin_cells.substrate.jetstream import JetStream
from mielin_cells.substrate.jetstream.server import _DIE_WITH_PARENT, Server, find_program
from mielin_cells.substrate.ports import Entry

HOLDER = """
import asyncio, sys
from mielin_cells.substrate.jetstream.server import Server

async def main() -> None:
    server = await Server.start(sys.argv[1], sync="lazy")
    print(server.process.pid, server.url, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def running(folder: Path, wait_s: float = WAIT_S) -> AsyncIterator[Server]:
    server = await Server.start(folder, sync="lazy", wait_s=wait_s)
    try:
        yield server
    finally:
        await server.stop()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def ports_files(folder: Path) -> int:
    return len(list(folder.glob("*.ports")))


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that starts a server there, and prints its id and address."""
    return subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)


# ---- private -------------------------------------------------------------------------------------------------


async def test_the_credential_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask says; and it is nowhere that others can see."""
    before = os.umask(0)
    try:
        async with running(tmp_path / "new" / "s") as server:
            folder = server.folder
            assert mode(folder) == 0o700
            assert {name: mode(folder / name) for name in ("credential", "server.conf", "lock")} == {
                "credential": 0o600, "server.conf": 0o600, "lock": 0o600,
            }  # fmt: skip
            secret = (folder / "credential").read_text().strip()
            assert urlsplit(server.url).password == secret
            assert len(secret) >= 32
            assert secret not in " ".join(psutil.Process(server.process.pid).cmdline())
            assert secret not in (folder / "server.log").read_text()
            bare = f"nats://127.0.0.1:{urlsplit(server.url).port}"
            for url in (bare, bare.replace("//", "//mielin:guessed@")):
                await refused(JetStream.open(url), AuthFailed)
            async with opened(server.url) as substrate:
                await stored(substrate.log, "a.x", b"1", 0)
    finally:
        os.umask(before)


async def test_a_credential_file_that_others_can_read_is_mended(tmp_path: Path) -> None:
    (tmp_path / "credential").write_text("known-to-all\n")
    (tmp_path / "credential").chmod(0o644)
    async with running(tmp_path) as server:
        assert mode(tmp_path / "credential") == 0o600
        assert urlsplit(server.url).password != "known-to-all"


async def test_it_listens_on_the_loopback_only(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        connections = psutil.Process(server.process.pid).net_connections()
        ports = {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}
        assert ports == {urlsplit(server.url).port}
        assert {one.laddr.ip for one in connections} == {"127.0.0.1"}


async def test_two_folders_have_two_servers_that_know_nothing_of_each_other(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as one, running(tmp_path / "b") as two:
        assert one.url != two.url
        assert urlsplit(one.url).password != urlsplit(two.url).password
        async with opened(one.url) as first, opened(two.url) as second:
            await stored(first.log, "a.x", b"1", 0)
            assert await second.log.last("a.x") is None


# ---- data and sync -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_the_next_server_of_a_folder_goes_on(how: str, tmp_path: Path) -> None:
    server = await Server.start(tmp_path)
    async with opened(server.url) as substrate:
        seq = await stored(substrate.log, "a.x", b"1", 0)
    if how == "stop":
        await server.stop()
        await server.stop()
    else:
        server.process.kill()
        server.process.wait()
        await server.stop()
    assert server.process.returncode is not None
    async with running(tmp_path) as again:
        assert urlsplit(again.url).password == urlsplit(server.url).password
        async with opened(again.url) as substrate:
            assert await substrate.log.last("a.x") == Entry(seq, b"1")


async def test_the_sync_setting_is_the_servers(tmp_path: Path) -> None:
    """What is reported is what the server was told; "always" is the default."""
    server = await Server.start(tmp_path / "always")
    await server.stop()
    assert server.sync == "power"
    assert json.loads((server.folder / "server.conf").read_text())["jetstream"]["sync_interval"] == "always"
    async with running(tmp_path / "lazy") as lazy:
        assert lazy.sync == "process"
        assert json.loads((lazy.folder / "server.conf").read_text())["jetstream"]["sync_interval"] == "2m"


async def test_leftovers_of_a_crash_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    """An empty credential, half a configuration, the ports file of a server long gone."""
    (tmp_path / "credential").write_text("")
    (tmp_path / "credential").chmod(0o600)
    (tmp_path / "server.conf").write_text('{"host": "0.0.0.')
    (tmp_path / "server.conf.new").write_text("x")
    for name in ("nats-server_1.ports", f"nats-server_{os.getpid()}.ports"):
        (tmp_path / name).write_text('{"nats": ["nats://127.0.0.1:1"]}')
    async with running(tmp_path) as server, opened(server.url) as substrate:
        await stored(substrate.log, "a.x", b"1", 0)
        assert ports_files(tmp_path) == 1


# ---- one at a time -------------------------------------------------------------------------------------------


async def test_a_second_server_on_a_folder_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path) as server, opened(server.url) as substrate:
        error = await refused(Server.start(tmp_path, wait_s=0.0), StoreInUse)
        assert error.path == str(tmp_path)
        assert "--dir" in str(error)
        await stored(substrate.log, "a.x", b"1", 0)
        assert ports_files(tmp_path) == 1


async def test_the_next_server_waits_for_the_lock(tmp_path: Path) -> None:
    first = await Server.start(tmp_path, sync="lazy")
    second = asyncio.create_task(Server.start(tmp_path, sync="lazy", wait_s=WAIT_S))
    await asyncio.sleep(0)
    assert not second.done()
    async with opened(first.url) as substrate:
        seq = await stored(substrate.log, "a.x", b"1", 0)
    await first.stop()
    server = await second
    async with opened(server.url) as substrate:
        assert await substrate.log.last("a.x") == Entry(seq, b"1")
    await server.stop()


async def test_giving_up_a_start_leaves_no_server_and_no_lock(tmp_path: Path) -> None:
    before = psutil.Process().children()
    for steps in (1, 2, 5):
        starting = asyncio.create_task(Server.start(tmp_path, sync="lazy"))
        for _ in range(steps):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert psutil.Process().children() == before
    async with running(tmp_path, wait_s=0.0):
        pass


# ---- the parent ----------------------------------------------------------------------------------------------


async def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """And the next one has the folder, with everything that was acknowledged."""
    with holder(tmp_path) as parent:
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().split()
        child = psutil.Process(int(pid))
        assert child.ppid() == parent.pid
        async with opened(url) as substrate:
            seq = await stored(substrate.log, "a.x", b"1", 0)
        parent.send_signal(signal.SIGKILL)
        assert parent.wait(WAIT_S) == -signal.SIGKILL
        async with running(tmp_path) as server, opened(server.url) as substrate:
            assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
            assert await substrate.log.last("a.x") == Entry(seq, b"1")


async def test_a_server_that_outlives_its_parent_keeps_the_folder(tmp_path: Path) -> None:
    """It ends a moment after its parent; until then nobody else may write there."""
    with holder(tmp_path) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline().split()[0]))
        server.suspend()
        parent.kill()
        parent.wait(WAIT_S)
        await refused(Server.start(tmp_path, wait_s=0.0), StoreInUse)
        waiting = asyncio.create_task(Server.start(tmp_path, sync="lazy", wait_s=WAIT_S))
        server.resume()
        await (await waiting).stop()


def test_a_parent_that_dies_before_the_server_begins_leaves_none(tmp_path: Path) -> None:
    """The launcher looks for its parent once more, after it has asked to die with it."""
    command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, "1", "/bin/echo", "began"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


# ---- the program ---------------------------------------------------------------------------------------------


def test_a_missing_program_names_every_way_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError) as error:
        find_program()
    for word in ("mielin-cells[server]", "PATH", "--nats-server", "--connect"):
        assert word in str(error.value)


def test_a_program_is_the_given_the_bundled_or_the_one_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = find_program()
    assert program.origin == "bundled"
    assert program.path.is_file()
    other = tmp_path / "nats-server"
    shutil.copy(program.path, other)
    assert find_program(other).origin == "--nats-server"
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_program()
    assert (found.path, found.origin) == (other, "PATH")


async def test_a_path_that_is_not_a_program_is_named(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    for path in (tmp_path / "none", tmp_path, text):
        error = await refused(Server.start(tmp_path / "s", program=path), ConfigError)
        assert "--nats-server" in str(error)
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("script", "said"),
    [("#!/bin/sh\necho it broke >&2\nexit 3\n", "it broke"), ("neither script nor program\x00", ""), ("#!/none\n", "")],
)
async def test_a_program_that_ends_at_once_is_named_with_its_output(script: str, said: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text(script)
    broken.chmod(0o755)
    for _ in range(2):  # the lock is free again
        error = await refused(Server.start(tmp_path / "s", program=broken, wait_s=0.0), StoreUnreachable, ConfigError)
        assert said in str(error)
        assert str(broken) in str(error)


async def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        error = await refused(Server.start(folder), ConfigError)
        assert error.field == "dir"
        assert str(folder) in str(error)


async def test_a_server_that_cannot_read_its_data_says_so(tmp_path: Path) -> None:
    """Where its store should be there is a file."""
    (tmp_path / "data").write_text("not a folder")
    error = await refused(Server.start(tmp_path, sync="lazy"), StoreUnreachable)
    assert "server.log" in str(error)
    (tmp_path / "data").unlink()
    async with running(tmp_path, wait_s=0.0):
        pass
