"""Agent classes of test files have names of their own: one process imports them all, and refuses the second of a name."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from support.paths import ROOT


def agent_names(tree: ast.Module) -> Iterator[str]:
    """Of the classes at a file's top, which exist for as long as the process; names that are computed are left out."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "cells.Agent" for base in node.bases):
            given = next((keyword.value for keyword in node.keywords if keyword.arg == "name"), ast.Constant(node.name))
            if isinstance(given, ast.Constant):
                yield str(given.value)


def twice(files: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names that several files give, with the files."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, text in files:
        for one in set(agent_names(ast.parse(text))):
            found[one].append(name)
    return {one: names for one, names in found.items() if len(names) > 1}


def test_no_two_test_files_have_agents_of_one_name() -> None:
    files = sorted(Path(ROOT, "tests").rglob("*.py"))
    assert len(files) > 100
    assert twice((str(path), path.read_text()) for path in files if "typing" not in path.parts) == {}


def test_a_planted_name_is_found() -> None:
    bell = "class Bell(cells.Agent): pass"
    named = "class Bell(cells.Agent, name='Gong'): pass\nclass Gong: pass"
    inner = "def f():\n class Bell(cells.Agent): pass"
    assert twice([("a", bell), ("b", bell), ("c", named), ("d", inner)]) == {"Bell": ["a", "b"]}
