"""The package itself has what an author needs first; everything else has a named submodule."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest

import mielin_cells as cells
from mielin_cells import errors, migration

NAMES_MAX = 64
FAMILIES = (errors.UsageError, errors.RetryError, errors.LostError)


def test_the_package_has_few_names_and_each_is_there() -> None:
    assert len(cells.__all__) <= NAMES_MAX
    assert sorted(set(cells.__all__)) == cells.__all__
    assert [name for name in cells.__all__ if not hasattr(cells, name)] == []


def test_the_errors_of_the_package_are_those_of_its_errors_module() -> None:
    kinds = {name: kind for name in cells.__all__ if isinstance(kind := getattr(cells, name), type)}
    ours = {name: kind for name, kind in kinds.items() if issubclass(kind, Exception)}
    assert {*FAMILIES, errors.CellError} <= {*ours.values()}
    assert [
        name for name, kind in ours.items() if getattr(errors, name) is not kind or name not in errors.__all__
    ] == []


@pytest.mark.parametrize("name", migration.__all__)
def test_each_name_of_recovery_is_there(name: str) -> None:
    assert hasattr(migration, name)


def test_a_program_that_names_nothing_of_recovery_does_not_import_it() -> None:
    text = (
        "import sys, mielin_cells; print([name for name in sys.modules if name.startswith('mielin_cells.migration.')])"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_names_are_in_the_order_of_a_reader() -> None:
    assert all(one < other for one, other in pairwise(migration.__all__))


def test_programs_for_0_1_find_what_has_moved() -> None:
    assert cells.StateInvalid is errors.StateInvalid  # type: ignore[attr-defined]
    assert cells.RecoveryConfig is migration.RecoveryConfig  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="'Nowhere'"):
        _ = cells.Nowhere  # type: ignore[attr-defined]
