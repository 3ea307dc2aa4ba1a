"""`mielin agents --where` and `mielin group` against node processes and a server, one of which is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Deployment, deployment, wait_for

APP = """
import mielin_cells as cells
from mielin_cells.groups import Group


class Crate(cells.Agent):
    @cells.handler
    async def label(self, region: str, load: int) -> None:
        cells.attributes(region=region, load=load)
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder: Path = tmp_path_factory.mktemp("groups")
    (folder / "app.py").write_text(APP)
    with deployment(folder, nodes=2) as running:
        for n in range(4):
            running.value("spawn", "Crate", f"c{n}", "--on", f"node-{n % 2 + 1}")
            running.value("ask", f"c{n}", "label", "eu" if n < 3 else "us", str(n))
        yield running


def found(up: Deployment, where: str, *more: str) -> list[str]:
    return [one["id"] for one in up.value("agents", "--where", where, *more)]


def test_agents_are_found_also_when_their_process_was_killed(up: Deployment) -> None:
    wait_for(lambda: found(up, 'region == "eu"') == ["c0", "c1", "c2"], "the attributes")
    assert found(up, 'region == "eu" and load < 2', "--class", "Crate") == ["c0", "c1"]
    assert found(up, 'region == "eu"', "--limit", "1", "--after", "c0") == ["c1"]
    assert up.value("agents", "--where", "load > 0", "--count") == {"count": 3}
    up.process_of("node-1").kill()
    assert found(up, 'region == "eu"') == ["c0", "c1", "c2"]
    wait_for(lambda: up.run("ask", "c0", "label", "us", "9").returncode == 0, "the agent at its next owner")
    wait_for(lambda: found(up, "load == 9") == ["c0"], "what the next owner has written")
    assert found(up, 'region == "us"') == ["c0", "c3"]
    assert up.value("show", "c0")["attributes"] == {"load": 9, "region": "us"}
    assert 'attributes    load=9 region="us"' in up.run("show", "c0").stdout


def test_a_condition_that_cannot_be_read_is_shown_with_its_place(up: Deployment) -> None:
    done = up.run("agents", "--where", "region == eu")
    assert done.returncode == 2
    assert "at column 11" in done.stderr
    assert done.stderr.splitlines()[-2:] == ["  region == eu", "            ^ [WhereInvalid]"]


def test_a_group_is_shown_changed_and_ordered(up: Deployment) -> None:
    up.value("spawn", "mielin.Group", "crew")
    assert up.value("group", "add", "crew", "c1", "c3", "--role", "leader") == {"c1": True, "c3": True}
    assert up.value("group", "add", "crew", "c2") == {"c2": True}
    assert up.value("group", "remove", "crew", "c2") == {"c2": True}
    assert up.value("group", "show", "crew") == [
        {"agent": "c1", "class": "Crate", "role": "leader"}, {"agent": "c3", "class": "Crate", "role": "leader"},
    ]  # fmt: skip
    assert up.value("group", "suspend", "crew")["done"] == ["c1", "c3"]
    assert up.value("show", "c3")["state"] == "Suspended"
    assert up.value("group", "resume", "crew", "--role", "leader")["done"] == ["c1", "c3"]
    assert up.value("group", "migrate", "crew", "--to", "node-2")["failed"] == {}
    assert [up.value("show", agent)["node"] for agent in ("c1", "c3")] == ["node-2", "node-2"]
    failed = up.run("group", "migrate", "crew", "--to", "node-9")
    assert failed.returncode == 1
    assert up.run("group", "stop", "crew", "--yes").stdout == "stop: 2 agents, 0 had it already\n"
    assert up.value("show", "c1")["state"] == "Terminated"
