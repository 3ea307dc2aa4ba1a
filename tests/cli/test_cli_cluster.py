"""The command line against a running `mielin up`: every command, as text and as JSON, and what each exits with."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import run
from support.processes import APP, Deployment, deployment, wait_for

import mielin_cells as cells
from mielin_cells.client.client import Client
from mielin_cells.log.ids import BEATS, MEMBERS, control_subject, inbox_subject, log_subject, reply_subject


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("cluster"), nodes=2) as running:
        yield running


def buried(up: Deployment, agent: str) -> None:
    """Leaves the agent a dead letter."""
    up.value("tell", agent, "fail", "1")
    wait_for(lambda: bool(up.value("dead", agent)), "a dead letter")


# ---- values and exit codes -----------------------------------------------------------------------------------


def test_agents_are_spawned_asked_and_told_by_words(up: Deployment) -> None:
    assert up.value("spawn", "Counter", "words", "label=7", "--on", "node-2") == {
        "agent": "words", "class": "Counter", "node": "node-2", "new": True,
    }  # fmt: skip
    assert up.value("ask", "words", "get") == [0, "7"]
    assert up.value("ask", "words", "add", "-3", "1") == -3
    assert up.value("tell", "words", "add", "n=5", 'label="a=b"')["stored"] is True
    assert up.value("ask", "words", "get") == [2, "a=b"]
    assert up.run("ask", "words", "add", "--", "2").stdout == "4\n"
    assert [up.value("ask", "words", "add", "1", "--key", "once") for _ in range(2)] == [5, 5]
    assert up.value("spawn", "Counter", "words")["new"] is False


def test_topics_are_published_to_listed_and_read(up: Deployment) -> None:
    assert up.value("topic", "pub", "orders.eu.new", '{"sku": 7}', "--as", "shop")["n"] == 1
    assert (
        up.run("topic", "pub", "orders.us.new", "plain text").stdout
        == "stored as message 1 of client cli to orders.us.new\n"
    )
    listed = up.value("topic", "ls", "orders.>")
    assert [(one["topic"], one["publisher"], one["n"]) for one in listed] == [
        ("orders.eu.new", "client shop", 1), ("orders.us.new", "client cli", 1),
    ]  # fmt: skip
    read = up.run("topic", "sub", "orders.*.new", "--since", "first", "--count", "2").stdout
    assert sorted(read.splitlines()) == [
        'orders.eu.new client shop 1: {"sku":7}', 'orders.us.new client cli 1: "plain text"',
    ]  # fmt: skip
    assert "orders.us.new" in up.run("topic", "ls").stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("topic", "pub", "orders.*", "1"), 2, "only patterns of subscribers have"),
        (("topic", "pub", "orders..new", "1"), 2, "a level is empty"),
        (("topic", "sub", "orders.>.new"), 2, "it is the last level"),
        (("topic", "sub", "orders", "--since", "noon"), 2, "cannot be read"),
        (("ask", "known", "fail", "1"), 1, "cannot 1"),
        (("ask", "known", "slow", "marker", "9", "--timeout", "0.2"), 5, "may still take effect"),
        (("ask", "nobody", "add"), 2, "no agent 'nobody'"),
        (("ask", "known", "nothing"), 2, "it has add, fail, get, hold, slow"),
        (("ask", "known", "add", "many"), 2, "'many' does not fit"),
        (("ask", "known", "add", "m=1"), 2, "no parameter 'm'"),
        (("ask", "known", "add", "--timeout", "-1"), 2, "--timeout"),
        (("ask", "known", "add", "--deadline", "-1"), 2, "--deadline"),
        (("tell", "known", "add", "--deadline", "0"), 2, "--deadline"),
        (("ask", "known", "add", "--key", ""), 2, "--key"),
        (("tell", "known", "add", "--key", "x" * 129), 2, "--key"),
        (("ask", "known", "add", "--deadline", "0.000001"), 3, "deadline passed"),
        (("ask", "a\nb", "add"), 2, "control character"),
        (("tell", "nobody", "add"), 2, "no agent 'nobody'"),
        (("spawn", "Nothing", "x"), 2, "they know Counter, Lingering"),
        (("spawn", "Counter", "x", "nope=1"), 2, "no field 'nope'"),
        (("spawn", "Counter", "x", "--on", "node-9"), 2, "no node 'node-9'"),
        (("spawn", "Lingering", "known"), 3, "is a Counter"),
        (("show", "nothing"), 2, "no agent and no node 'nothing'"),
        (("show", "m-nothing"), 2, "migration m-nothing"),
        (("log", "nobody"), 2, "no agent 'nobody'"),
        (("migrate", "nobody"), 2, "no agent 'nobody'"),
        (("migrate", "known", "--to", "node-9"), 2, "no node 'node-9'"),
        (("migrate", "known", "--to", "node-1"), 3, "is on node-1 already"),
        (("abort", "known"), 2, "No migration of agent 'known'"),
        (("claim", "known", "--to", "node-2"), 3, "node-1 answers and runs agent 'known'"),
        (("claim", "known", "--to", "node-9", "--force"), 2, "no node 'node-9'"),
        (("resume", "nobody"), 2, "no agent 'nobody'"),
        (("dead", "known", "999"), 2, "no dead letter '999'"),
        (("dead", "known", "--replay"), 2, "--replay needs"),
        (
            ("dead", "known", "1", "--replay", "--purge"),
            2,
            "--replay and --purge exclude each other; give one of them.",
        ),
        (("log", "known", "--after=-1"), 2, 'Invalid value "-1" for --after. Must be >= 0.'),
        (("agents", "--limit", "0"), 2, 'Invalid value "0" for --limit. Must be >= 1.'),
        (("agents", "--limit", "1", "--count"), 2, "--limit and --count exclude each other; give one of them."),
        (("agents", "--after", "a", "--count"), 2, "--after and --count exclude each other; give one of them."),
        (("ask", "known"), 2, "HANDLER"),
        (("bogus",), 2, "bogus"),
    ],
)
def test_a_failing_command_prints_one_sentence_and_has_its_exit_code(
    up: Deployment, words: tuple[str, ...], code: int, says: str
) -> None:
    if "known" in words:
        up.value("spawn", "Counter", "known", "--on", "node-1")
    done = up.run(*words)
    assert done.returncode == code, done
    assert says in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    if words not in (("bogus",), ("ask", "known")):  # those are for the parser, which shows them in a box
        (sentence,) = done.stderr.splitlines()
        assert sentence.startswith("mielin: ")


def test_an_error_is_the_last_line_of_json_and_exits_the_same(up: Deployment) -> None:
    for words, code, name in (
        (("ask", "nobody", "add"), 2, "NoSuchAgent"),
        (("spawn", "Counter", "x", "nope=1"), 2, "BadArguments"),
        (("ask", "known", "slow", "marker", "9", "--timeout", "0.2"), 5, "AskTimeout"),
    ):
        up.value("spawn", "Counter", "known", "--on", "node-1")
        done = up.run(*words, "--json")
        assert (done.returncode, done.stderr) == (code, "")
        error = json.loads(done.stdout.splitlines()[-1])["error"]
        assert (error["code"], bool(error["message"])) == (name, True)


def test_every_command_prints_lines_of_json(up: Deployment) -> None:
    up.value("spawn", "Counter", "printed", "--on", "node-1")
    buried(up, "printed")
    for words in (
        ("spawn", "Counter", "printed"), ("ask", "printed", "get"), ("tell", "printed", "add"), ("agents",), ("nodes",),
        ("show", "printed"), ("show", "node-1"), ("log", "printed"), ("migrate", "printed", "--to", "node-2"),
        ("claim", "printed", "--to", "node-1", "--force"), ("suspend", "printed", "--reason", "tea"),
        ("pause", "printed"), ("resume", "printed"), ("dead", "printed"), ("dead", "printed", "1"),
        ("dead", "printed", "1", "--replay"), ("dead", "printed", "--purge"), ("terminate", "printed"),
    ):  # fmt: skip
        done = up.run(*words, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert [json.loads(line) for line in done.stdout.splitlines()]


def test_every_command_prints_text_for_people(up: Deployment) -> None:
    up.value("spawn", "Counter", "read", "--on", "node-1")
    buried(up, "read")
    for words, says in (
        (("spawn", "Counter", "read"), "read exists already, on node-1"),
        (("agents", "--node", "node-1"), "AGENT"),
        (("nodes",), "node-2  alive"),
        (("show", "read"), "dead letters  1"),
        (("show", "node-1"), "Counter:1 Lingering:1"),
        (("log", "read"), "Created"),
        (("migrate", "read", "--to", "node-2"), "done in "),
        (("claim", "read", "--to", "node-1", "--force"), "read runs on node-1; node-2 is fenced"),
        (("suspend", "read"), "read is Suspended"),
        (("dead", "read"), "cannot 1"),
        (("dead", "read", "1"), "handler  fail"),
        (("terminate", "read"), "read is Terminated"),
    ):
        done = up.run(*words)
        assert (done.returncode, done.stderr) == (0, "")
        assert says in re.sub(r"  +", "  ", done.stdout)  # how wide a column is, is the longest cell's matter


# ---- agents that move, nodes that differ ---------------------------------------------------------------------


def test_asks_from_another_terminal_take_effect_once_while_the_agent_moves(up: Deployment) -> None:
    up.value("spawn", "Counter", "moving", "--on", "node-1")
    answers, ends = list[int](), threading.Event()

    def ask() -> None:
        while not ends.is_set():
            answers.append(up.value("ask", "moving", "add"))

    asker = threading.Thread(target=ask)
    asker.start()
    reports = []
    try:
        for target in ("node-2", "node-1", "node-2", "node-1"):
            lines = [
                json.loads(line) for line in up.run("migrate", "moving", "--to", target, "--json").stdout.splitlines()
            ]
            assert [line["event"] for line in lines] == ["planned", *["phase"] * 6, "predicted", "report"]
            reports.append(lines[-1])
    finally:
        ends.set()
        asker.join()
    assert [report["outcome"] for report in reports] == ["completed"] * 4
    assert answers == list(range(1, len(answers) + 1))
    assert answers


def test_a_detached_move_is_shown_by_its_id(up: Deployment) -> None:
    up.value("spawn", "Counter", "detached", "--on", "node-1")
    begun = up.value("migrate", "detached", "--to", "node-2", "--detach")
    while (shown := up.value("show", begun["migration"]))["outcome"] != "completed":
        assert shown["outcome"] in ("PLANNED", "PREPARING", "COPYING", "PAUSED", "HANDING_OVER", "VERIFYING")
    assert (shown["agent"], shown["source"], shown["target"]) == ("detached", "node-1", "node-2")
    assert up.value("show", "detached")["node"] == "node-2"


def test_a_class_that_the_target_lacks_is_refused_with_the_reason_and_the_agent_runs_on(up: Deployment) -> None:
    (up.folder / "other.py").write_text(APP.replace("class Counter", "class Different"))
    node = up.node("bare", "other.py", "--label", "zone=eu")
    up.value("spawn", "Counter", "wanted", "--on", "node-1")

    moved = up.run("migrate", "wanted", "--to", "bare")
    made = up.run("spawn", "Counter", "made", "--on", "bare")
    shown = up.value("show", "bare")
    node.process.terminate()

    assert (moved.returncode, made.returncode, node.end()) == (3, 2, 0)
    assert "does not know the agent class 'Counter'" in moved.stderr
    assert "does not know the agent class 'Counter'" in made.stderr
    assert (shown["labels"], sorted(shown["classes"])) == ({"zone": "eu"}, ["Different", "Lingering"])
    assert up.value("ask", "wanted", "add") == 1
    assert {info["name"]: info["state"] for info in up.value("nodes")}["bare"] == "stopped"


def test_rubbish_on_every_subject_leaves_the_nodes_alive_and_is_logged(
    up: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    up.value("spawn", "Counter", "steady", "--on", "node-1")
    monkeypatch.chdir(up.folder)

    async def throw() -> None:
        async with cells.connect() as cluster:
            assert isinstance(cluster, Client)
            for rubbish in (b"", b"\xc1", b"rubbish", b"\x81" * 5000, bytes(200), b"mc\x01" + bytes(40)):
                await cluster.wire.request(control_subject("node-1"), rubbish, 5.0)
                for subject in (control_subject("node-1"), reply_subject("node-1.1"), BEATS):
                    await cluster.wire.publish(subject, rubbish)
                for subject in (MEMBERS, inbox_subject("steady"), log_subject("rubbish")):
                    await cluster.log.append(subject, rubbish)

    asyncio.run(throw())

    assert up.value("ask", "steady", "add") == 1
    assert {info["name"]: info["state"] for info in up.value("nodes")}["node-1"] == "alive"
    assert len(up.value("dead", "steady")) == 6
    assert {info["id"]: info["state"] for info in up.value("agents")}["rubbish"] == "unreadable"
    for says in ("on the control subject", "on the reply subject", "heartbeat subject", "a record of the members"):
        up.out.wait(lambda line, says=says: says in line)  # type: ignore[misc]
    assert not [event for event in up.events() if event.get("state") == "crashed"]


# ---- without a deployment ------------------------------------------------------------------------------------


def test_without_an_address_the_command_that_mends_it_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "agents", MIELIN_URL="")
    assert done.returncode == 1
    assert done.stderr.startswith("mielin: No server is named: run `mielin up`")


def test_an_address_without_a_server_and_a_wrong_address_are_named(tmp_path: Path) -> None:
    done = run(tmp_path, "agents", MIELIN_URL="nats://127.0.0.1:1")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "nats://127.0.0.1:1" in done.stderr
    done = run(tmp_path, "agents", "--connect", "http://127.0.0.1:1")
    assert (done.returncode, "no server's address" in done.stderr) == (2, True)
    (tmp_path / ".mielin").mkdir()
    (tmp_path / ".mielin" / "address.json").write_text("{")
    done = run(tmp_path, "agents", MIELIN_URL="")
    assert (done.returncode, "address.json cannot be read" in done.stderr) == (2, True)
