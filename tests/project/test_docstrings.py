"""Each public name that an author calls has an example in its docstring, which runs as it stands."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import docstrings

import mielin_cells as cells
from mielin_cells import errors, groups, migration, policies, sensors, tracing
from mielin_cells.agents.agent import Agent
from mielin_cells.agents.cluster import Cluster
from mielin_cells.agents.handler import Bound, BoundStream
from mielin_cells.substrate.jetstream.server import Server
from mielin_cells.testing import survive

URL = "nats://127.0.0.1:4222"
"""As the docstrings have it."""

GIVEN = {
    cells: set[str](),
    groups: {"Gathered", "GroupReport", "Member", "Role"},
    policies: {"Facts"},
    sensors: {"Facts", "Sensor", "Value"},
}
"""Modules all of whose names are for authors; and of each, names of what authors are given, or write in an annotation."""

CALLED: dict[types.ModuleType, tuple[str, ...]] = {
    migration: ("CollectingCallback", "LoggingCallback", "MultiCallback", "RecoveryConfig"),
    survive: ("Survival",),
    tracing: ("install", "trace_of", "use"),
}
"""Modules of which authors call some names.  The rest of `migration` is what moves are made with: the page about recovery."""

METHODS: dict[type, tuple[str, ...]] = {
    Agent: ("watch",),
    Bound: ("options", "tell"),
    BoundStream: ("read",),
}


def public() -> Iterator[tuple[str, str]]:
    """Each name, with its docstring."""
    for module, given in GIVEN.items():
        for name in sorted(set(module.__all__) - given):
            value = getattr(module, name)
            is_error = isinstance(value, type) and issubclass(value, errors.CellError)
            if not is_error and (inspect.isfunction(value) or isinstance(value, type)):
                yield f"{module.__name__}.{name}", _doc(value)
    for other, names in CALLED.items():
        yield from ((f"{other.__name__}.{name}", _doc(getattr(other, name))) for name in names)
    for cls, methods in METHODS.items():
        yield from ((f"{cls.__name__}.{name}", _doc(getattr(cls, name))) for name in methods)
    for name, value in inspect.getmembers(Cluster, inspect.isfunction):
        if not name.startswith("_"):
            yield f"Cluster.{name}", _doc(value)


def _doc(value: Any) -> str:
    return value.__doc__ or ""


PUBLIC = dict(public())
WITHOUT_OWN = {"mielin_cells.Cluster"}
"""Its methods have the examples."""


def test_the_names_are_found() -> None:
    assert {"mielin_cells.spawn", "mielin_cells.policies.Load", "Cluster.migrate"} < set(PUBLIC)
    assert all(set(given) <= set(module.__all__) for module, given in GIVEN.items())


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - WITHOUT_OWN))
def test_a_public_name_has_an_example_that_runs(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    doc = PUBLIC[name]
    assert docstrings.examples_of(doc), f"{name} has no example: write one into its docstring, behind >>>"
    if URL not in doc:
        assert docstrings.run(doc, tmp_path) == []
        return
    server: Server = request.getfixturevalue("server")
    (tmp_path / "till.py").write_text(docstrings.SETUP)
    ready = tmp_path / "ready"
    command = [
        sys.executable, "-m", "mielin_cells.cli", "node", "--name", "node-1", "--app", "till.py", "--connect", server.url,
        "--ready-file", str(ready),
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, env=docstrings.without_variables()) as node:
        try:
            while not ready.exists():
                assert node.poll() is None
            assert docstrings.run(doc.replace(URL, server.url), tmp_path) == []
        finally:
            node.terminate()


WRONG = """What is wrong is found.

    >>> 1 + 1
    3
    >>> print("a line")
    >>> raise ValueError("no")
    >>> await till.sell(5)
    5
"""


def test_an_example_that_does_something_else_is_found(tmp_path: Path) -> None:
    found = docstrings.run(WRONG, tmp_path)
    assert [one.partition("\n")[0] for one in found] == [
        ">>> 1 + 1", '>>> print("a line")', '>>> raise ValueError("no")',
    ]  # fmt: skip
