"""The layout of design page 10 as a test: sizes, direction of imports, and a core that cannot do I/O.

Checks read the source with `ast`, so imports under `TYPE_CHECKING` and inside functions count like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "mielin_cells"
FOLDERS = {"core", "migration", "substrate", "node", "testing", "cli", "data"}
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 90

# Allow-list, not deny-list: asyncio, time, random, socket, sqlite3, logging, os, nats and subprocess are out, and so is
# everything nobody has thought of yet.
PURE_IMPORTS = {
    "__future__", "abc", "annotationlib", "bisect", "blake3", "collections", "contextvars", "copy", "dataclasses", "datetime",
    "decimal", "enum", "functools",
    "builtins", "heapq", "inspect", "itertools", "math", "msgspec", "operator", "re", "struct", "types",
    "typing", "uuid", "warnings", "weakref",
}  # fmt: skip
PURE_USES = {
    "core.cell": {"sys"},  # counts who holds a value
    "core.exact": {"datetime", "decimal", "uuid"},  # the types of values that it compares
    "core.models": {"sys"},  # whether pydantic is there
}
"""What single modules of the core may import besides, and what for."""
IMPURE_BUILTINS = {"__import__", "breakpoint", "compile", "eval", "exec", "input", "open", "print"}

# What a module may import of this package, by the folder it is in ("" is the package itself); an entry covers what
# is below it.  `MAY_ALSO` is for the few modules whose job is to put two sides together.
MAY_IMPORT = {
    "errors": set(),
    "core": {"core", "errors"},
    "migration": {"core", "migration", "errors"},
    "substrate": {"substrate", "core", "errors"},
    "node": {"node", "migration", "core", "errors", "substrate.ports", "substrate.parts", "substrate.again"},
    "cli": {"cli", "node", "migration", "core", "errors", ""},
    "testing": {"testing", "node", "migration", "core", "substrate", "errors", ""},
    "": {"node", "migration", "core", "errors"},
}
MAY_ALSO = {
    "node.local": {"substrate.embedded"},  # composes nodes and the embedded substrate: `cells.local`
    "node.remote": {"substrate.jetstream", "substrate.jetstream_address"},  # likewise for a server's: `cells.connect`
    "cli.up": {"substrate.server"},  # starts the server for its nodes
    "cli.stage": {"substrate.server"},  # likewise for the job's
    "cli.serve": {"testing.faults", "substrate.ports"},  # nodes that fail on purpose
    "cli.demo": {"testing.faults"},
}
ADAPTERS = {"embedded", "jetstream", "server"}
NATS_ONLY_IN = "substrate.jetstream"


def name_of(path: Path) -> str:
    """`.../core/ids.py` is "core.ids"; `.../core/__init__.py` is "core"; the package itself is ""."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


SOURCES = sorted(PACKAGE.rglob("*.py"))
MODULES = {name_of(path) for path in SOURCES}
CHECKED = sorted(p for top in ("src", "tests", "examples", "benchmarks") for p in (ROOT / top).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Full dotted names.  `from a import b` gives `a.b`, which may be a module or a name in one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """Modules of this package that are imported, without the `mielin_cells.`; "" is the package itself."""
    for name in imports(tree):
        if name == "mielin_cells" or name.startswith("mielin_cells."):
            inside = name.removeprefix("mielin_cells").lstrip(".")
            yield inside if inside in modules else inside.rpartition(".")[0]


def covers(allowed: str, imported: str) -> bool:
    return imported == allowed or (allowed != "" and imported.startswith(f"{allowed}."))


def layer_of(module: str) -> str:
    top = module.partition(".")[0]
    return top if top in MAY_IMPORT else ""


def violations(module: str, source: str, modules: set[str]) -> list[str]:
    """Every broken rule of direction or purity in one module, as sentences.  `modules` are all that there are."""
    tree = ast.parse(source)
    layer = layer_of(module)
    own = set(own_modules(tree, modules))
    allowed = MAY_IMPORT[layer] | MAY_ALSO.get(module, set())
    found = [
        f"{module or 'the package'} imports {other or 'the package'}, which is not below it"
        for other in sorted(own)
        if not any(covers(a, other) for a in allowed)
    ]
    outside = {name.partition(".")[0] for name in imports(tree)} - {"mielin_cells"}
    if "nats" in outside and module != NATS_ONLY_IN:
        found.append(f"{module} imports nats; only {NATS_ONLY_IN} may")
    if layer == "substrate":
        found += adapter_violations(module, own)
    if layer in {"core", "migration"}:
        found += [
            f"{module} imports {name}, which is not on the pure list"
            for name in sorted(outside - PURE_IMPORTS - PURE_USES.get(module, set()))
        ]
        found += [
            f"{module} line {node.lineno}: {node.func.id}() is not pure"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_BUILTINS
        ]
    return found


def adapter_violations(module: str, own: set[str]) -> list[str]:
    """Adapters know the ports and not each other; the ports know no adapter.  `embedded_x` belongs to `embedded`."""
    mine = module.partition(".")[2].partition("_")[0]
    used = {other.partition(".")[2].partition("_")[0] for other in own if other.startswith("substrate.")}
    return [f"{module} imports the adapter {other}" for other in sorted((used & ADAPTERS) - {mine})]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: name_of(p) or "mielin_cells")
def test_imports_go_one_way_and_the_core_is_pure(path: Path) -> None:
    assert violations(name_of(path), path.read_text(), MODULES) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.fold", "import asyncio"),
        ("core.fold", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sqlite3 import Connection"),
        ("core.fold", "def f():\n    import os.path"),
        ("core.fold", "text = open('x').read()"),
        ("core.fold", "from mielin_cells.substrate.ports import Entry"),
        ("core.fold", "from mielin_cells import errors, migration"),
        ("core.fold", "import mielin_cells"),
        ("migration.source", "from mielin_cells import node"),
        ("migration.source", "from time import monotonic"),
        ("substrate.ports", "from mielin_cells.substrate.embedded import X"),
        ("substrate.embedded", "from mielin_cells.substrate import jetstream"),
        ("substrate.embedded", "from mielin_cells.node import X"),
        ("substrate.server", "import nats.aio.client"),
        ("node.host", "from mielin_cells.substrate.embedded import X"),
        ("node.host", "from mielin_cells.testing import X"),
        ("cli.demo", "from mielin_cells.testing import X"),
        ("", "import mielin_cells.cli"),
    ],
)
def test_a_planted_import_is_found(module: str, source: str) -> None:
    modules = MODULES | {"substrate.embedded", "substrate.jetstream"}
    assert len(violations(module, source, modules)) == 1


@pytest.mark.parametrize("path", CHECKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= FILE_LINES_MAX
    long = [
        f"{node.name}, line {node.lineno}: {lines} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert long == []


def asserts(tree: ast.AST) -> list[int]:
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: name_of(p) or "mielin_cells")
def test_nothing_depends_on_asserts(path: Path) -> None:
    """`python -O` takes them away: `errors.never` says what cannot be."""
    assert asserts(ast.parse(path.read_text())) == []


def test_a_planted_assert_is_found() -> None:
    assert asserts(ast.parse("def f(x):\n    if x:\n        assert x > 1, 'so'")) == [3]


def test_folders_are_one_level_deep_and_named_on_the_design_page() -> None:
    folders = {p.parent.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*") if "__pycache__" not in p.parts}
    assert folders - {"."} <= FOLDERS
    assert FOLDERS - {"data"} <= MODULES
