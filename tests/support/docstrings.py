"""Examples in docstrings, run as they stand: as `python -m asyncio` does it, with `await` at the top.

They have what the page about the API says that they have: `asyncio`, `AsyncIterator`, `cells`, the class `Till`, and, where an example
needs them, `cluster`, two real nodes on SQLite in memory, with `till` on the first of them.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import os
import sys
import traceback
import types
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import mielin_cells as cells
import mielin_cells.groups  # else the first example that imports it would define its class, for itself alone
from mielin_cells.agents.reference import classes

SETUP = """
import asyncio
from collections.abc import AsyncIterator

import mielin_cells as cells


class Till(cells.Agent):
    cents: int = 0

    @cells.handler
    async def sell(self, cents: int) -> int:
        self.cents += cents
        return self.cents
"""
LENT = {"cluster", "till"}
"""Opened for an example that names one of them before it makes it."""
MODULE = "example_in_a_docstring"
CHECKER = doctest.OutputChecker()


def examples_of(doc: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.cleandoc(doc))


def run(doc: str, folder: Path) -> list[str]:
    """What printed something else than the docstring says; the examples run in `folder`."""
    examples = examples_of(doc)
    codes = [_compiled(example.source) for example in examples]
    needs_loop = any(code.co_flags & inspect.CO_COROUTINE or LENT & {*code.co_names} for code in codes)
    with _module() as module, contextlib.chdir(folder):
        running = _run(list(zip(examples, codes, strict=True)), module)
        return asyncio.run(running) if needs_loop else _driven(running)


def _compiled(source: str) -> types.CodeType:
    code: types.CodeType = compile(source, "<docstring>", "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return code


def _driven(running: Coroutine[Any, Any, list[str]]) -> list[str]:
    """Of examples that await nothing: some run a loop of their own."""
    try:
        running.send(None)
    except StopIteration as done:
        wrong: list[str] = done.value
        return wrong
    raise AssertionError("it awaits something")


@contextlib.contextmanager
def _module() -> Iterator[types.ModuleType]:
    """A module of the example's own.  Its agent classes are forgotten behind it, so that each example may name them as it likes."""
    known = dict(classes)
    for name, cls in known.items():
        if not cls.__module__.startswith("mielin_cells."):  # a test of this process, which may have the same names
            del classes[name]
    module = sys.modules[MODULE] = types.ModuleType(MODULE)
    try:
        exec(compile(SETUP, "<docstring>", "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - it is above
        yield module
    finally:
        del sys.modules[MODULE]
        classes.clear()
        classes.update(known)


async def _run(examples: list[tuple[doctest.Example, types.CodeType]], module: types.ModuleType) -> list[str]:
    wrong = list[str]()
    async with contextlib.AsyncExitStack() as opened:
        for example, code in examples:
            if LENT & {*code.co_names} - module.__dict__.keys():
                cluster = await opened.enter_async_context(cells.local(nodes=2))
                module.__dict__["cluster"] = cluster
                module.__dict__["till"] = await cluster.on("node-1").spawn(module.__dict__["Till"], "till-1")
            printed, raised = await _one(code, module)
            wanted, got = (example.want, printed) if example.exc_msg is None else (example.exc_msg, raised)
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            if not CHECKER.check_output(wanted, got, flags) or (raised and example.exc_msg is None):
                wrong.append(f">>> {example.source}printed\n{printed}{raised}and not\n{wanted}")
    return wrong


async def _one(code: types.CodeType, module: types.ModuleType) -> tuple[str, str]:
    """What it prints, and the last line of what it raises."""
    before, output = sys.displayhook, io.StringIO()
    sys.displayhook = lambda value: None if value is None else print(repr(value))
    try:
        with contextlib.redirect_stdout(output):
            made = eval(code, module.__dict__)  # noqa: S307 - of our own docstrings
            if code.co_flags & inspect.CO_COROUTINE:
                await made
    except Exception as error:  # noqa: BLE001 - it is compared
        return output.getvalue(), traceback.format_exception_only(error)[-1]
    finally:
        sys.displayhook = before
    return output.getvalue(), ""


def without_variables() -> dict[str, str]:
    """An environment in which no deployment is named."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MIELIN_")}
