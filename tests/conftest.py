"""What many test files need: a real server, started once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import mielin_cells as cells
from mielin_cells.core.agent import classes
from mielin_cells.substrate.server import Server


def pytest_collection_finish() -> None:
    """Agent classes are found by their names, also those of other test files: two of one name take each other's place."""
    files: dict[str, set[str]] = defaultdict(set)
    for cls in _below(cells.Agent):
        files[cls.__mielin_name__].add(cls.__module__)
    twice = sorted(f"{name} ({', '.join(sorted(where))})" for name, where in files.items() if len(where) > 1)
    if twice:
        raise pytest.UsageError(f"two agent classes of the tests are called {', '.join(twice)}; rename one")


def _below(cls: type[cells.Agent]) -> Iterator[type[cells.Agent]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _below(sub)


@pytest.fixture(autouse=True)
def _classes_of_one_test() -> Iterator[None]:
    """What a test defines ends with it: another may use the name."""
    before = dict(classes)
    yield
    classes.clear()
    classes.update(before)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The bundled server, lazily synced: tests kill and stop servers of their own.  Each test uses its own deployment."""
    folder: Path = tmp_path_factory.mktemp("server")
    started = asyncio.run(Server.start(folder, sync="lazy"))
    yield started
    asyncio.run(started.stop())
