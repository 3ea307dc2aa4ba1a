"""Parents and children on a real server, with node processes that are killed (`kill -9`) in the middle of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.processes import Deployment, deployment, wait_for

APP = """
import pathlib

import mielin_cells as cells


class Kid(cells.Agent):
    done: int = 0

    async def on_arrive(self) -> None:
        broken = pathlib.Path(f"broken-{cells.this().id}")
        if broken.exists():
            broken.unlink()
            raise ConnectionError("broken")

    @cells.handler
    async def work(self) -> int:
        self.done += 1
        return self.done


class Boss(cells.Agent):
    heard: list[str] = []

    @cells.handler
    async def hire(self, first: int, last: int, node: str) -> int:
        for n in range(first, last):
            kid = await cells.child(node=node or None).spawn(Kid, f"kid-{n}")
            await kid.work()
            await cells.monitor(kid, self.on_down)
        return last - first

    @cells.handler
    async def on_down(self, down: cells.Down) -> None:
        self.heard.append(f"{down.agent} {down.kind} {down.n}")

    @cells.handler
    async def news(self) -> list[str]:
        return self.heard
"""


def tree(up: Deployment) -> Any:
    (top,) = up.value("tree", "boss")
    return top


def test_a_parent_whose_node_is_killed_while_it_spawns_has_each_child_once(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    with deployment(tmp_path, 2) as up:
        third = up.node("third")
        up.value("spawn", "Boss", "boss", "--on", "third")
        up.run("tell", "boss", "hire", "0", "25", "")
        wait_for(lambda: len(tree(up)["children"]) >= 5, "the first children")
        third.process.kill()
        wait_for(lambda: len(tree(up)["children"]) == 25, "all children")
        wait_for(lambda: {kid["status"] for kid in tree(up)["children"]} == {"running"}, "the last one")
        assert up.value("ask", "boss", "news") == []
        assert [kid["agent"] for kid in tree(up)["children"]] == [f"kid-{n}" for n in range(25)]
        assert {kid["watchers"][0] for kid in tree(up)["children"]} == {"boss"}
        for n in (0, 12, 24):
            assert up.value("ask", f"kid-{n}", "work") == 2


def test_children_that_break_when_their_node_and_their_parents_is_killed_are_restarted(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    with deployment(tmp_path, 2) as up:
        third = up.node("third")
        up.value("spawn", "Boss", "boss", "--on", "third")
        assert up.value("ask", "boss", "hire", "0", "3", "third") == 3
        for n in (0, 2):
            (tmp_path / f"broken-kid-{n}").touch()
        third.process.kill()
        wait_for(lambda: [kid["restarts"] for kid in tree(up)["children"]] == [1, 0, 1], "the restarts")
        wait_for(lambda: {kid["state"] for kid in tree(up)["children"]} == {"Running"}, "the children")
        assert [up.value("ask", f"kid-{n}", "work") for n in range(3)] == [2, 2, 2]
        assert sorted(up.value("ask", "boss", "news")) == ["kid-0 failed 1", "kid-2 failed 1"]
        done = up.run("tree")
        assert done.returncode == 0
        assert "├─ kid-0  Kid  Running (on node-" in done.stdout
        up.value("terminate", "boss", "--yes")
        wait_for(lambda: up.value("agents") == [], "the end of the children")
