"""The layout as a test: rooms, the direction of imports between them, sizes, and rooms that cannot do I/O.

The checks read the source with `ast`, so imports under `TYPE_CHECKING` and inside functions count like any other.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from support.paths import ROOT

PACKAGE = ROOT / "src" / "mielin_cells"
FILE_LINES_MAX = 400
TEST_LINES_MAX = 600
"""Of a file of tests, which are many stories of one thing."""
FUNCTION_LINES_MAX = 60
MODULES_MAX = 16
"""In one folder."""

PORTS = {f"substrate.{name}" for name in ("ports", "parts", "patterns", "retry", "tail", "lock", "health", "format")}
GROUND = {"errors", "settings", "redaction", "tracing"}
LOG = GROUND | {"log"}
AGENTS = LOG | {"policy", "agents"}
PURE = AGENTS | {"migration"}
SHARED = PURE | PORTS | {"tasks", "store", "rpc", "membership", "metrics"}
"""What clients and nodes have in common."""
NODE = SHARED | {"node"}
ALL = NODE | {"client", "deployment", "substrate"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": {"errors"},
    "settings": GROUND,
    "redaction": GROUND,
    "tracing": GROUND,
    "metrics": GROUND | {"metrics"},
    "log": LOG,
    "policy": LOG | {"policy"},
    "agents": AGENTS,
    "migration": PURE,
    "substrate": LOG | PORTS,
    "substrate.embedded": LOG | PORTS | {"substrate.embedded"},
    "substrate.jetstream": LOG | PORTS | {"substrate.jetstream"},
    "tasks": GROUND | {"tasks"},
    "store": LOG | PORTS | {"policy", "agents", "migration", "tasks", "store"},
    "rpc": PURE | PORTS | {"store", "rpc", "metrics"},
    "membership": PURE | PORTS | {"tasks", "store", "rpc", "membership"},
    "client": SHARED | {"client"},
    "node.streams": SHARED | {"node.streams"},
    "node.topics": SHARED | {"node.topics"},
    "node.family": SHARED | {"node.family"},
    "node.attributes": SHARED | {"node.attributes"},
    "node.waits": SHARED | {"node.waits"},
    "node.activation": SHARED
    | {"node.streams", "node.topics", "node.family", "node.attributes", "node.waits", "node.activation"},
    "node.moves": SHARED | {"node.topics", "node.activation", "node.moves"},
    "node.plans": SHARED | {"node.activation", "node.moves", "node.plans"},
    "node.ownership": SHARED | {"node.topics", "node.activation", "node.moves", "node.ownership"},
    "node": NODE,
    "deployment": ALL,
    "": ALL,
    "testing": ALL | {"testing", ""},
    "demo": ALL | {"demo", "testing.faults", ""},
    "cli": ALL | {"cli", "demo", "testing.faults", ""},
}
"""By room, what its modules may import of this package; an entry covers what is below it.  "" is the package itself."""

# Allow-list, not deny-list: asyncio, time, random, socket, sqlite3, logging, os, nats and subprocess are out, and so is
# everything that nobody has thought of yet.
PURE_ROOMS = {"log", "policy", "agents", "migration"}
PURE_IMPORTS = {
    "__future__", "abc", "annotationlib", "bisect", "blake3", "collections", "contextvars", "copy", "dataclasses", "datetime",
    "decimal", "enum", "functools",
    "builtins", "heapq", "inspect", "itertools", "math", "msgspec", "operator", "re", "struct", "types",
    "typing", "uuid", "warnings", "weakref",
}  # fmt: skip
PURE_USES = {
    "agents.times.cron": {"importlib"},  # the library of cron expressions and the time zones, when they are first used
    "migration": {"importlib"},  # its public names are imported when they are first used
    "log.waits.tokens": {"base64"},  # tokens are text
    "policy.expression.names": {"difflib"},  # what a name that does not exist may have meant
    "agents.live": {"sys"},  # counts who holds a value
    "agents.values.models": {"sys"},  # whether pydantic is there
}
"""What single modules of the pure rooms may import besides, and what for."""
IMPURE_BUILTINS = {"__import__", "breakpoint", "compile", "eval", "exec", "input", "open", "print"}
NATS_ONLY_IN = ("substrate.jetstream.connection", "substrate.jetstream.library")


def name_of(path: Path) -> str:
    """`.../log/ids.py` is "log.ids"; `.../log/__init__.py` is "log"; the package itself is ""."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


