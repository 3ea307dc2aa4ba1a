"""The `mielin` command as a process: what it prints, and what it exits with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import run as command

import mielin_cells as cells
from mielin_cells import cli
from mielin_cells.cli.app import app

MIELIN = str(Path(sys.executable).with_name("mielin"))
CLOSE_S = 120
EVENTS = "time_hour,carrier,flight,tailnum,origin,dest,dep_delay,arr_delay,air_time,distance\nt,UA,1,N1,EWR,IAH,2,11,9,1400\n"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MIELIN, *options], capture_output=True, text=True, timeout=CLOSE_S, check=False)


def test_help_and_version_are_printed() -> None:
    shown = run("demo", "--help")
    assert shown.returncode == 0
    for option in ("--events", "--nodes", "--migrations", "--json", "--resume", "--path", "--sync"):
        assert option in shown.stdout
    assert run("--version").stdout.strip() == cells.__version__


def test_help_loads_no_broker_and_not_the_job() -> None:
    code = (
        "import sys; from mielin_cells.cli.app import app; app(['--help'], exit_on_error=False, result_action='return_value');"
        "print([m for m in sys.modules if m.split('.')[0] == 'nats' or m.startswith('mielin_cells.cli.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=CLOSE_S, check=True)
    assert done.stdout.splitlines()[-1] == "['mielin_cells.cli.app']"


def test_each_command_that_is_named_exists() -> None:
    for name in app:
        commands = (
            [app[name][one] for one in app[name] if not one.startswith("-")]
            if name in ("topic", "group")
            else [app[name]]
        )
        assert name.startswith("-") or all(command.default_command is not None for command in commands), name


@pytest.mark.parametrize(
    "options",
    [("bogus",), ("demo", "--nodes", "x"), ("demo", "--bogus"), ("demo", "--sync", "never")],
)
def test_a_command_line_that_does_not_parse_exits_with_2(options: tuple[str, ...]) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("mielin: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("agents", "--conect", "nats://user:secret@host:1"),
        ("agents", "nats://user:secret@host:1"),
        ("agents", "--connect", "ws://user:secret@host:1"),
        ("agents", "--connect", "nats://user:sec/ret@host:1"),
        ("agents", "--connect", "nats://user:1?secret@host:1"),
        ("agents", "--connect", "nats://secret@127.0.0.1:1"),
        ("nodes", "--connect", "user:secret@127.0.0.1:1"),
        ("doctor", "--connect", "nats://user:secret@127.0.0.1:1"),
        ("up", "--app", "nowhere.py", "--connect", "tls://user:secret@127.0.0.1:1"),
    ],
)
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_no_address_is_printed_with_what_lets_one_in(
    words: tuple[str, ...], form: tuple[str, ...], tmp_path: Path
) -> None:
    done = command(tmp_path, *words, *form)
    assert done.returncode in (1, 2)
    assert "secret" not in done.stdout + done.stderr
    assert "sec/ret" not in done.stdout + done.stderr
    assert len((done.stdout + done.stderr).splitlines()) >= 1


def test_a_websocket_is_refused_in_one_sentence(tmp_path: Path) -> None:
    for scheme in ("ws", "wss"):
        done = command(tmp_path, "agents", MIELIN_URL=f"{scheme}://host:1")
        assert (done.returncode, "is a websocket" in done.stderr) == (2, True)


def test_a_locale_of_few_characters_gets_the_others_written_out(tmp_path: Path) -> None:
    done = subprocess.run(
        [MIELIN, "ünïcode", "--json"], capture_output=True, timeout=CLOSE_S, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, b"")
    assert b"\\xfcn\\xefcode" in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--nodes", "1"), 'Invalid value "1" for --nodes. Must be >= 2.'),
        (("--nodes", "65"), 'Invalid value "65" for --nodes. Must be <= 64.'),
        (("--migrations=-1",), 'Invalid value "-1" for --migrations. Must be >= 0.'),
        (("--events", "nowhere.csv"), "nowhere.csv cannot be read"),
        (("--embedded", "--resume", "nowhere.db"), "--resume nowhere.db"),
    ],
)
def test_an_option_that_cannot_be_is_one_sentence_and_exits_with_2(options: tuple[str, ...], says: str) -> None:
    done = run("demo", *options)
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if line.startswith("mielin: ")]
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in done.stderr


def test_with_json_wishes_that_contradict_each_other_are_an_object_too() -> None:
    done = run("recover", "m-1", "--retry", "--rollback", "--json")
    assert (done.returncode, done.stderr) == (2, "")
    assert json.loads(done.stdout)["error"]["code"] == "ConfigError"


def test_a_closed_output_pipe_is_no_error() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    command = [MIELIN, "recover", "m-1", "--retry", "--rollback", "--json"]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, timeout=CLOSE_S, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_file_that_is_no_store_is_one_sentence_and_exits_with_1(tmp_path: Path) -> None:
    store, events = tmp_path / "store.db", tmp_path / "events.csv"
    store.write_text("no store " * 500)
    events.write_text(EVENTS)
    done = run("demo", "--embedded", "--events", str(events), "--resume", str(store))
    assert done.returncode == 1
    assert "store.db" in done.stderr
    assert "Traceback" not in done.stderr
    assert store.read_text() == "no store " * 500


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (cells.ConfigError("no"), 2),
        (cells.MigrationRefused("no"), 3),
        (cells.errors.StoreInUse("no"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_error_has_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends() -> None:
        raise error

    monkeypatch.setattr("mielin_cells.cli.app.app", ends)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith("mielin: ")
