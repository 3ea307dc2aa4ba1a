"""The commands of deploy/ run as they stand there: a node serves, drains when it is told to stop, and exits with 0."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support.commands import run
from support.paths import ROOT

from mielin_cells.substrate.jetstream.server import Server

DEPLOY = ROOT / "deploy"
APP = """
import mielin_cells as cells


class Drawer(cells.Agent):
    cents: int = 0

    @cells.handler
    async def put(self, cents: int) -> int:
        self.cents += cents
        return self.cents
"""
START_S = 40.0


def moved(text: str, folder: Path, name: str) -> str:
    """Paths of the machine are paths in the folder of this node."""
    for path in ("/run/mielin-%i", "/run/mielin", "/etc/mielin"):
        text = text.replace(path, str(folder / name / path.strip("/").split("/")[0]))
    return text.replace("%i", name)


def pod(folder: Path, name: str) -> tuple[list[str], str]:
    """The command of a container, and what its `preStop` runs."""
    yaml = import_module("yaml")
    documents: list[dict[str, Any]] = [*yaml.safe_load_all((DEPLOY / "kubernetes" / "nodes.yaml").read_text())]
    kinds = {one["kind"]: one for one in documents}
    [container] = kinds["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    (folder / name / "etc").mkdir(parents=True)
    (folder / name / "etc" / "mielin.toml").write_text(kinds["ConfigMap"]["data"]["mielin.toml"])
    here = {"$(POD)": name, "$(HOST)": "host-1", "0.0.0.0:9464": "127.0.0.1:0"}  # two pods on one machine
    args = list[str](container["args"])
    for text, instead in here.items():
        args = [arg.replace(text, instead) for arg in args]
    args = [moved(arg, folder, name) for arg in args]
    shell, flag, script = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, flag) == ("sh", "-c")
    return container["command"] + args, moved(script, folder, name)


def unit(folder: Path, name: str) -> tuple[list[str], str]:
    text = (DEPLOY / "systemd" / "mielin-node@.service").read_text()
    [line] = [line.removeprefix("ExecStart=") for line in text.splitlines() if line.startswith("ExecStart=")]
    (folder / name / "etc").mkdir(parents=True)
    (folder / name / "etc" / "mielin.toml").write_text((DEPLOY / "systemd" / "mielin.toml").read_text())
    return shlex.split(moved(line, folder, name).replace("/srv/mielin/venv/bin/", "")), ""


def until_serving(process: subprocess.Popen[bytes], file: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not file.exists():
        assert process.poll() is None, f"it has exited with {process.returncode}"
        assert time.monotonic() < end, "it does not serve"
        time.sleep(0.05)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("command_of", [pod, unit])
def test_a_node_that_is_told_to_stop_moves_its_agents_and_exits_with_0(
    command_of: Callable[[Path, str], tuple[list[str], str]], server: Server, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    deployment = f"manifests_{command_of.__name__}"
    environment = os.environ | {"MIELIN_URL": server.url, "MIELIN_DEPLOYMENT": deployment}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    running = dict[str, subprocess.Popen[bytes]]()
    scripts = dict[str, str]()
    try:
        for name in ("nodes-0", "nodes-1"):
            command, scripts[name] = command_of(tmp_path, name)
            (tmp_path / name / "run").mkdir()
            running[name] = subprocess.Popen(command, cwd=tmp_path, env=environment)
        for name, process in running.items():
            until_serving(process, tmp_path / name / "run" / "ready", START_S)
        where = ("--connect", server.url, "--deployment", deployment)
        assert run(tmp_path, "spawn", "Drawer", "till-1", "--on", "nodes-1", *where).returncode == 0
        assert run(tmp_path, "ask", "till-1", "put", "5", *where).stdout.strip() == "5"
        if scripts["nodes-1"]:
            subprocess.run(["sh", "-c", scripts["nodes-1"]], check=True, timeout=10)
        running["nodes-1"].terminate()
        assert running["nodes-1"].wait(60) == 0
        assert not (tmp_path / "nodes-1" / "run" / "ready").exists()
        shown = run(tmp_path, "show", "till-1", *where).stdout
        assert "nodes-0" in shown, shown
        assert run(tmp_path, "ask", "till-1", "put", "1", *where).stdout.strip() == "6"
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait(30)
