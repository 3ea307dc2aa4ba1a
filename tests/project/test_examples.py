"""Each example runs as it stands, and stays small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

EXAMPLES = ROOT / "examples"
CLOSE_S = 120
CHAT = """paid for plan on node-1
paid for draft on node-2
process ended with 9
paid for polish on node-2
What colour is the sky?
The sky is blue.
"""
STREAM = """The sky is blue because short waves scatter most. (1 answered on node-2)
The sky is blue because short waves scatter most. (1 answered on node-2)
paused for a moment: True
"""
APPROVAL = """mail to boss: may we buy a ladder?
the move has completed
process ended with 9
approved: True
a ladder: bought
"""
ENDS = {
    "approval.py": APPROVAL,
    "chat.py": CHAT,
    "fan_out.py": "process ended with 9\ntotal: 2470 worked: {1}\n",
    "hello.py": "3\n",
    "pipeline.py": "process ended with 9\nwords: 180 of them the: 40\n",
    "market.py": "process ended with 9\norders and pieces: 200 19900 in the EU: 100 10000\n",
    "quotes.py": "process ended with 9\naudited shop-4\nbest: 40\n",
    "reminder.py": "tea is ready, on node-2\n",
    "report.py": "report 1: 1 sold\nreport 2: 1 sold\nreport 3: 1 sold\n",
    "shop.py": "left: 10\n",
    "stream.py": STREAM,
}


def test_every_example_is_known() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ENDS)


@pytest.mark.parametrize("name", ENDS)
def test_an_example_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=tmp_path, capture_output=True, text=True, timeout=CLOSE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(ENDS[name])
    assert "Traceback" not in done.stderr
    assert len((EXAMPLES / name).read_text().splitlines()) < 60
