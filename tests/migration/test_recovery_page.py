"""`docs/recovery.md` says what the code does: its tables are the code's, and the tests that it names are there."""

from __future__ import annotations

import re

from support.paths import ROOT

from mielin_cells.migration.failure import CODES, FAMILIES, REFUSALS, MigrationErrorType

PAGE = ROOT / "docs" / "recovery.md"


def codes_table() -> str:
    lines = ["| type | codes |", "|-|-|"]
    for kind in MigrationErrorType:
        names = [f"`{name}`" for name, found in CODES.items() if found is kind]
        lines.append(f"| `{kind.value}` | {', '.join(names)} |")
    return "\n".join(lines)


def test_the_table_of_codes_is_the_one_that_decides() -> None:
    assert codes_table() in PAGE.read_text(), f"write the table anew:\n{codes_table()}"


def test_refusals_and_families_are_on_the_page() -> None:
    text = PAGE.read_text()

    for kind in set(REFUSALS.values()):
        names = ", ".join(one.value for one, found in REFUSALS.items() if found is kind)
        assert f"| {names} | `{kind.value}` |" in text
    for family, kind in FAMILIES:
        assert f"| `{family.__name__}` | `{kind.value}` |" in text


def test_the_tests_that_the_page_names_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }

    assert named
    assert sorted(named - there) == []


def test_every_defect_of_the_seed_is_on_the_page() -> None:
    listed = {int(number) for number in re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)}

    assert listed == {*range(1, 37), 42, 43}
