"""The fixture for users' agents: the page's examples run, a harm is found, and a failure names the seed that tells it again."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support import guards
from support.paths import ROOT

import mielin_cells as cells
from mielin_cells.errors import ConfigError
from mielin_cells.testing.survive import Broken, Play, Survival

BLOCKS = re.findall(r"```python[^\n]*\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL)
PLUGIN = "mielin_cells.testing.plugin"
CLOSE_S = 110


class Purse(cells.Agent):
    coins: int = 0

    @cells.handler
    async def put(self, coins: int) -> int:
        self.coins += coins
        return self.coins


async def ten_coins(world: Play) -> None:
    purse = await world.spawn(Purse, "purse")
    for _ in range(10):
        await world.call(purse.put, 1)


async def none_is_doubled(world: Play) -> None:
    coins = await world.surely(world.cluster.get(Purse, "purse").put, 0)
    assert world.acknowledged <= coins <= world.acknowledged + world.unknown, f"{coins} coins"


def test_a_story_meets_faults_and_comes_out_right() -> None:
    survival = Survival()
    survival.run(ten_coins, seeds=25, invariant=none_is_doubled)
    for what in ("crash", "pause", "migrations completed", "append_lost"):
        assert survival.counts[what], what


def test_a_harm_is_found_and_its_seed_tells_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    guards.dedupe(monkeypatch)
    with pytest.raises(Broken, match=r"^seed \d+: .* I[48]: ") as caught:
        Survival().run(ten_coins, seeds=40)
    found = str(caught.value)
    seed = int(found.split()[1].rstrip(":"))
    with pytest.raises(Broken) as again:
        Survival().run(ten_coins, seeds=[seed])
    assert str(again.value) == found


def test_an_error_of_a_story_or_an_invariant_is_reported_with_the_seed() -> None:
    async def wrong(world: Play) -> None:
        raise ValueError("of my own")

    with pytest.raises(Broken, match=r"^seed 1: .*the story: ValueError: of my own"):
        Survival().run(wrong, seeds=3)
    with pytest.raises(Broken, match=r"^seed 5: .*the invariant: ValueError: of my own"):
        Survival().run(ten_coins, seeds=[5], invariant=wrong)
    with pytest.raises(ConfigError, match="plays nothing"):
        Survival().run(ten_coins, seeds=0)


def test_the_fixture_of_the_page_runs_as_a_user_has_it(tmp_path: Path) -> None:
    """Under pytest alone.  The plugin is named for installations older than its entry point; twice is harmless."""
    (tmp_path / "test_till.py").write_text(BLOCKS[0])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider", "-p", PLUGIN, "."],
        cwd=tmp_path, capture_output=True, text=True, timeout=CLOSE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_other_example_of_the_page_runs(tmp_path: Path) -> None:
    (tmp_path / "faults.py").write_text(BLOCKS[1])
    subprocess.run([sys.executable, "-W", "error", "faults.py"], cwd=tmp_path, timeout=CLOSE_S, check=True)
    assert len(BLOCKS) == 2, "a new example is run here, too"


def test_pytest_finds_the_plugin_and_the_package_does_not_load_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {PLUGIN: PLUGIN}
    code = "import sys, mielin_cells; assert not {'pytest', 'mielin_cells.testing'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], timeout=CLOSE_S, check=True)
