"""External waits behind real processes: `kill -9` while a turn waits, a word while nobody owns the agent, and two operators."""

from __future__ import annotations

from pathlib import Path

from support.processes import deployment, wait_for

APP = """
import mielin_cells as cells


class Asker(cells.Agent):
    said: list[str] = []

    @cells.handler
    async def order(self, what: str) -> None:
        self.said.append(f"{what}: {await cells.external('approval', bool)}")

    @cells.handler(shared=True)
    async def look(self) -> list[str]:
        return self.said
"""


def test_a_wait_outlasts_kill_9_and_the_first_of_two_operators_decides(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    with deployment(tmp_path) as up:
        up.value("spawn", "Asker", "a")
        up.value("tell", "a", "order", "tea")
        wait_for(lambda: bool(up.value("show", "a")["waits"]), "the wait")
        token = up.value("show", "a")["waits"][0]["token"]
        assert "approval" in up.run("agents").stdout
        up.process.kill()
    with deployment(tmp_path) as up:
        assert up.run("resolve", token, "perhaps").returncode == 2
        assert up.run("resolve", token[:-3], "true").returncode == 2
        told = up.run("resolve", token, "true")
        assert (told.returncode, told.stdout) == (0, "wait 'approval' of a has ended: true\n")
        late = up.run("reject", token, "no")
        assert (late.returncode, late.stdout) == (3, "wait 'approval' of a has ended already: true\n")
        wait_for(lambda: up.value("ask", "a", "look") == ["tea: True"], "the turn's end")
