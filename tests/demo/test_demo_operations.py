"""The main job on a small file while its agents are spread, and while its app is upgraded: nothing is lost or doubled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.depth import DEPTH

HEADER = "time_hour,carrier,flight,tailnum,origin,dest,dep_delay,arr_delay,air_time,distance\n"
CLOSE_S = 250

pytestmark = pytest.mark.skipif(DEPTH == "test", reason="each takes most of a minute: a part of `make long`")


def run_demo(tmp_path: Path, rows: int, *options: str) -> dict[str, Any]:
    events, report = tmp_path / "events.csv", tmp_path / "report.json"
    lines = [f"t{n},UA,{n},N{n % 40},EWR,D{n % 7},2,{n % 60 - 10},9,{100 + n % 900}\n" for n in range(rows)]
    events.write_text("".join([HEADER, *lines]))
    command = [str(Path(sys.executable).with_name("mielin")), "demo", "--events", str(events), "--json", str(report)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=CLOSE_S, check=False)
    assert report.exists(), done.stderr
    result: dict[str, Any] = json.loads(report.read_text())
    assert (result["lost"], result["duplicated"], result["mismatched"]) == (0, 0, 0), done.stdout + done.stderr
    assert result["unanswered"] == {}
    result["code"] = done.returncode
    return result


def test_an_app_is_upgraded_and_a_bad_one_is_undone_while_the_job_runs(tmp_path: Path) -> None:
    result = run_demo(tmp_path, 4000, "--deploy", "--migrations", "20")
    assert result["code"] == 0
    assert [deploy["phase"] for deploy in result["deploys"]] == ["done", "undone"]
    assert "turns of Aircraft failed in the new code" in result["deploys"][1]["why"]
    assert result["failed_and_called_again"] > 0


def test_agents_of_one_node_are_spread_while_the_job_runs(tmp_path: Path) -> None:
    """How long it takes, and how even it becomes, is a matter of the machine; `mielin demo --rebalance` judges that."""
    result = run_demo(tmp_path, 15_000, "--rebalance")
    assert result["failed_moves"] == []
    assert result["moved"] >= 20
    assert min(result["agents_by_node"].values()) >= 5
    assert result["uneven"] < 0.5, "it was 2"
