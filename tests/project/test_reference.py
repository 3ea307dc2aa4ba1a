"""The reference is complete: each error, setting, record, command, exit code and public name is in it, with words of its own."""

from __future__ import annotations

import dataclasses
import re
import types
from typing import get_args

import pytest
from support.paths import DOCS, ROOT
from website import reference

import mielin_cells as cells
from mielin_cells import errors, groups, policies, sensors
from mielin_cells.cli.app import app
from mielin_cells.cli.explain.entries import EXITS, entry, public
from mielin_cells.deployment import codes
from mielin_cells.log.records import AnyRecord
from mielin_cells.metrics.families import FAMILIES
from mielin_cells.migration import RecoveryConfig
from mielin_cells.policy.facts import Facts

API = (DOCS / "reference" / "api.md").read_text()
NAV = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2].partition("not_in_nav")[0]
ELSEWHERE = {"errors", "Settings"}
"""Public names that pages of their own describe."""


def headings(page: str) -> set[str]:
    return set(re.findall(r"^#+ (.+)$", page, re.MULTILINE))


def test_every_error_of_this_package_has_an_entry() -> None:
    page = reference.errors_page()
    assert set(public()) <= set(errors.__all__), "an error that users may meet is public"
    assert set(public()) < headings(page)


@pytest.mark.parametrize("code", public())
def test_an_entry_says_what_happened_and_what_to_do(code: str) -> None:
    one = entry(public()[code])
    assert one.meaning.endswith((".", ")"))
    assert one.next.endswith(".")
    assert "Facts" not in one.meaning + one.next
    assert one.exit in EXITS


@pytest.mark.parametrize("cls", [cells.Settings, RecoveryConfig])
def test_every_setting_says_what_it_is(cls: type) -> None:
    docs = reference.field_docs(cls)
    page = reference.settings_page()
    for field in dataclasses.fields(cls):
        assert docs.get(field.name), f"{field.name} needs a docstring behind it"
        assert f"`{field.name}`" in page


def test_every_figure_of_a_node_is_in_the_reference() -> None:
    page, docs = reference.telemetry_page(), reference.field_docs(Facts)
    assert set(docs) == set(Facts.__struct_fields__), "a fact needs a docstring behind it"
    assert all(f"| `{name}` | " in page for name in docs)
    assert {"given", "failed", "dropped", "malformed"} <= set(re.findall(r"(\w+):", page))


def test_every_metric_has_a_row_with_its_labels() -> None:
    page = reference.metrics_page()
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| <span")}
    assert rows.keys() == {family.shown for family in FAMILIES.values()}
    for family in FAMILIES.values():
        assert all(f"`{label}`" in rows[family.shown] for label in family.labels)
        assert family.help in rows[family.shown].replace("\\|", "|")


def test_every_record_says_what_it_is() -> None:
    sections = re.split(r"^## ", reference.records_page(), flags=re.MULTILINE)[1:]
    said = {name: text.strip() for name, _, text in (section.partition("\n") for section in sections)}
    assert set(said) == {cls.__name__ for cls in get_args(AnyRecord)}
    assert all(text and not text.startswith("-") for text in said.values()), said


def test_every_exit_code_is_named() -> None:
    named = {value for name, value in vars(codes).items() if name.isupper() and isinstance(value, int)}
    assert named == set(EXITS)
    page = reference.exit_codes_page()
    assert all(f"| {code} | " in page for code in named)


def test_every_command_is_in_the_reference_and_on_the_page_about_the_command_line() -> None:
    found = headings(reference.commands_page())
    by_hand = (DOCS / "cli.md").read_text()
    for name in app:
        if not name.startswith("-"):
            assert f"mielin {name}" in found
            assert re.search(rf"`(mielin )?{name}\b|, `{name}`", by_hand), f"docs/cli.md does not name {name}"
            assert all(f"mielin {name} {one}" in found for one in app[name] if not one.startswith("-"))


@pytest.mark.parametrize("name", sorted(set(cells.__all__) - ELSEWHERE))
def test_every_public_name_is_in_the_reference(name: str) -> None:
    value = getattr(cells, name)
    if isinstance(value, type) and issubclass(value, errors.CellError):
        assert name in public()
    else:
        assert f"::: mielin_cells.{name}\n" in API


@pytest.mark.parametrize("module", [groups, policies, sensors])
def test_every_name_of_the_other_modules_for_authors_is_in_the_reference(module: types.ModuleType) -> None:
    """`Policy` is there as a name of the package, and the alias `Value` says nothing."""
    for name in set(module.__all__) - {"Policy", "Value", "Sensor"}:
        assert re.search(rf"^::: mielin_cells\.\w+\.{name}$", API, re.MULTILINE), f"{module.__name__}.{name}"


def test_every_page_has_a_place_and_every_place_a_page() -> None:
    named = set(re.findall(r"- (\S+\.md)$", NAV, re.MULTILINE))
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    made = set(reference.PAGES) | {"architecture.md", "contributing.md", "changelog.md"}
    assert named <= written | made, "mkdocs.yml names pages that are not there"
    assert made <= named
    assert {page for page in written - named if "/" in page} == set(), "pages at the top get a place by their names"


def test_every_link_between_pages_has_a_target() -> None:
    """A quick look; `make docs` checks anchors too."""
    made = {*reference.PAGES, "architecture.md", "contributing.md", "changelog.md"}
    made |= {f"examples/{path.stem}.md" for path in (ROOT / "examples").glob("*.py")}
    for page in DOCS.rglob("*.md"):
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
            path = (page.parent / target).resolve()
            known = path.is_file() or (path.is_relative_to(DOCS) and str(path.relative_to(DOCS)) in made)
            assert known, f"{page.name} links to {target}"
