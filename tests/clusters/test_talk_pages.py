"""The pages about talking, run as they stand: each program is written and run, and prints what the page says."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.nats_servers import free_ports
from support.pages import TALK

import mielin_cells as cells
from mielin_cells.agents.cluster import Cluster
from mielin_cells.agents.shared.stream import Stream

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(python|console) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PORT = "4222"
AGAIN_S = 60.0
"""A command beside which others start is given again for so long, until it prints what the page says."""


def blocks_of(page: str) -> list[tuple[str, str, str]]:
    text = (DOCS / f"{page}.md").read_text()
    found = BLOCK.findall(text)
    assert text.count("```") == 2 * len(found), "a block is neither a program nor commands"
    return found


def commands_of(page: str) -> list[list[tuple[str, str]]]:
    """By console block, each command with what it prints."""
    told = list[list[tuple[str, str]]]()
    for kind, _, text in blocks_of(page):
        if kind == "console":
            assert text.startswith("$ "), text
            lines = [command.partition("\n") for command in text[2:].split("\n$ ")]
            told.append([(command, output.removesuffix("\n")) for command, _, output in lines])
    return told


def written(page: str, folder: Path) -> dict[str, str]:
    """Writes the programs; returns the environment in which they run."""
    for kind, name, text in blocks_of(page):
        if kind == "python":
            (folder / name).write_text(text)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {name: value for name, value in os.environ.items() if not name.startswith("MIELIN_")} | {"PATH": path}


CASES = [
    pytest.param(page, number, id=f"{page} {block[0][0]}")
    for page in TALK
    for number, block in enumerate(commands_of(page))
    if len(block) == 1
]


@pytest.mark.parametrize(("page", "number"), CASES)
async def test_a_program_prints_what_its_page_says(page: str, number: int, tmp_path: Path) -> None:
    ((command, output),) = commands_of(page)[number]
    environment = written(page, tmp_path)
    running = await asyncio.create_subprocess_exec(
        *command.split(), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(100):
        said, complained = await running.communicate()
    assert (said.decode().strip(), running.returncode) == (output, 0), complained.decode()


@pytest.mark.timeout(200)
def test_commands_that_run_beside_each_other_do_what_their_page_says(tmp_path: Path) -> None:
    (session,) = [block for page in TALK for block in commands_of(page) if len(block) > 1]
    (port,) = map(str, free_ports(1))
    environment = written("how-to-talk", tmp_path)
    for file in tmp_path.glob("*.py"):
        file.write_text(file.read_text().replace(PORT, port))
    beside = list[subprocess.Popen[bytes]]()
    try:
        for command, output in session:
            given = command.replace(PORT, port)
            if given.endswith("&"):
                with open(tmp_path / f"log-{len(beside)}", "wb") as log:
                    beside.append(
                        subprocess.Popen(
                            ["bash", "-c", "exec " + given.removesuffix("&")],
                            cwd=tmp_path,
                            env=environment,
                            stdout=log,
                            stderr=log,
                        )
                    )
                continue
            until = time.monotonic() + AGAIN_S
            while True:
                done = subprocess.run(
                    ["bash", "-c", given],
                    cwd=tmp_path,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                if done.returncode == 0 and output in ("", done.stdout.strip()):
                    break
                assert time.monotonic() < until, (given, done.stdout, done.stderr)
                time.sleep(0.2)
    finally:
        for process in reversed(beside):
            process.terminate()
            process.wait(30)


def test_the_reference_names_what_there_is() -> None:
    text = (DOCS / "reference-talk.md").read_text()
    names = re.findall(r"`cells\.([a-z_]+)\(", text)
    assert names
    assert [name for name in names if not hasattr(cells, name)] == []
    calls = re.findall(r"`cluster\.([a-z_]+)\(", text)
    assert calls
    assert [name for name in calls if not hasattr(Cluster, name)] == []
    parts = re.findall(r"`stream\.([a-z_]+)", text)
    assert parts
    assert [name for name in parts if not hasattr(Stream, name)] == []
    known = {*cells.errors.__all__, *cells.__all__, *dir(__builtins__)}
    errors = set(re.findall(r"`([A-Z][A-Za-z]+)`", text)) - {"None"}
    assert errors <= known, errors - known