SOURCES = sorted(PACKAGE.rglob("*.py"))
MODULES = {name_of(path) for path in SOURCES}
CHECKED = sorted(p for top in ("src", "tests", "examples", "benchmarks") for p in (ROOT / top).rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def found_in(paths: Iterable[Path], look: Callable[[Path], list[str]]) -> dict[str, list[str]]:
    """What is found in each file in which anything is.  One test looks at all files: a test for each would cost more than it does."""
    return {str(path.relative_to(ROOT)): found for path in paths if (found := look(path))}


def imports(tree: ast.AST) -> Iterator[str]:
    """Full dotted names.  `from a import b` gives `a.b`, which may be a module or a name in one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(tree: ast.AST, modules: set[str]) -> set[str]:
    """Modules of this package that are imported, without the `mielin_cells.`; "" is the package itself."""
    found = set()
    for name in imports(tree):
        if name == "mielin_cells" or name.startswith("mielin_cells."):
            inside = name.removeprefix("mielin_cells").lstrip(".")
            found.add(inside if inside in modules else inside.rpartition(".")[0])
    return found


def covers(allowed: str, imported: str) -> bool:
    return imported == allowed or (allowed != "" and imported.startswith(f"{allowed}."))


def room_of(module: str) -> str:
    """The innermost room that the module lies in."""
    return max((room for room in MAY_IMPORT if covers(room, module)), key=len, default="")


def violations(module: str, tree: ast.Module, modules: set[str]) -> list[str]:
    """Every broken rule of direction or purity in one module, as sentences.  `modules` are all that there are."""
    room = room_of(module)
    found = [
        f"{module or 'the package'} imports {other or 'the package'}, which is not below it"
        for other in sorted(own_modules(tree, modules))
        if not any(covers(allowed, other) for allowed in MAY_IMPORT[room])
    ]
    outside = {name.partition(".")[0] for name in imports(tree)} - {"mielin_cells"}
    if "nats" in outside and module not in NATS_ONLY_IN:
        found.append(f"{module} imports nats; only {' and '.join(NATS_ONLY_IN)} may")
    if room.partition(".")[0] in PURE_ROOMS:
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


def test_imports_go_one_way_and_the_pure_rooms_are_pure() -> None:
    assert found_in(SOURCES, lambda path: violations(name_of(path), tree_of(path), MODULES)) == {}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("log.fold", "import asyncio"),
        ("log.fold", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sqlite3 import Connection"),
        ("log.fold", "def f():\n    import os.path"),
        ("log.fold", "text = open('x').read()"),
        ("log.fold", "from mielin_cells.agents.agent import Agent"),
        ("log.fold", "from mielin_cells.substrate.ports import Entry"),
        ("log.fold", "from mielin_cells import errors, migration"),
        ("log.fold", "import mielin_cells"),
        ("migration.source", "from mielin_cells import node"),
        ("migration.source", "from time import monotonic"),
        ("substrate.ports", "from mielin_cells.substrate.embedded import X"),
        ("substrate.embedded.log", "from mielin_cells.substrate import jetstream"),
        ("substrate.embedded.log", "from mielin_cells.node import X"),
        ("substrate.jetstream.server", "import nats.aio.client"),
        ("client.sessions.session", "from mielin_cells.node.activation.turn import X"),
        ("node.activation.turn", "from mielin_cells.client.sessions.session import X"),
        ("node.activation.turn", "from mielin_cells.node.moves.source import X"),
        ("node.activation.turn", "from mielin_cells.substrate.embedded import X"),
        ("node.moves.source", "from mielin_cells.node.node import Node"),
        ("node.node", "from mielin_cells.testing import X"),
        ("deployment.fleet", "from mielin_cells.cli.show import X"),
        ("", "import mielin_cells.cli"),
    ],
)
def test_a_planted_import_is_found(module: str, source: str) -> None:
    assert len(violations(module, ast.parse(source), MODULES)) == 1


def circles(arrows: Mapping[str, set[str]]) -> list[set[str]]:
    """The sets of more than one node in which each leads to every other."""
    reached: dict[str, set[str]] = {}
    for start in arrows:
        seen, todo = set[str](), [start]
        while todo:
            for other in arrows.get(todo.pop(), set()) - seen:
                seen.add(other)
                todo.append(other)
        reached[start] = seen
    found = [{b for b in reached[a] if a in reached.get(b, set())} for a in arrows if a in reached[a]]
    return [circle for n, circle in enumerate(found) if len(circle) > 1 and circle not in found[:n]]


def test_there_is_no_circle_between_rooms() -> None:
    arrows: dict[str, set[str]] = {}
    for path in SOURCES:
        room = room_of(name_of(path))
        others = {room_of(other) for other in own_modules(tree_of(path), MODULES)}
        arrows.setdefault(room, set()).update(others - {room})
    # The package itself is what users import: the command line, the demo and the test kit do so too.
    assert circles({room: others - {""} for room, others in arrows.items() if room}) == []


def test_there_is_no_circle_between_modules() -> None:
    arrows = {name_of(path): own_modules(tree_of(path), MODULES) for path in SOURCES}
    assert [sorted(circle) for circle in circles(arrows)] == []


def test_a_planted_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_a_folder_has_few_modules() -> None:
    folders = Counter(path.parent for path in SOURCES if path.name not in ("__init__.py", "__main__.py"))
    assert {str(folder): count for folder, count in folders.items() if count > MODULES_MAX} == {}


def too_long(path: Path) -> list[str]:
    lines = len(path.read_text().splitlines())
    most = TEST_LINES_MAX if path.name.startswith("test_") else FILE_LINES_MAX
    functions = [
        f"{node.name}, line {node.lineno}: {length} lines"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    return functions + ([f"{lines} lines; at most {most}"] if lines > most else [])


def test_files_and_functions_are_short() -> None:
    assert found_in(CHECKED, too_long) == {}


def test_a_planted_function_that_is_long_and_its_file_are_found(tmp_path: Path) -> None:
    path = tmp_path / "made.py"
    path.write_text("def f():\n" + "    x = 1\n" * FILE_LINES_MAX)
    assert too_long(path) == [
        f"f, line 1: {FILE_LINES_MAX + 1} lines",
        f"{FILE_LINES_MAX + 1} lines; at most {FILE_LINES_MAX}",
    ]
    other = tmp_path / "other.py"  # a short function hides no long file
    other.write_text("x = 1\n" * FILE_LINES_MAX + "def f():\n    x = 1\n")
    assert too_long(other) == [f"{FILE_LINES_MAX + 2} lines; at most {FILE_LINES_MAX}"]


def contexts_written(tree: ast.AST) -> list[str]:
    """Fields of a node's context (`Node.home`) that are assigned by others than the object that has it."""
    return sorted(
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if isinstance(node.value, ast.Attribute)
        and node.value.attr == "home"
        and ast.unparse(node.value) != "self.home"
    )


def test_a_nodes_context_is_complete_when_it_is_made() -> None:
    """What a node gives its agents is passed at construction.  Only `mielin node --faults` puts faulty ones in their place."""
    injected = {"src/mielin_cells/cli/node.py": ["node.home.log", "node.home.step", "node.home.wire"]}
    assert found_in(SOURCES, lambda path: contexts_written(tree_of(path))) == injected


def test_a_planted_write_is_found() -> None:
    assert contexts_written(ast.parse("self.home.x = 1\nhome.x = 2")) == []
    assert contexts_written(ast.parse("def f(node):\n    node.home.cluster: X = node.home.y")) == ["node.home.cluster"]


def asserts(tree: ast.AST) -> list[str]:
    return [f"line {node.lineno}" for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def test_nothing_depends_on_asserts() -> None:
    """`python -O` takes them away: `errors.never` says what cannot be."""
    assert found_in(SOURCES, lambda path: asserts(tree_of(path))) == {}


def test_a_planted_assert_is_detected() -> None:
    assert asserts(ast.parse("def f(x):\n    if x:\n        assert x > 1, 'so'")) == ["line 3"]
