"""A process in which an app is imported and stored states are loaded, so that neither can do any harm here (`inside`)."""

from __future__ import annotations

import asyncio
import contextlib
import linecache
import os
import re
import signal
import sys
import sysconfig
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

from mielin_cells.deployment.check.frames import (
    LENGTH_BYTES,
    Loaded,
    Ready,
    Refused,
    Told,
    Trial,
    Verdict,
    decode_told,
    frame,
)
from mielin_cells.errors import ConfigError, never

START_S = 60.0
"""How long the process may take to come to the app."""

IMPORT_S = 60.0
"""How long the app may take to be imported."""

AGENT_S = 10.0
"""How long one agent may take to be upgraded and loaded."""

HUNG_MAX = 3
"""Agents of one class that may end the process, or never end; after that the others of the class are not tried."""

STDERR_BYTES = 64 * 1024
"""What is kept of the last that the process has said."""

SAYS_S = 1.0
"""For a process that hangs to say where."""

FRAME = re.compile(r'^  File "(.+)", line (\d+)', re.MULTILINE)


class Sandbox:
    """`start`, then `judge` one agent after the other, then `close`.  A process that hangs or dies is replaced."""

    def __init__(
        self, app: str, config: Path | None = None, import_s: float = IMPORT_S, agent_s: float = AGENT_S
    ) -> None:
        self._app = app
        self._config = config
        self._import_s, self._agent_s = import_s, agent_s
        self._lock = asyncio.Lock()
        self._process: Process | None = None
        self._answers = asyncio.StreamReader()
        self._transport: asyncio.ReadTransport | None = None
        self._said = bytearray()
        self._reader: asyncio.Task[None] | None = None
        self._ended: dict[str, int] = {}
        """By class: the agents with which a process hung or died."""
        self.classes: dict[str, int] = {}
        """Agent classes of the app with their versions."""

    async def start(self) -> None:
        """Imports the app.  Raises `ConfigError` if that fails, or does not end."""
        await self._open()
        told = await self._read(START_S)
        if isinstance(told, Ready):
            told = await self._read(self._import_s)
        if isinstance(told, Loaded):
            self.classes = told.classes
            return
        if isinstance(told, Refused):
            await self.close()
            raise self._refusal(told.message)
        if told is None:
            place = await self._place()
            raise self._refusal(
                f"--app {self._app} is still being imported after {self._import_s:g} s{place}. Nothing was changed; "
                "an app does its work in handlers, not while it is imported."
            )
        await self._end()
        raise self._refusal(f"--app {self._app} ended the process that imported it{self._last_words()}.")

    def _refusal(self, message: str) -> ConfigError:
        return ConfigError(message, field="app", range="an app that imports")

    async def judge(self, trial: Trial) -> Verdict:
        """What loading the agent gives.  Raises `ConfigError` if the app, imported again, does not import any more."""
        async with self._lock:
            if self._ended.get(trial.cls, 0) >= HUNG_MAX:
                return Verdict(
                    trial.agent,
                    "NotTried",
                    f"not tried: {HUNG_MAX} agents of {trial.cls} did not end or ended the process",
                )
            if self._process is None:
                await self.start()
            told = await self._exchange(trial)
            if isinstance(told, Verdict):
                return told
            self._ended[trial.cls] = self._ended.get(trial.cls, 0) + 1
            if told is None:
                place = await self._place()
                return Verdict(trial.agent, "Timeout", f"it did not load within {self._agent_s:g} s{place}")
            await self._end()
            return Verdict(trial.agent, "Died", f"loading it ended the process{self._last_words()}")

    async def close(self) -> None:
        await self._end()

    # ---- the process -----------------------------------------------------------------------------------------

    async def _open(self) -> None:
        out, into = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "mielin_cells.deployment.check.inside", str(into), self._app,
                *([str(self._config)] if self._config is not None else []),
                stdin=PIPE, stdout=DEVNULL, stderr=PIPE, pass_fds=(into,), start_new_session=True, env=_environment(),
            )  # fmt: skip
        except BaseException:
            os.close(out)
            raise
        finally:
            os.close(into)
        self._answers = asyncio.StreamReader()
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._answers), os.fdopen(out, "rb", 0)
        )
        if self._process.stderr is None:
            raise never("a process that was started with pipes has none")
        self._said.clear()
        self._reader = asyncio.create_task(self._listen(self._process.stderr))

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(4096):
            self._said += data
            del self._said[:-STDERR_BYTES]

    async def _exchange(self, trial: Trial) -> Told | EOFError | None:
        if self._process is None or self._process.stdin is None:
            raise never("a sandbox without a process is asked")
        with contextlib.suppress(ConnectionError):  # it has died, as the read shows
            self._process.stdin.write(frame(trial))
            await self._process.stdin.drain()
        return await self._read(self._agent_s)

    async def _read(self, seconds: float) -> Told | EOFError | None:
        """None: nothing came in time; an `EOFError`: the process has ended."""
        try:
            async with asyncio.timeout(seconds):
                head = await self._answers.readexactly(LENGTH_BYTES)
                return decode_told(await self._answers.readexactly(int.from_bytes(head, "big")))
        except TimeoutError:
            return None
        except asyncio.IncompleteReadError as error:
            return error

    async def _place(self) -> str:
        """Where the process hangs, as it says itself; then it is ended."""
        process = self._process
        if process is not None and process.returncode is None:
            self._said.clear()
            process.send_signal(signal.SIGUSR1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SAYS_S):
                    while not _own_line(self._said.decode(errors="replace")):
                        await asyncio.sleep(0.02)
        await self._end()
        line = _own_line(self._said.decode(errors="replace"))
        return f": {line}" if line else ""

    def _last_words(self) -> str:
        lines = self._said.decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last}" if last else ""

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with what the app has started
            await process.wait()
        if self._reader is not None:
            await asyncio.wait((self._reader,), timeout=SAYS_S)
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None


def _environment() -> dict[str, str]:
    """That of this process, without what leads to the deployment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MIELIN_")}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1"}


def _own_line(said: str) -> str:
    """The innermost line of the user's own code in the trace of a process."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    others = ("<", str(Path(__file__).resolve().parents[2]), *(sysconfig.get_path(kind) for kind in kinds))
    for name, line in FRAME.findall(said):
        if not name.startswith(others):
            return f"{name}, line {line}: {linecache.getline(name, int(line)).strip()}"
    return ""
