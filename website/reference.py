"""The pages of the reference that are written from the code, as Markdown.  `make docs` calls them; `tests/project` checks them.

Nothing here says what an error, a setting or a command is: each text is a docstring, or the help of the command line.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec

from mielin_cells import settings, tracing
from mielin_cells.agents.reports import AgentInfo, NodeInfo
from mielin_cells.cli.app import app
from mielin_cells.cli.explain.entries import EXITS, entry, public
from mielin_cells.log import records
from mielin_cells.metrics.families import FAMILIES, Family, bounds
from mielin_cells.migration import RecoveryConfig, recovery
from mielin_cells.policy.facts import Facts

ROOT = Path(__file__).resolve().parent.parent


def errors_page() -> str:
    """One heading for each code, so that a search for the code ends at its entry."""
    known = [entry(cls) for cls in public().values()]
    parts = [
        "# Errors",
        (
            "Every error that a command prints ends with its code in brackets, and `mielin explain CODE` prints its entry. "
            "In Python the code is the name of the class (`mielin_cells.errors`), and `error.facts` has the facts. "
            "A base class has an entry too: catch it to catch all that are derived from it."
        ),
    ]
    for one in known:
        name, _ = EXITS[one.exit]
        rows = [f"- **Kind**: {one.family}.", f"- **Next**: {one.next}"]
        rows += [f"- **Facts**: {one.facts}."] * bool(one.facts)
        rows += [f"- **Exit code** of a command: [{one.exit}](exit-codes.md), {name}."]
        if one.retry_after is not None:
            rows.append(f"- **Retry after**: {one.retry_after:g} s.")
        parts += [f"## {one.code}", one.meaning, "\n".join(rows)]
    return _page(parts)


def settings_page() -> str:
    parts = [
        "# Settings",
        (
            "A node reads `mielin.toml` in its directory, or what `--config` names; a program passes `cells.Settings(...)`. Durations "
            "are seconds, at most 1,000,000,000; sizes are bytes. [The command line](../cli.md#settings) shows the file."
        ),
        "## Of a node: `[settings]`",
        _fields(settings.Settings, settings),
        "## Of the recovery of moves: `[recovery]`",
        _fields(RecoveryConfig, recovery),
        "## Limits that cannot be set",
        _constants(settings),
    ]
    return _page(parts)


def records_page() -> str:
    parts = [
        "# Records of an agent's log",
        (
            "`mielin log AGENT` prints them. Every record carries the agent, the epoch, the node that wrote it and its process "
            "(`incarnation`), the record before it (`prev`), the newest snapshot (`snap`), and when it was written (for people only)."
        ),
    ]
    for cls in get_args(records.AnyRecord):
        parts += [f"## {cls.__name__}", _said(cls) or RECORDS.get(cls.__name__, "")]
        own = [field for field in msgspec.structs.fields(cls) if field.name not in records.Record.__struct_fields__]
        docs = field_docs(cls)
        rows = [f"- `{field.name}`{': ' + docs[field.name] if field.name in docs else ''}" for field in own]
        parts += ["\n".join(rows)] * bool(rows)
    return _page(parts)


RECORDS = {
    "Created": "The first record: class, version and initial state.",
    "Committed": "What one or more turns have changed: state, cursor, answers and outputs, in one record.",
    "Suspended": "An operator, or the recovery of a move, has stopped the agent's turns.",
    "Paused": "A user has paused the agent.",
    "Resumed": "The agent runs turns again.",
    "Failed": "The agent is in ERROR, and says why.",
    "Terminated": "The last record: the agent has ended.",
    "Accepted": "The target of a move runs the agent: the move is completed.",
    "Returned": "The target of a move gives the agent back: the move is rolled back.",
    "Claimed": "A node has taken the agent over from one that is gone.",
}
"""Of records whose name says nearly all; the others have docstrings."""


def exit_codes_page() -> str:
    rows = [f"| {code} | {name} | {text} | {_codes_with(code)} |" for code, (name, text) in EXITS.items()]
    head = "| code | name | meaning | errors |\n|-|-|-|-|\n"
    said = "Commands and node processes end with these codes. An error that is not listed ends with 1."
    return _page(["# Exit codes", said, head + "\n".join(rows)])


def _codes_with(code: int) -> str:
    if code <= 1:
        return ""
    return ", ".join(f"[{name}](errors.md#{name.lower()})" for name, cls in public().items() if entry(cls).exit == code)


def commands_page() -> str:
    """As `--help` says it."""
    text = app.generate_docs(output_format="markdown")
    text = re.sub(r"(?s)## Table of Contents.*?(?=\n\*\*Run\*\*)", "", text).replace(
        "# mielin\n", "# Commands and their options\n", 1
    )
    text = text.replace("[:", "\\[:")  # an optional part of a value, and no link
    return _page(
        [text, "[The page about the command line](../cli.md) says how commands find a deployment, and what they print."]
    )


def metrics_page() -> str:
    """A row for each metric."""
    rows = [
        f'| <span id="{one.name}">`{one.shown}`</span> | {one.kind} | {_labels(one)} | {_cell(one.help)} |'
        for one in FAMILIES.values()
    ]
    uppers = ", ".join(f"{1000 * bound:g}" for bound in bounds())
    parts = [
        "# Metrics",
        (
            "`mielin node --metrics HOST:PORT` serves them for Prometheus at `/metrics`, and `mielin metrics` prints those of all "
            "nodes once. [How to scrape them](../how-to-metrics.md) says how to set that up, and has alerts."
        ),
        (
            "Every metric has the label `node`. Counters begin at 0 when the node's process begins. A node has no sample of what "
            "it does not know or does not have: a missing battery is not an empty one."
        ),
        "| metric | type | further labels | what it is |\n|-|-|-|-|\n" + "\n".join(rows),
        f"The bounds of `mielin_turn_duration_seconds` are {uppers} ms.",
        (
            "The endpoint also serves the metrics of the process under the usual names: `process_cpu_seconds_total`, "
            "`process_resident_memory_bytes`, `process_virtual_memory_bytes`, `process_start_time_seconds`, `process_open_fds` and "
            "`process_max_fds`."
        ),
    ]
    return _page(parts)


def _labels(family: Family) -> str:
    return ", ".join(f"`{label}`" for label in family.labels)


def telemetry_page() -> str:
    """Spans, and the figures of nodes and agents as commands print them."""
    counts = _near(inspect.getsource(tracing), "counts")
    parts = [
        "# Traces, figures and logs",
        _paragraphs(tracing.__doc__),
        "## Span",
        "What a tracer is given for each span.",
        "\n".join(f"- `{name}`: {text}" for name, text in field_docs(tracing.Span).items()),
        "## Figures",
        (
            "[Metrics](metrics.md) has what Prometheus scrapes. The figures below are printed by commands: `mielin nodes --json` "
            "has the facts of all nodes, `mielin top --json` one line for each look, and `mielin agents --json` what waits for "
            "each agent."
        ),
        "### Facts of a node",
        "In `facts` of `mielin nodes --json`, and in [policies](../policies.md#facts-of-nodes). What cannot be measured is absent.",
        _table("fact", field_docs(Facts)),
        "### A node",
        "`mielin nodes --json`, and `cells.NodeInfo`.",
        _table("field", field_docs(NodeInfo)),
        "### An agent",
        "`mielin agents --json`, and `cells.AgentInfo`.",
        _table("field", field_docs(AgentInfo)),
        "### Of tracing",
        "`mielin_cells.tracing.counts`, in each process.",
        counts,
        "## Logs",
        (
            "Nodes log to the logger `mielin_cells`. Lines name the node, and the agent if there is one. WARNING needs a look, "
            "and ERROR needs a person."
        ),
    ]
    return _page(part for part in parts if part)


def _table(what: str, docs: dict[str, str]) -> str:
    rows = [f"| `{name}` | {_cell(text)} |" for name, text in docs.items()]
    return f"| {what} | what it is |\n|-|-|\n" + "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _near(source: str, name: str) -> str:
    """The docstring behind the module's variable, if there is one."""
    found = re.search(rf'^{name}\b.*?\n"""(.*?)"""', source, re.MULTILINE | re.DOTALL)
    return re.sub(r"\s+", " ", found[1]) if found else ""


