"""`mielin.toml`: what it sets, and how a mistake in it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

import mielin_cells as cells
from mielin_cells.deployment.config import Config, NodeConfig, find, read
from mielin_cells.migration.recovery import RecoveryConfig, changed

GOOD = """
# nodes of the shop
[settings]
pause_s = 2.5

[recovery]
max_retries = 5
initial_retry_delay_secs = 0.25

[recovery.classes.Chat]
recovery_timeout_secs = 60

[node]
cost_per_hour = 0.12
drain_file = "drain"
metrics = "127.0.0.1:9464"

[node.labels]
zone = "eu-1"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mielin.toml"
    path.write_text(text)
    return path


def test_a_file_sets_settings_recovery_and_recovery_of_classes(tmp_path: Path) -> None:
    config = read(written(tmp_path, GOOD))
    assert config.settings == cells.Settings(pause_s=2.5)
    assert config.recovery == RecoveryConfig(max_retries=5, initial_retry_delay_secs=0.25)
    assert changed(config.recovery, config.classes["Chat"]).recovery_timeout_secs == 60
    assert config.node == NodeConfig(
        labels={"zone": "eu-1"}, cost_per_hour=0.12, drain_file="drain", metrics="127.0.0.1:9464"
    )


def test_the_file_of_the_directory_is_found_and_none_means_defaults(tmp_path: Path) -> None:
    assert find(None, tmp_path) == Config()
    written(tmp_path, GOOD)
    assert find(None, tmp_path).settings.pause_s == 2.5


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[settings]\npause_s = 0\n", 2, "pause_s"),
        ("[settings]\n\npause_ss = 1\n", 3, "no such setting"),
        ("[recovery]\nmax_retries = -1\n", 2, "max_retries"),
        ("[recovery]\nmax_retries = 'x'\n", 2, "max_retries"),
        ("[recovery]\ninitial_retry_delay_secs = 20\nmax_retry_delay_secs = 5\n", 3, "at least"),
        ("[recovery]\n\n[recovery.classes.Chat]\nmax_retries = true\n", 4, "max_retries"),
        ("\n[recovry]\nmax_retries = 1\n", 2, "no such table"),
        ("[settings]\nstep_timeout_s = 1\ninbox_max = 'many'\n", 3, "inbox_max"),
        ("[settings]\nheartbeat_misses = 0.5\n", 2, "a whole number"),
        ("[node]\ncost_per_hour = -1\n", 2, "0 to 1,000,000,000"),
        ("[node]\ncost_per_hour = 'much'\n", 2, "0 to 1,000,000,000"),
        ("[node]\ndrain_file = ''\n", 2, "a path"),
        ("[node]\nready_file = 3\n", 2, "a path"),
        ("[node]\nmetrics = 9464\n", 2, "HOST:PORT"),
        ("[node]\nmetrics = '9464'\n", 2, "HOST:PORT"),
        ("[node]\nlabels = 'eu'\n", 2, "wanted: a table"),
        ("[node]\n[node.labels]\nzone = 3\n", 3, "no text"),
        ("[node]\nroom = 3\n", 2, "no such setting"),
    ],
)
def test_a_mistake_is_reported_with_file_line_and_field(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(cells.ConfigError, match=says) as raised:
        read(path)
    assert f"{path}, line {line}:" in str(raised.value)


@pytest.mark.parametrize("data", [b"[settings\n", b"a = \xff\n"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mielin.toml"
    path.write_bytes(data)
    with pytest.raises(cells.ConfigError, match=r"mielin\.toml"):
        read(path)
    with pytest.raises(cells.ConfigError, match="cannot be read"):
        read(tmp_path / "none.toml")


def test_the_nearest_setting_counts_and_each_is_checked() -> None:
    config = RecoveryConfig()
    assert changed(config, {"max_retries": 1.0}, {"max_retries": 2.0}).max_retries == 2
    assert changed(config, {"auto_rollback": 0.0}).auto_rollback is False
    assert changed(config, None, {}) == config
    with pytest.raises(cells.ConfigError, match="max_retires"):
        changed(config, {"max_retires": 1})
    with pytest.raises(cells.ConfigError, match="max_retries"):
        changed(config, {"max_retries": 1.5})
