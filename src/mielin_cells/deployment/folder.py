"""The folder of `mielin up`: data, credential, address, and the lock that says who uses it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from mielin_cells.errors import ConfigError, StoreInUse
from mielin_cells.substrate.lock import lock as lock_file

LOCK_FILE = "up.lock"

WAIT_S = 20.0
"""How long to wait for the processes of an earlier run, which end within 5 s of it."""

POLL_S = 0.05


@asynccontextmanager
async def hold(path: Path, on_wait: Callable[[], None]) -> AsyncIterator[int]:
    """Creates and locks the folder, once nobody else uses it; `on_wait` is called if that takes a while.  Gives the lock's descriptor.

    The lock is this process's and, through the inherited descriptor, its children's, until the last of them ends.
    Raises `StoreInUse` if another `mielin up` runs in the folder, `ConfigError` if it cannot be created.
    """
    lock = _open(path)
    try:
        await _wait_for_lock(path, lock, on_wait)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()} {_start_of(os.getpid())}\n".encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _open(path: Path) -> int:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"--dir {path} cannot be used: {error.strerror}.", field="dir", range="a folder that can be written"
        ) from error


async def _wait_for_lock(path: Path, lock: int, on_wait: Callable[[], None]) -> None:
    deadline, has_said = asyncio.get_running_loop().time() + WAIT_S, False
    while True:
        try:
            lock_file(lock)
            return
        except BlockingIOError:
            pass
        owner = _owner(lock)
        if owner is not None:
            raise StoreInUse(
                f"`mielin up` runs in {path} already (process {owner}); end it, or give another --dir.", path=str(path)
            )
        if asyncio.get_running_loop().time() > deadline:
            raise StoreInUse(
                f"Processes of an earlier `mielin up` still use {path} after {WAIT_S:g} s; end them, or give another --dir.",
                path=str(path),
            )
        if not has_said:
            on_wait()
            has_said = True
        await asyncio.sleep(POLL_S)


def _owner(lock: int) -> int | None:
    """The process that took the lock; None if it has ended, and only its children hold the lock."""
    process, _, began = os.pread(lock, 64, 0).decode("ascii", "replace").strip().partition(" ")
    return int(process) if process.isdecimal() and began and _start_of(int(process)) == began else None


def _start_of(process: int) -> str:
    """When the process was started, which tells it from a later one with its number; "" if it has ended."""
    import psutil

    try:
        running = psutil.Process(process)
        return "" if running.status() == psutil.STATUS_ZOMBIE else f"{running.create_time():.2f}"
    except psutil.Error:
        return ""