PAGES: dict[str, Callable[[], str]] = {
    "reference/errors.md": errors_page,
    "reference/settings.md": settings_page,
    "reference/records.md": records_page,
    "reference/exit-codes.md": exit_codes_page,
    "reference/commands.md": commands_page,
    "reference/metrics.md": metrics_page,
    "reference/telemetry.md": telemetry_page,
}


def field_docs(cls: type) -> dict[str, str]:
    """By field: the docstring that follows it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    return dict(_documented(_flat(tree.body)))


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Fields are declared in the class, or set in its `__init__`."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef):
            yield from statement.body if statement.name == "__init__" else ()
        else:
            yield statement


def _documented(body: Iterator[ast.stmt]) -> Iterator[tuple[str, str]]:
    names: list[str] = []
    for statement in body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name) | ast.Attribute(attr=name)):
                names = [name]
            case ast.Assign(targets=[*targets]):
                names = [
                    target.attr if isinstance(target, ast.Attribute) else ast.unparse(target) for target in targets
                ]
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield from ((name, re.sub(r"\s+", " ", text).strip()) for name in names)
                names = []
            case _:
                names = []


def _fields(cls: type, module: types.ModuleType) -> str:
    docs, ranges = field_docs(cls), settings._ranges(cls)
    rows = []
    for field in dataclasses.fields(cls):
        default = (
            f"{field.default:,}" if isinstance(field.default, int) and field.default is not True else field.default
        )
        wanted = (
            ranges[field.name][1]
            .replace("|", "\\|")
            .replace("above 0, to 1e+09 seconds", "above 0 seconds")
            .replace("0 to 1e+09 seconds", "from 0 seconds")
        )
        rows.append(
            f'| <span id="{field.name}">`{field.name}`</span> | {default} | {wanted} | {docs.get(field.name, "")} |'
        )
    return "| setting | default | range | what it is |\n|-|-|-|-|\n" + "\n".join(rows)


def _constants(module: types.ModuleType) -> str:
    tree = ast.parse(inspect.getsource(module))
    rows = []
    for name, text in _documented(iter(tree.body)):
        value: Any = getattr(module, name, None)
        if name.isupper() and isinstance(value, (int, float)):
            rows.append(f"| `{name}` | {value:,} | {text} |")
    return "| limit | value | why |\n|-|-|-|\n" + "\n".join(rows)


def _said(cls: type) -> str:
    """The class's own docstring; msgspec gives one of its own making to those that have none."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    return _paragraphs(ast.get_docstring(tree))


def _paragraphs(text: str | None) -> str:
    parts = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(part if part.startswith("    ") else re.sub(r"\s+", " ", part) for part in parts)


def _page(parts: Any) -> str:
    return "\n\n".join(parts) + "\n"
