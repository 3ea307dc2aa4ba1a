"""What many test files need: a real server, started once."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from mielin_cells.agents.reference import classes
from mielin_cells.substrate.jetstream.server import Server

# How long an example takes says how busy the machine is, and nothing about the code.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """From here on nothing is compiled into files, here or in processes that tests start: an app that a test writes anew within a
    second, in as many bytes, would be loaded as it was before.  The sources were compiled by `make`, or are compiled in memory."""
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test has printed may hold half characters, which no process of a parallel run can send to the other."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def _classes_of_one_test() -> Iterator[None]:
    """What a test defines ends with it: another may use the name."""
    before = dict(classes)
    yield
    classes.clear()
    classes.update(before)


@pytest.fixture(autouse=True, scope="module")
def _garbage_of_one_file() -> None:
    """What is alive before a file's tests is looked at no more: each story of the simulator ends with a look at all objects.

    With what thousands of tests have left, that look took longer than most stories.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _constants_of_one_file() -> Iterator[None]:
    """A bound that a test makes smaller is put back: it would change the tests of other files."""
    before = _constants()
    yield
    changed = {name for name, value in _constants().items() if before.get(name, value) != value}
    assert not changed, f"The tests of this file have left these constants changed: {sorted(changed)}."


def _constants() -> dict[str, float | str]:
    return {
        f"{module}.{name}": value
        for module, found in list(sys.modules.items())
        if module.startswith("mielin_cells.")
        for name, value in vars(found).items()
        if name.isupper() and isinstance(value, int | float | str)
    }


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The bundled server, lazily synced: tests kill and stop servers of their own.  Each test uses its own deployment."""
    folder: Path = tmp_path_factory.mktemp("server")
    started = asyncio.run(Server.start(folder, sync="lazy"))
    yield started
    asyncio.run(started.stop())
