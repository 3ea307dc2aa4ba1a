"""DBOS on SQLite: durable steps of workflows, as many as it makes in a second.

A step is its unit of durable work, as a turn is ours: once it has returned, its result is in the database.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dbos import DBOS

from benchmarks.peers.serve import serve

counts: dict[str, int] = {}


@DBOS.step()
def add(counter: str) -> int:
    counts[counter] = counts.get(counter, 0) + 1
    return counts[counter]


@DBOS.workflow()
def adds(counter: str, count: int) -> int:
    total = 0
    for _ in range(count):
        total = add(counter)
    return total


@DBOS.step()
async def add_async(counter: str) -> int:
    counts[counter] = counts.get(counter, 0) + 1
    return counts[counter]


@DBOS.workflow()
async def adds_async(counter: str, count: int) -> int:
    total = 0
    for _ in range(count):
        total = await add_async(counter)
    return total


def main() -> None:
    numbers = iter(range(1_000_000))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dbos.db"

        def launch(journal: str) -> str:
            """Begins on a fresh database; SQLite keeps the journal's mode in the file.  Both modes are synced (FULL)."""
            path.unlink(missing_ok=True)
            with sqlite3.connect(path) as connection:
                mode: str = connection.execute(f"PRAGMA journal_mode={journal}").fetchone()[0]
                assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
            DBOS(config={"name": "bench", "system_database_url": f"sqlite:///{path}", "log_level": "ERROR"})
            DBOS.launch()
            return mode

        def finished(name: str, count: int) -> None:
            assert counts[name] == count
            with sqlite3.connect(path) as connection:
                stored = connection.execute("SELECT count(*) FROM operation_outputs").fetchone()[0]
            assert stored >= count, f"{stored} of {count} are stored"

        def steps(count: int, workflows: int, is_async: bool) -> float:
            """Durable steps per second, of so many workflows at a time."""
            names = [f"c{next(numbers)}" for _ in range(workflows)]
            each = count // workflows
            at = time.perf_counter()
            if is_async:

                async def all_of_them() -> None:
                    handles = [await DBOS.start_workflow_async(adds_async, name, each) for name in names]
                    assert [await handle.get_result() for handle in handles] == [each] * workflows

                asyncio.run(all_of_them())
            else:
                handles = [DBOS.start_workflow(adds, name, each) for name in names]
                assert [handle.get_result() for handle in handles] == [each] * workflows
            taken = time.perf_counter() - at
            for name in names:
                finished(name, each)
            return each * workflows / taken

        def end() -> None:
            DBOS.destroy()

        does: dict[str, Any] = {"launch": launch, "steps": steps, "end": end}
        serve(does, {"dbos": version("dbos"), "sqlite": sqlite3.sqlite_version})


main()
