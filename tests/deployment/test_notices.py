"""A machine that goes away: SIGTERM, a drain file and notices of a cloud drain a node by their deadlines, and nothing else does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.processes import APP, Deployment, deployment, wait_for
from support.waiting import until

from mielin_cells.deployment.ending import Ending
from mielin_cells.deployment.notices import Notices, ReadyFile
from mielin_cells.policy.sensors import Sensor, notices
from mielin_cells.sensors import notice


@pytest.fixture(autouse=True)
def forced(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """After how many seconds the process would end by force; nothing is forced here."""
    asked = list[float]()
    monkeypatch.setattr(Ending, "_force_after", lambda self, within_s: asked.append(within_s))
    return asked


async def test_a_notice_drains_within_its_time_and_the_signal_behind_it_only_shortens_that(forced: list[float]) -> None:
    ending = Ending(30.0)
    ending.announce("notice spot", 120.0)
    assert (ending.reason, ending.drains) == ("notice spot", True)
    assert 119 < ending.left_s <= 120
    ending.announce("notice spot", 119.9)  # it is repeated
    assert forced == [120.0]
    ending.on_signal(signal.SIGTERM, None)
    await asyncio.sleep(0)
    assert ending.shortened.is_set()
    assert not ending.hurried.is_set()
    assert 29 < ending.left_s <= 30
    assert forced == [120.0, 30.0]
    ending.on_signal(signal.SIGTERM, None)
    await asyncio.sleep(0)
    assert ending.hurried.is_set()


async def test_a_signal_drains_within_the_setting_and_a_notice_behind_it_may_shorten_that(forced: list[float]) -> None:
    ending = Ending(30.0)
    ending.on_signal(signal.SIGTERM, None)
    assert (ending.reason, ending.drains) == ("SIGTERM", True)
    ending.announce("notice spot", 120.0)
    assert 29 < ending.left_s <= 30
    ending.announce("notice spot", 5.0)
    assert ending.left_s <= 5
    assert forced == [30.0, 5.0]


async def test_an_interrupt_moves_nothing_also_if_a_notice_follows() -> None:
    ending = Ending(30.0)
    ending.on_signal(signal.SIGINT, None)
    ending.announce("notice spot", 5.0)
    assert (ending.reason, ending.drains) == ("SIGINT", False)
    assert ending.left_s > 29


@pytest.mark.usefixtures("forced")
def test_a_signal_behind_the_end_of_the_loop_raises_nothing() -> None:
    """A supervisor may send it twice; an error in the handler would make a clean end look like a failed one."""

    async def make() -> Ending:
        ending = Ending(30.0)
        ending.on_signal(signal.SIGTERM, None)
        return ending

    ending = asyncio.run(make())
    ending.on_signal(signal.SIGTERM, None)
    ending.announce("notice spot", 1.0)
    assert ending.reason == "SIGTERM"


# ---- what announces --------------------------------------------------------------------------------------------


@contextmanager
def looking(
    ending: Ending, monkeypatch: pytest.MonkeyPatch, file: Path | None = None, *ask: Callable[[], Any]
) -> Iterator[Notices]:
    monkeypatch.setattr("mielin_cells.deployment.notices.FILE_S", 0.01)
    asked = [Sensor(name=f"n{place}", read=read, every_s=0.01, timeout_s=0.1) for place, read in enumerate(ask)]
    found = Notices(ending, "node-1", str(file) if file is not None else None, lambda: asked)
    found.start()
    try:
        yield found
    finally:
        found.stop()


@pytest.mark.parametrize(
    ("text", "least", "most"), [("", 29, 30), ("12", 11, 12), ("12.5\n", 11, 12.5), ("soon", 29, 30), ("nan", 29, 30)]
)
async def test_a_file_that_is_made_drains_within_the_seconds_that_it_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, least: float, most: float
) -> None:
    ending, file = Ending(30.0), tmp_path / "drain"
    with looking(ending, monkeypatch, file):
        await asyncio.sleep(0.1)
        assert ending.reason == ""
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").rename(file)
        await until(lambda: ending.reason != "")
    assert ending.reason == f"{file} was touched"
    assert least < ending.left_s <= most


async def test_a_file_that_an_earlier_process_has_left_says_nothing_until_it_is_touched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ending, file = Ending(30.0), tmp_path / "drain"
    file.touch()
    os.utime(file, (1.0, 1.0))
    with looking(ending, monkeypatch, file):
        await asyncio.sleep(0.1)
        assert ending.reason == ""
        file.touch()
        await until(lambda: ending.reason != "")


async def test_a_notice_that_raises_hangs_or_says_nonsense_is_logged_and_drains_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ending = Ending(30.0)

    def raises() -> float:
        raise OSError("no route to the metadata")

    with looking(ending, monkeypatch, None, raises, lambda: time.sleep(1.0), lambda: "soon", lambda: None):
        await until(lambda: "no route to the metadata" in caplog.text and "wanted: seconds" in caplog.text)
        await asyncio.sleep(0.2)
    assert ending.reason == ""


async def test_a_notice_drains_within_the_seconds_that_it_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    ending, answers = Ending(30.0), [None, None, 90.0]

    async def spot() -> float | None:
        return answers.pop(0) if answers else None

    with looking(ending, monkeypatch, None, spot):
        await until(lambda: ending.reason != "")
    assert ending.reason == "notice n0"
    assert 80 < ending.left_s <= 90


def test_a_notice_is_declared_like_a_sensor() -> None:
    try:
        assert notice("test_notices_spot", every_s=2.0)(lambda: None)() is None
        assert notices["test_notices_spot"].every_s == 2.0
    finally:
        del notices["test_notices_spot"]


def test_a_ready_file_is_there_while_the_node_serves_and_harms_nothing_where_it_cannot_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ready"
    path.touch()
    ready = ReadyFile(str(path))
    assert not path.exists()  # an earlier process had left it
    ready.make()
    assert path.exists()
    ready.remove()
    ready.remove()
    assert not path.exists()
    ReadyFile(str(tmp_path / "none" / "ready")).make()
    assert "cannot be written" in caplog.text
    ReadyFile(None).make()


# ---- real processes ----------------------------------------------------------------------------------------------

SENSORS = """
import pathlib
import sys

