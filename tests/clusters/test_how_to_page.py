"""The page about clusters, run as it stands: its files are written, and its commands are given to a shell one after the other.

Only the ports are replaced, by free ones.  A command is tried again until it succeeds: the page does not say how long servers take.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.nats_servers import free_ports
from support.pages import CLUSTERS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / f"{CLUSTERS}.md"
BLOCK = re.compile(r"^```(conf|console) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PORT = re.compile(r"\b(?:42|62|72|74)[2-4]\d\b")
TRIES = 40

AGAIN = """
set -m
trap 'kill -9 $(jobs -p) 2> /dev/null' EXIT
number=0
again() {
  number=$((number + 1))
  for try in $(seq %d); do
    if eval "$1" > "out/$number" 2> "out/$number.err"; then return 0; fi
    sleep 0.5
  done
  echo "failed: $1" >&2
  cat "out/$number" "out/$number.err" >&2
  exit 1
}
"""


def commands(blocks: list[tuple[str, str, str]]) -> list[str]:
    lines = [line for kind, _, text in blocks if kind == "console" for line in text.splitlines()]
    assert all(line.startswith("$ ") for line in lines), lines
    return [line.removeprefix("$ ") for line in lines]


def is_plain(command: str) -> bool:
    """It changes the shell, or runs beside it; it is not tried again."""
    return command.endswith("&") or command.startswith(("export ", "kill ", "stop"))


@pytest.mark.timeout(290)
def test_the_page_about_clusters_does_what_it_says(tmp_path: Path) -> None:
    text = PAGE.read_text()
    documented = sorted(set(PORT.findall(text)))
    ports = dict(zip(documented, map(str, free_ports(len(documented))), strict=True))
    blocks = BLOCK.findall(PORT.sub(lambda found: ports[found[0]], text))
    assert text.count("```") == 2 * len(blocks)
    for kind, name, body in blocks:
        if kind == "conf":
            (tmp_path / name).write_text(body)
    shutil.copy(ROOT / "examples" / "shop.py", tmp_path)
    (tmp_path / "out").mkdir()

    given = commands(blocks)
    lines = [command if is_plain(command) else f"again {json.dumps(command)}" for command in given]
    lines = [
        line.replace("&", f"> log-{number} 2>&1 &") if line.endswith("&") else line for number, line in enumerate(lines)
    ]
    (tmp_path / "page.sh").write_text(AGAIN % TRIES + "\n".join(lines) + "\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MIELIN_")} | {"PATH": path}
    done = subprocess.run(
        ["bash", "page.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr

    waited = [command for command in given if not is_plain(command)]
    said = {command: list[str]() for command in waited}
    for number, command in enumerate(waited, 1):
        said[command].append((tmp_path / "out" / str(number)).read_text())
    assert said["mielin ask tulips take 3"] == [
        "97\n",
        "97\n",
        "94\n",
    ]  # with shards, on three servers, with one of them dead
    shards, servers = said["mielin doctor"]
    assert re.search(r"shards\s+4", shards)
    assert re.search(r"shards\s+2", servers)
    assert re.search(r"replicas\s+3", servers)
    fixed = said["mielin doctor --fix --replicas 3 --deployment old"][0]
    assert "old-log-0: 1 -> 3 replicas" in fixed
    assert re.search(r"replicas\s+3", said["mielin doctor --deployment old"][0])
    agents = said["mielin agents"][0]
    assert re.search(r"anna\b.*west-1", agents)
    assert re.search(r"roses\b.*node-2", agents)
    assert "91 left" in said["mielin ask berta add 1"][1]  # 2 + 3 + 1 + 1 + 1, and this one
