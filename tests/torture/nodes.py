"""Node processes that are killed, stopped and started again by whoever tortures them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import psutil

from mielin_cells.deployment.connect import URL_VARIABLE

APP = str(Path(__file__).with_name("agents.py"))

SERVES_S = 45.0
"""A process that does not serve within this time has failed, also on a busy machine."""

POLL_S = 0.01


class NodeProcess:
    """`mielin node` with the given options.  What it logs is appended to one file per name."""

    def __init__(self, folder: Path, name: str, url: str, *options: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.starts = 0
        self._url = url
        self.options = options
        """Of the next start."""
        self._process: Process | None = None
        self._serves = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    @staticmethod
    def command(*words: str) -> list[str]:
        return [sys.executable, "-m", "mielin_cells.cli", *words]

    @staticmethod
    def environment(url: str) -> dict[str, str]:
        return {**os.environ, URL_VARIABLE: url}

    async def start(self) -> None:
        """Returns when the process runs; `serving` says when it serves."""
        assert not self.is_running
        self._serves.clear()
        self.starts += 1
        command = self.command("node", "--name", self.name, "--app", APP, "--stop-with-stdin", "--json")
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command, *self.options, stdin=PIPE, stdout=PIPE, stderr=descriptor, env=self.environment(self._url),
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(descriptor)
        self._reading = asyncio.create_task(self._read(self._process))

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            with contextlib.suppress(ValueError):
                if json.loads(line).get("event") == "serving":
                    self._serves.set()
        await process.wait()

    async def serving(self) -> None:
        """Raises `TimeoutError` if it does not come to that."""
        async with asyncio.timeout(SERVES_S):
            await self._serves.wait()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def is_serving(self) -> bool:
        return self.is_running and self._serves.is_set()

    @property
    def code(self) -> int | None:
        """Of its end; negative: the signal that ended it."""
        return self._process.returncode if self._process is not None else None

    @property
    def is_stopped(self) -> bool:
        if self._process is None or not self.is_running:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            return bool(psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED)
        return False

    async def stopped(self) -> None:
        """Returns once the process has stopped, of itself or by a signal.  Raises `TimeoutError`."""
        async with asyncio.timeout(SERVES_S):
            while not self.is_stopped:
                await asyncio.sleep(POLL_S)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.is_running:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def kill(self) -> None:
        """As `kill -9`; returns when the process is gone.  A stopped one ends, too."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()
        if self._reading is not None:
            await self._reading

    async def ended(self) -> int:
        """Its code, once it has ended."""
        assert self._process is not None
        return await self._process.wait()

    def logged(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""