from mielin_cells.sensors import notice, sensor


@sensor("battery", every_s=0.1)
def battery() -> float:
    return float(pathlib.Path("battery").read_text())


@sensor("broken", every_s=0.1)
def broken() -> int:
    raise OSError("no device")


@notice("spot", every_s=0.1)
def spot() -> float | None:
    file = pathlib.Path("spot-" + sys.argv[sys.argv.index("--name") + 1])
    return float(file.read_text()) if file.exists() else None
"""


def facts_of(up: Deployment, node: str) -> dict[str, Any]:
    [info] = [info for info in up.value("nodes") if info["name"] == node]
    found: dict[str, Any] = info.get("facts", {})
    return found


def test_processes_measure_have_sensors_and_drain_when_their_machine_goes_away(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP + SENSORS)
    (tmp_path / "battery").write_text("80")
    (tmp_path / "mielin.toml").write_text('[node]\ncost_per_hour = 0.5\n[node.labels]\nzone = "eu-1"\n')
    with deployment(tmp_path, 1) as up:
        spot, file = up.node("spot"), up.node("file", "app.py", "--drain-file", "drain", "--ready-file", "ready")
        wait_for(lambda: facts_of(up, "spot").get("battery") == 80.0, "the sensor's fact")
        facts = facts_of(up, "spot")
        assert facts["cost_per_hour"] == 0.5
        assert facts["failing"] == {"broken": "raised OSError: no device"}
        assert 0 <= facts["memory"] <= 100
        text = up.run("nodes").stdout
        assert "battery 80%" in text
        assert "zone=eu-1" in text
        assert "raised OSError: no device" in up.run("show", "spot").stdout
        (tmp_path / "battery.new").write_text("14")
        (tmp_path / "battery.new").rename(tmp_path / "battery")
        wait_for(lambda: facts_of(up, "node-1").get("battery") == 14.0, "the changed fact")

        for number in range(3):
            assert up.run("spawn", "Counter", f"c{number}", "--on", "spot").returncode == 0
        looks = up.run("top", "--json", "--count", "2", "--every", "0.3").stdout.splitlines()
        first, second = (json.loads(line) for line in looks)
        assert (first["agents"], {node["name"] for node in first["nodes"]}) == (3, {"node-1", "spot", "file"})
        assert second["moves_s"] == 0.0
        assert "3 of 3 nodes alive, 3 agents" in up.run("top", "--count", "1").stdout

        (tmp_path / "spot.new").write_text("25")
        (tmp_path / "spot.new").rename(tmp_path / "spot-spot")
        assert spot.end() == 0
        assert any("notice spot" in line for line in spot.out.all())
        assert {info["node"] for info in up.value("agents")} <= {"node-1", "file"}
        assert up.value("ask", "c0", "add") == 1
        assert (tmp_path / "ready").exists()
        (tmp_path / "drain").touch()
        assert file.end() == 0
        assert not (tmp_path / "ready").exists()
        assert {info["node"] for info in up.value("agents")} == {"node-1"}
