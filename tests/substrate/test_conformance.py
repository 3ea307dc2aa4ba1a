"""Every substrate against the one contract: SQLite in memory and in a file, JetStream, and the simulator's own store."""

from __future__ import annotations

from pathlib import Path

import pytest

from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.jetstream import JetStream
from mielin_cells.substrate.jetstream.server import Server
from mielin_cells.testing.conformance import CHECKS, Check
from mielin_cells.testing.simulator import loop
from mielin_cells.testing.simulator.world import World


@pytest.mark.parametrize("check", CHECKS)
async def test_memory(check: Check) -> None:
    substrate = await Embedded.open()
    await check(substrate)
    await substrate.close()


@pytest.mark.parametrize("check", CHECKS)
async def test_file(check: Check, tmp_path: Path) -> None:
    substrate = await Embedded.open(tmp_path / "store.db")
    await check(substrate)
    await substrate.close()


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("check", CHECKS)
async def test_jetstream(check: Check, shards: int, server: Server) -> None:
    substrate = await JetStream.open(server.url, deployment=f"d{shards}_{CHECKS.index(check)}", shards=shards)
    await check(substrate)
    await substrate.close()


@pytest.mark.parametrize("check", CHECKS)
def test_simulated(check: Check) -> None:
    async def main() -> None:
        view = World().connect("one")
        await view.process.run(check(view))  # type: ignore[arg-type]

    loop.run(main())
