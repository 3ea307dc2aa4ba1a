"""`mielin node` before it connects: which apps it takes, and what it says of those that it cannot use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import run

MIELIN = str(Path(sys.executable).with_name("mielin"))
NOWHERE = "nats://127.0.0.1:1"
CLOSE_S = 60
GOOD = "import mielin_cells as cells\nclass Good(cells.Agent):\n    n: int = 0\n"


def words(app: str, *options: str) -> list[str]:
    given = {
        "--name": "n1",
        "--app": app,
        "--connect": NOWHERE,
        "--wait": "0",
        **dict(zip(options[::2], options[1::2], strict=True)),
    }
    return ["node", *(word for pair in given.items() for word in pair)]


def node(folder: Path, app: str, *options: str) -> subprocess.CompletedProcess[str]:
    return run(folder, *words(app, *options))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import mielin_cells\nx = 1\nimport no_such_module\n", "line 3: import no_such_module: ModuleNotFoundError"),
        ("def f():\n    return 1 / 0\n\nf()\n", "line 2: return 1 / 0: ZeroDivisionError"),
        ("import mielin_cells\nclass :\n", "line 2: class :: SyntaxError"),
        ("raise SystemExit('go away')\n", "line 1: raise SystemExit('go away'): SystemExit: go away"),
        ("x = 1\n", "defines no agent class"),
        ("import mielin_cells as c\nclass A(c.Agent):\n    any: list\n", "A.any"),
        ("import mielin_cells as c\nclass A(c.Agent):\n    @c.handler\n    def f(self) -> None: ...\n", "must be `async def`"),
        ("import json\njson.loads('{')\n", "line 2: json.loads('{'): JSONDecodeError"),
    ],
)  # fmt: skip
def test_an_app_that_cannot_be_used_is_one_sentence_with_its_line_and_exits_with_2(
    tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "app.py").write_text(text)
    done = node(tmp_path, "app.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.startswith("mielin: --app app.py")
    assert len(done.stderr.splitlines()) == 1


def test_an_app_that_is_not_there_exits_with_2(tmp_path: Path) -> None:
    for app in ("nowhere.py", "no.such.module", ".", ""):
        done = node(tmp_path, app)
        assert done.returncode == 2
        assert done.stderr.startswith("mielin: --app")
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("app", ["app.py", "app", "folder/app.py", "folder.app", "strange name.py", "json.py"])
def test_a_file_or_a_module_with_agents_is_taken_and_may_import_its_neighbours(tmp_path: Path, app: str) -> None:
    file = tmp_path / (app if app.endswith(".py") else app.replace(".", "/") + ".py")
    file.parent.mkdir(exist_ok=True)
    (file.parent if app.endswith(".py") else tmp_path).joinpath("neighbour.py").write_text("N = 1\n")
    file.write_text("from __future__ import annotations\nfrom neighbour import N\n" + GOOD)
    command = [MIELIN, *words(app)]  # with the import path of the installed program
    done = subprocess.run(command, capture_output=True, text=True, timeout=CLOSE_S, check=False, cwd=tmp_path)
    assert done.returncode == 1  # the app is good; the server is not there
    assert NOWHERE in done.stderr


def test_options_that_cannot_be_used_exit_with_2(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(GOOD)
    for options, says in (
        (("--label", "zone"), "--label 'zone'"),
        (("--name", ""), "--name ''"),
        (("--name", "a\nb"), "--name"),
        (("--connect", "somewhere"), "'somewhere'"),
        (("--wait", "-1"), 'Invalid value "-1.0" for --wait.'),
        (("--creds", "nowhere.creds"), "nowhere.creds"),
        (("--tls-ca", "nowhere.pem"), "nowhere.pem"),
    ):
        done = node(tmp_path, "app.py", *options)
        assert done.returncode == 2, done
        assert says in done.stderr
        assert "Traceback" not in done.stderr


def test_a_class_whose_recovery_settings_cannot_be_is_named_before_the_node_connects(tmp_path: Path) -> None:
    text = "import mielin_cells as c\nclass A(c.Agent, recovery={{{}}}):\n    n: int = 0\n"
    config = tmp_path / "node.toml"
    config.write_text("[recovery]\nmax_retry_delay_secs = 20\n")
    for setting, says in (
        ("'max_retires': 1", "There is no recovery setting 'max_retires'"),
        ("'max_retries': -1", "max_retries = -1"),
        ("'initial_retry_delay_secs': 60", "max_retry_delay_secs = 20 is out of range"),  # as this node has it
    ):
        (tmp_path / "app.py").write_text(text.format(setting))
        done = node(tmp_path, "app.py", "--config", str(config))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("mielin: The recovery settings of class A are invalid: ")
        assert says in done.stderr
