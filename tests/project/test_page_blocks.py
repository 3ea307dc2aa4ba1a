"""Every block of code of the site is run, or read, by a test: a new one that is in none fails here."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from support.pages import INSTALLING, RUN
from support.paths import DOCS, ROOT
from website.hooks import titled
from website.reference import PAGES as GENERATED

from mielin_cells.deployment.config import Config, read

FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"<pre\b.*?</pre>", re.DOTALL)
NOT_CODE = {("README.md", "text"), ("ARCHITECTURE.md", "text")}
"""The output of the README's program, which `test_page_commands.py` compares, and a drawing."""
SOURCES = sorted(
    [*DOCS.rglob("*.md"), *(ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG"))]
)


def blocks() -> Iterator[tuple[Path, str, str]]:
    """The page, what stands behind the fence, and the text."""
    for page in SOURCES:
        yield from ((page, head.strip(), text) for head, text in FENCE.findall(page.read_text()))


def runner(page: Path, head: str) -> str:
    """What runs or reads blocks of this kind; "" if nothing does."""
    kind, _, file = head.partition(" ")
    is_run = page.parent == DOCS and page.stem in RUN
    if kind == "pycon" and not file and page.is_relative_to(DOCS):
        return "tests/project/test_page_examples.py"
    if is_run and (head == "console" or (kind in ("python", "conf", "toml") and file)):
        return "tests/clusters"
    if head == "toml mielin.toml":
        return __file__
    if head == "sh" and page.parent == DOCS:
        return INSTALLING.get(page.stem, "")
    if head == "python" and page.name == "README.md":
        return "tests/project/test_page_commands.py"
    return ""


def test_every_block_is_in_a_test() -> None:
    found = [(page, head) for page, head, _ in blocks() if (page.name, head) not in NOT_CODE]
    assert len(found) > 100
    assert [f"{page.name}: ```{head}" for page, head in found if not runner(page, head)] == []
    named = {runner(page, head) for page, head in found}
    assert all((ROOT / path).exists() for path in named)


def test_a_page_that_is_said_to_be_run_has_something_to_run() -> None:
    with_commands = {page.stem for page, head, _ in blocks() if head == "console" and page.parent == DOCS}
    assert with_commands == RUN
    assert {page.stem for page, head, _ in blocks() if head == "sh"} == INSTALLING.keys()


def rendered(text: str) -> list[str]:
    """Blocks of code as readers of the site see them, also those that are only indented."""
    markdown = import_module("markdown")
    extensions = ["admonition", "attr_list", "md_in_html", "tables", "pymdownx.superfences"]
    return [
        html.unescape(re.sub(r"<[^>]+>", "", one))
        for one in CODE.findall(markdown.markdown(titled(text), extensions=extensions))
    ]


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: page.name)
def test_code_of_a_page_stands_behind_a_fence(page: Path) -> None:
    """Else no test would know what it is."""
    text = page.read_text()
    assert len(rendered(text)) == len(FENCE.findall(text))


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_a_page_from_the_code_has_no_code_but_usage_lines_of_commands(name: str) -> None:
    found = rendered(GENERATED[name]())
    usage = [one for one in found if re.match(r"\s*mielin \S", one) and name == "reference/commands.md"]
    assert found == usage


def test_code_is_found_however_it_is_written() -> None:
    assert len(rendered("a\n\n    indented\n\n- b\n\n    ```python\n    x = 1\n    ```\n\n```sh\nls\n```\n")) == 3
    assert (
        runner(DOCS / "concepts.md", "python")
        == runner(DOCS / "rationale.md", "console")
        == runner(DOCS / "cli.md", "yaml")
        == ""
    )


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=f"{page.stem} {n}")
        for n, (page, head, text) in enumerate(blocks())
        if head == "toml mielin.toml"
    ],
)
def test_a_configuration_on_a_page_is_one_that_a_node_takes(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mielin.toml"
    path.write_text(text)
    assert read(path) != Config()
