"""The simulator: clean on production code, and repeatable.  That it is alive is shown in `test_guards`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import guards

import mielin_cells as cells
from mielin_cells.agents.reference import classes
from mielin_cells.testing import simulate as command
from mielin_cells.testing.simulate import simulate

CLEAN_SEEDS = range(1, 9)
"""`make sim`, which is a part of `make test`, plays 60, and `make ci` 300 more."""


def test_production_code_keeps_every_invariant() -> None:
    results = [simulate(seed) for seed in CLEAN_SEEDS]
    assert [r.violations for r in results if r.violations] == []
    campaign = command.Campaign("1")
    for result in results:
        campaign.add(result)
    assert campaign.counts["migrations completed"] > 10, "the simulator must reach what it checks"
    assert campaign.counts["migrations rolled_back"] > 5
    assert campaign.faults["crash"] > 5
    assert campaign.faults["append_late"] > 5


def test_a_seed_tells_the_same_story_again_whatever_the_hash_seed_and_whatever_else_is_loaded() -> None:
    class NoneOfTheSimulator(cells.Agent):
        """As a process has them that has loaded the tests of other rooms: its nodes must not tell of it."""

    assert "NoneOfTheSimulator" in classes
    digests = [simulate(seed).digest for seed in range(1, 4)]
    assert len(set(digests)) == 3
    code = "from mielin_cells.testing.simulate import simulate; print(*[simulate(s).digest for s in range(1, 4)])"
    for hash_seed in ("1", "2"):
        again = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert again.stdout.split() == digests


def test_pieces_of_a_campaign_are_added_to_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = tmp_path / "pieces.jsonl"
    for start in ("3", "5"):
        monkeypatch.setattr(sys, "argv", ["simulate", "--seeds", "2", "--start", start, "--record", str(record)])
        assert command.main() == 0
    pieces = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(piece["what"], piece["seeds"], piece["failed"]) for piece in pieces] == [("3", 2, []), ("5", 2, [])]


def test_the_command_says_how_to_replay_a_violation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["simulate", "--seeds", "2", "--start", "3"])
    assert command.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("sim: 2 seeds from 3, 0 with violations; ")
    guards.dedupe(monkeypatch)
    assert command.main() == 1
    out = capsys.readouterr().out
    assert "replay: python -m mielin_cells.testing.simulate --only " in out
