"""A program beside this one that is measured: it is given orders, one at a time, and answers each."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "build" / "peers"
"""Their environment; `make peers` builds it."""

LINE_BYTES_MAX = 64 * 2**20
STOP_S = 20.0
WORDS = 2000
"""Of what a program has written to standard error, this many last characters are told when it fails."""


class PeerFailedError(Exception):
    """It has ended instead of answering."""


class Peer:
    """`about` is what it said of itself: its version."""

    def __init__(self, process: Process, name: str) -> None:
        self._process = process
        self._name = name
        self._words = b""
        self._reader = asyncio.create_task(self._read_errors())
        self.about: dict[str, Any] = {}

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(4096):
            self._words = (self._words + data)[-WORDS:]

    async def answer(self) -> Any:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            await self._reader
            raise PeerFailedError(f"{self._name} has ended: {self._words.decode(errors='replace').strip()}")
        return json.loads(line)

    async def do(self, what: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        await self._process.stdin.drain()
        return await self.answer()

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reader


@asynccontextmanager
async def started(name: str, *command: str, environment: dict[str, str] | None = None) -> AsyncIterator[Peer]:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=ROOT, limit=LINE_BYTES_MAX,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    peer = Peer(process, name)
    try:
        peer.about = await peer.answer()
        yield peer
    finally:
        await peer.stop()


def have_peers() -> bool:
    return (PEERS / "installed").exists() and "BENCH_NO_PEERS" not in os.environ


PINS = ROOT / "requirements" / "peers.txt"


def versions() -> dict[str, str]:
    """Of the peers, as they are pinned; `make peers` installs these and no others."""
    lines = [line.partition("==") for line in PINS.read_text().splitlines() if "==" in line]
    return {name: version for name, _, version in lines}


@asynccontextmanager
async def of_others(program: str) -> AsyncIterator[Peer | None]:
    """A peer's program in the peers' environment; None if that is not there."""
    if not have_peers():
        yield None
        return
    command = (str(PEERS / "bin" / "python"), "-m", f"benchmarks.peers.{program}")
    async with started(program, *command, environment={"PYTHONPATH": str(ROOT)}) as peer:
        yield peer


@asynccontextmanager
async def of_ours(module: str, *arguments: str) -> AsyncIterator[Peer]:
    """A module of this project as a program of its own."""
    async with started(module, sys.executable, "-m", module, *arguments) as peer:
        yield peer
