"""`mielin check` against a running `mielin up`: what it prints, and what it exits with."""

from __future__ import annotations

import json
from pathlib import Path

from support.processes import APP, deployment


def test_check_names_the_agents_that_new_code_would_not_load_while_they_go_on(tmp_path: Path) -> None:
    with deployment(tmp_path, nodes=1) as up:
        for name in ("one", "two"):
            up.value("spawn", "Counter", name)
            up.value("ask", name, "add", "3")
        assert up.value("check", "--app", "app.py")["ok"] is True
        assert "all of 2 agents load" in up.run("check", "--app", "app.py").stdout
        renamed = APP.replace("    n: int = 0\n    label", "    count: int = 0\n    label").replace(
            "self.n", "self.count"
        )
        (tmp_path / "renamed.py").write_text(renamed)
        done = up.run("check", "--app", "renamed.py", "--json")
        assert done.returncode == 1
        report = json.loads(done.stdout)
        assert [(one["agent"], one["code"], one["node"]) for one in report["troubles"]] == [
            ("one", "StateUnloadable", "node-1"), ("two", "StateUnloadable", "node-1"),
        ]  # fmt: skip
        text = up.run("check", "--app", "renamed.py").stdout
        assert "renamed.py: 2 of 2 agents cannot go on with it" in text
        assert "a stored field 'n' that Counter version 1 lacks" in text
        (tmp_path / "bad.py").write_text("import nothing_of_this_name\n")
        done = up.run("check", "--app", "bad.py")
        assert (done.returncode, done.stdout) == (2, "")
        assert "line 1: import nothing_of_this_name" in done.stderr
        assert up.value("ask", "one", "get") == [3, ""]
