"""The benchmark's page is written from its results alone, and hides nothing: neither a failed part nor a missed bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks import bars, page
from benchmarks.__main__ import PARTS
from benchmarks.figures import Found, kept, percentile, spread

AROUND = {"load_before": 0.1, "load_after": 0.2, "seconds": 3.0, "busy_share": 0.5, "others_share": 0.02}


def part(found: Found, error: str = "") -> dict[str, Any]:
    return {**found.as_json(), "error": error, "seconds": 3.0, "machine": AROUND, "commit": "abc"}


def results(**parts: dict[str, Any]) -> dict[str, Any]:
    machine = {
        "cpu": "x", "cores": 2, "memory_gib": 8, "system": "Linux", "architecture": "x", "python": "3.11.7", "sqlite": "3",
        "commit": "abc",
    }  # fmt: skip
    at = "2026-11-23T10:00:00+00:00"
    return {
        "size": "full", "at": at, "machine": machine, "versions": {"msgspec": "1"}, "peers": "", "peer_versions": {"ray": "2"},
        "parts": parts,
    }  # fmt: skip


def test_the_page_tells_a_met_bar_a_missed_one_and_a_part_that_failed(tmp_path: Path) -> None:
    found = Found()
    found.row("pause-p50", "always", "1.5 times", True, "9 moves")
    found.row("pause-p50", "lazy", "2.5 times", False)

    text = page.text(results(pause=part(found), asks=part(Found(), "it was ended after 9 s: a | b")), tmp_path, "")

    assert "| always | at most 2 times the floor | 1.5 times<br>9 moves | yes |" in text
    assert "| lazy | at most 2 times the floor | 2.5 times | **no** |" in text
    assert "## Bars that are not met\n\n- **pause, 1 KiB state, 1,000 messages/s, p50**" in text
    assert "its part failed: it was ended after 9 s: a / b" in text
    assert "its part was not run" in text


def test_the_head_names_a_commit_only_if_every_part_was_measured_at_it(tmp_path: Path) -> None:
    one, other = part(Found()), {**part(Found()), "commit": "def+"}
    alike = page.text(results(pause=one, asks=one), tmp_path, "")
    assert ", commit abc; 2 cores" in alike
    mixed = page.text(results(pause=one, asks=other), tmp_path, "")
    assert ", with parts of 2 commits, which [the last table](#how-busy-the-machine-was) names; 2 cores" in mixed
    assert "| asks | def+ |" in mixed
    assert ", commit abc; 2 cores" in page.text(results(), tmp_path, "")


def test_each_table_has_as_many_cells_in_every_row_as_in_its_head(tmp_path: Path) -> None:
    found = Found()
    found.row("pause-p50", "always", "1.5 times", True, "9 moves")

    text = page.text(results(pause=part(found), asks=part(Found(), "it was ended after 9 s: a | b")), tmp_path, "")

    assert "| part | commit | took | load before |" in text
    assert "| pause | abc | 3 s | 0.1 | 2% |  |" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({line.count("|") for line in table}) == 1, table


def test_every_bar_belongs_to_a_part_that_runs_and_every_part_has_a_bar() -> None:
    assert {bar.part for bar in bars.BARS} == {part.name for part in PARTS}


def test_a_row_that_is_no_bar_at_that_sync_is_refused() -> None:
    with pytest.raises(AssertionError, match="has no sync"):
        Found().row("spawn", "always", "1/s", True)


def test_a_series_is_summarised_by_its_spread_and_thinned_for_plots() -> None:
    values = [float(n) for n in range(10_000, 0, -1)]

    assert spread(values)["p50"] == pytest.approx(5000.5, rel=1e-3)
    assert percentile(values, 0.99) == 9901.0
    assert len(kept(values)) == 2000
    assert kept(values) == sorted(kept(values))
