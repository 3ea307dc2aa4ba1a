"""Simulated deployments of many nodes: what is counted, and that what is lost, doubled or grows is seen."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mielin_cells.testing.scale.counted import kind_of
from mielin_cells.testing.scale.measure import measure
from mielin_cells.testing.scale.report import Limits, render, shortfalls
from mielin_cells.testing.scale.scene import ScaleScene
from mielin_cells.testing.simulator import loop

SHORT: dict[str, Any] = {"rest_s": 6.0, "window_s": 4.0}


def test_nothing_is_lost_while_nodes_are_drained_and_fail() -> None:
    result = measure(20, 10, **SHORT)
    assert result.violations == []
    assert (result.lost_at_once, result.moved, result.unknown) == (2, 40, 0)
    assert result.asks >= 80
    assert 0 < result.failover_s < 10
    idle, busy = result.idle, result.busy
    assert idle is not None
    assert busy is not None
    assert idle.beats_sent == pytest.approx(2.0, abs=0.3)
    assert idle.beats_heard_most >= idle.beats_heard > 0
    assert (idle.log_appends, idle.inbox_calls) == (0.0, 0.0)
    assert busy.log_appends == pytest.approx(1.0, abs=0.5), "each node has one ask in a second, and each ask one commit"


def test_planted_violations_are_found() -> None:
    found: list[str] = []

    async def main() -> None:
        scene = ScaleScene(3, 2)
        await scene.begin()
        await scene.spawn_all()
        await scene.check(set(scene.homes))
        assert scene.violations == []
        scene.answered["a000000"] += 1
        nodes = scene.living()
        nodes[1].activations.live["a000000"] = nodes[0].activations.live["a000000"]
        del nodes[1].activations.live["a000004"]
        scene.world.crash(nodes[2].name)
        await scene.check({"a000000"})
        found.extend(violation.partition(" s: ")[2] for violation in scene.violations)
        scene.end()

    loop.run(main())
    assert sorted(found) == [
        "a000000 has counted 0; 1 asks were answered, and 1 were made",
        "a000000 is served by 2 nodes",
        "a000002 belongs to node-0002, which does not live",
        "a000002 is served by 0 nodes",
        "a000004 belongs to node-0001, which does not serve it",
        "a000004 is served by 0 nodes",
        "a000005 belongs to node-0002, which does not live",
        "a000005 is served by 0 nodes",
    ]


def test_what_grows_takes_longer_or_is_lost_is_reported() -> None:
    few = measure(4, 2, rest_s=0.0, window_s=1.0).as_json()
    many = {**copy.deepcopy(few), "nodes": 20, "agents": 40}
    assert shortfalls([few, many], Limits()) == []
    many["idle"]["beats_sent"], many["busy"]["logs_listed"] = 9.0, 0.4
    many["drain_s"], many["violations"] = few["drain_s"] * 3, ["1.0 s: a000001 is served by 2 nodes"]
    missed = shortfalls([few, many], Limits())
    assert missed[0] == "20 nodes: 1.0 s: a000001 is served by 2 nodes"
    assert missed[1].startswith("heartbeats sent, idle: ")
    assert missed[2].startswith("drain: ")
    assert len(missed) == 3
    assert "| agents lost, doubled or without a living owner | 0 of 8 | 1 of 40 |" in render([few, many])


@pytest.mark.parametrize(
    ("subject", "kind"),
    [
        ("log.a", "agents"), ("inbox.a", "inboxes"), ("beat.nodes", "beats"), ("members", "members"),
        ("control.n", "requests"), ("part.a.x", "others"),
    ],
)  # fmt: skip
def test_subjects_are_counted_by_kind(subject: str, kind: str) -> None:
    assert kind_of(subject) == kind


def test_the_command_writes_its_figures_and_says_what_is_missed(tmp_path: Path) -> None:
    out = tmp_path / "figures" / "sim.json"
    words = ["--nodes", "4,6", "--agents-each", "5", "--rest", "1", "--window", "2", "--out", str(out)]
    played = subprocess.run(
        [sys.executable, "-m", "mielin_cells.testing.scale", *words], capture_output=True, text=True, check=False
    )
    assert played.stderr.count("check: ") == 2, played.stderr
    written = json.loads(out.read_text())
    assert [result["agents"] for result in written["results"]] == [20, 30]
    assert [result["violations"] for result in written["results"]] == [[], []]
    assert played.returncode == bool(written["missed"])
    assert "| 4 nodes, 20 agents | 6 nodes, 30 agents |" in played.stdout
