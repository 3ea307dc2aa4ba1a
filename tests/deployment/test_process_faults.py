"""Processes that are killed, stopped, replaced and told to end: what was acknowledged is there, and nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.commands import run
from support.processes import APP, Deployment, Running, deployment, lives, wait_for

CHILDREN_END_S = 20.0
FORKS = """
import os
import time

import mielin_cells as cells


class Forking(cells.Agent):
    @cells.handler
    async def fork(self) -> int:
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        return child
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """For what happens to nodes that a test adds itself; its own two stay.  A failed move is tried again soon."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "mielin.toml").write_text("[recovery]\ninitial_retry_delay_secs = 0.2\n")
    with deployment(folder, nodes=2) as running:
        yield running


def kill_and_wait(up: Deployment) -> None:
    """`kill -9` of `mielin up` alone; its children end by themselves."""
    tree = up.tree()
    assert len(tree) >= up.nodes + 2  # it, the server, the nodes
    up.process.kill()
    begun = time.monotonic()
    wait_for(lambda: not any(lives(process) for process in tree), "the end of the children")
    assert time.monotonic() - begun < CHILDREN_END_S


def test_kill_9_of_up_loses_nothing_acknowledged_and_leaves_no_child(tmp_path: Path) -> None:
    with deployment(tmp_path) as up:
        up.value("spawn", "Counter", "anna", "--on", "node-1")
        up.value("spawn", "Counter", "bert", "--on", "node-2")
        assert [up.value("ask", "anna", "add", str(n)) for n in (1, 2, 3)] == [1, 3, 6]
        up.value("migrate", "bert", "--to", "node-1")
        assert up.value("ask", "bert", "add", "7", "moved") == 7
        assert (tmp_path / ".mielin").stat().st_mode & 0o777 == 0o700
        kill_and_wait(up)
        gone = up.run("ask", "anna", "get")
        assert (gone.returncode, "`mielin up`" in gone.stderr, "Traceback" in gone.stderr) == (1, True, False)
    with deployment(tmp_path) as again:
        assert again.value("ask", "anna", "get") == [6, ""]
        assert again.value("ask", "bert", "get") == [7, "moved"]
        assert {info["id"]: info["node"] for info in again.value("agents")} == {"anna": "node-1", "bert": "node-1"}


def test_an_up_that_starts_at_once_after_a_kill_waits_for_the_lock(tmp_path: Path) -> None:
    with deployment(tmp_path) as up:
        up.value("spawn", "Counter", "anna")
        assert up.value("ask", "anna", "add") == 1
        up.process.kill()
        with deployment(tmp_path) as again:
            assert again.value("ask", "anna", "add") == 2


def test_ctrl_c_ends_everything_cleanly_and_a_second_up_is_refused_before(tmp_path: Path) -> None:
    with deployment(tmp_path) as up:
        up.value("spawn", "Counter", "anna", "--on", "node-1")
        up.value("ask", "anna", "add", "5")
        tree = up.tree()
        second = run(tmp_path, "up", "--app", "app.py")
        assert (second.returncode, "runs in .mielin already" in second.stderr) == (1, True)
        up.signal(signal.SIGINT)
        assert up.end() == 0
        assert not any(lives(process) for process in tree)
        stopped = [event for event in up.events() if event.get("state") == "stopped"]
        assert {event["node"]: event["code"] for event in stopped} == {"node-1": 0, "node-2": 0}
        assert not (tmp_path / ".mielin" / "address.json").exists()
    with deployment(tmp_path) as again:
        assert again.value("ask", "anna", "add") == 6


def test_an_app_that_does_not_import_ends_up_with_its_line_and_2(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import mielin_cells\n\nimport no_such_module\n")
    up = Running(tmp_path, "up", "--app", "app.py", "--nodes", "2")
    try:
        children = up.tree()
        assert up.end() == 2
        assert "line 3: import no_such_module: ModuleNotFoundError" in up.err.all()[-1]
        assert not any(lives(process) for process in children)
    finally:
        up.close()


def test_a_node_that_is_killed_is_started_again_and_it_is_said(tmp_path: Path) -> None:
    with deployment(tmp_path) as up:
        up.value("spawn", "Counter", "anna", "--on", "node-1")
        assert up.value("ask", "anna", "add") == 1
        up.process_of("node-1").kill()
        assert up.wait({"node": "node-1", "state": "crashed"})["code"] == -signal.SIGKILL
        assert up.wait({"node": "node-1", "state": "serving"}, 2)["incarnation"] == 2
        assert up.value("ask", "anna", "add") == 2


def test_sigterm_lets_the_turn_end_and_its_commit_land(shared: Deployment) -> None:
    node, marker = shared.node("ending"), shared.folder / "ending"
    shared.value("spawn", "Counter", "anna", "--on", "ending")
    asked = shared.start("ask", "anna", "slow", str(marker), "0.5")
    wait_for(marker.exists, "the turn")
    node.process.terminate()

    assert node.end() == 0
    assert asked.end() == 0
    assert asked.out.all() == ["1"]
    assert {info["name"]: info["state"] for info in shared.value("nodes")}["ending"] == "stopped"
    wait_for(lambda: shared.run("claim", "anna", "--to", "node-1").returncode in (0, 3), "a claim")  # 3: by a keeper
    assert shared.value("ask", "anna", "get") == [1, ""]


def test_a_second_ctrl_c_ends_a_node_at_once(shared: Deployment) -> None:
    node, marker = shared.node("hurried"), shared.folder / "hurried"
    shared.value("spawn", "Counter", "bert", "--on", "hurried")
    shared.value("tell", "bert", "slow", str(marker), "1000")
    wait_for(marker.exists, "the turn")
    node.signal(signal.SIGINT)
    node.out.wait(lambda line: "stops (SIGINT)" in line)
    node.signal(signal.SIGINT)
    assert node.end() == 130


def test_the_older_of_two_processes_of_a_name_stops_and_says_so_once(shared: Deployment) -> None:
    older = shared.node("twin")
    shared.value("spawn", "Counter", "carl", "--on", "twin")
    assert shared.value("ask", "carl", "add") == 1
    newer = shared.node("twin")

    assert older.end() == 1
    said = [line for line in older.err.all() if "was started again as incarnation 2" in line and "ERROR" in line]
    assert len(said) == 1
    assert shared.value("ask", "carl", "add") == 2
    assert shared.value("show", "carl")["node"] == "twin"
    assert shared.value("show", "twin")["process"] == newer.process.pid


def test_an_owner_stopped_in_a_handover_is_fenced_when_it_goes_on_and_says_so_once(shared: Deployment) -> None:
    owner, marker = shared.node("owner"), shared.folder / "leaves"
    shared.value("spawn", "Lingering", "dora", f"marker={marker}", "--on", "owner")
    assert shared.value("ask", "dora", "add") == 1
    moving = shared.start("migrate", "dora", "--to", "node-1")
    wait_for(marker.exists, "the handover")
    owner.signal(signal.SIGSTOP)
    assert shared.value("claim", "dora", "--to", "node-2", "--force")["former"] == "owner"
    assert shared.value("ask", "dora", "add") == 2
    owner.signal(signal.SIGCONT)

    assert moving.end() == 0  # whoever owns the agent next goes on with its migration
    assert shared.value("ask", "dora", "add") == 3
    assert shared.value("show", "dora")["node"] == "node-1"
    said = [line for line in owner.err.all() if "dora" in line and "WARNING" in line]
    assert len(said) == 1, owner.err.all()
    records = [json.loads(line) for line in shared.run("log", "dora", "--json").stdout.splitlines()]
    claimed = [record["kind"] for record in records].index("Claimed")
    assert records[claimed]["node"] == "node-2"
    assert "HandedOff" not in [record["kind"] for record in records[:claimed]]
    assert "owner" not in [record["node"] for record in records[claimed:]]
    owner.process.terminate()
    assert owner.end() == 0


def test_a_node_whose_loop_is_held_is_stuck_and_one_that_is_stopped_is_silent(shared: Deployment) -> None:
    held, mute, marker = shared.node("held"), shared.node("mute"), shared.folder / "holds"
    shared.value("spawn", "Counter", "emil", "--on", "held")
    shared.value("tell", "emil", "hold", str(marker), "4.5")
    wait_for(marker.exists, "the turn")
    mute.signal(signal.SIGSTOP)

    def states() -> dict[str, str]:
        return {info["name"]: info["state"] for info in shared.value("nodes")}

    wait_for(lambda: states()["held"] == "stuck", "the held loop")
    wait_for(lambda: states()["mute"] == "silent", "silence")
    held.err.wait(lambda line: "has blocked the event loop" in line)
    wait_for(lambda: states()["held"] == "alive", "the end of the turn")
    mute.signal(signal.SIGCONT)
    wait_for(lambda: states()["mute"] == "alive", "a sign of life")


@pytest.mark.parametrize("option", ["--nodes=0", "--nodes=65", "--sync=never", "--dir=app.py"])
def test_options_of_up_that_cannot_be_exit_with_2_and_start_nothing(tmp_path: Path, option: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    run(tmp_path, "--version")  # from here on there is what commands are forked from
    before = psutil.Process().children(recursive=True)
    done = run(tmp_path, "up", "--app", "app.py", option)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert os.listdir(tmp_path) == ["app.py"]
    assert psutil.Process().children(recursive=True) == before


def test_a_process_started_by_a_handler_holds_no_lock_of_a_dead_deployment(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(FORKS)
    with deployment(tmp_path, 1) as up:
        up.value("spawn", "Forking", "f")
        child = psutil.Process(up.value("ask", "f", "fork"))
        try:
            node = up.process_of("node-1")
            up.process.kill()
            node.kill()
            with deployment(tmp_path, 1):
                assert lives(child)
        finally:
            child.kill()
