"""`python -m benchmarks --size smoke|quick|full [--only PART,PART]`: every part, each in a process of its own, one after another.

A part that fails, or takes too long, is told as failed with its error, and the others go on.  What is found is written after
each part: of a full run to benchmarks/results.json, and at the end to docs/benchmarks.md; of others to build/bench.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks import machine, page
from benchmarks.figures import Size
from benchmarks.peer import PEERS, ROOT, have_peers, versions

RESULTS = ROOT / "benchmarks" / "results.json"
BUILD = ROOT / "build" / "bench"
WORDS = 1500
"""Of a failed part's standard error, so many last characters are kept."""

GRACE_S = 10.0
QUIET_S: dict[Size, float] = {"smoke": 0.0, "quick": 0.0, "full": 20.0}
"""How long to wait before each part for the machine to come to rest."""


class Part(NamedTuple):
    """`limits_s`: a part that takes longer is ended.  Those of one size add up to less than what the whole may take, twice over."""

    name: str
    limits_s: dict[Size, float]


def _limits(smoke: float, quick: float, full: float) -> dict[Size, float]:
    return {"smoke": smoke, "quick": quick, "full": full}


PARTS = (
    Part("start", _limits(20, 20, 60)),
    Part("manager", _limits(20, 20, 60)),
    Part("placing", _limits(30, 90, 240)),
    Part("policies", _limits(40, 60, 120)),
    Part("pause", _limits(30, 60, 180)),
    Part("asks", _limits(30, 60, 300)),
    Part("away", _limits(30, 60, 240)),
    Part("inprocess", _limits(20, 40, 120)),
    Part("dbos", _limits(20, 40, 180)),
    Part("turns", _limits(20, 40, 180)),
    Part("topics", _limits(60, 120, 300)),
    Part("talk", _limits(30, 90, 240)),
    Part("words", _limits(40, 90, 300)),
    Part("drain", _limits(30, 60, 180)),
    Part("failover", _limits(40, 60, 240)),
    Part("idle", _limits(30, 40, 240)),
    Part("asleep", _limits(60, 120, 400)),
    Part("timers", _limits(20, 60, 120)),
    Part("scale", _limits(60, 360, 900)),
    Part("sizes", _limits(40, 90, 600)),
)


def measured(part: Part, size: Size) -> dict[str, Any]:
    """What the part has found, or why it has not."""
    at, watch = time.monotonic(), machine.Watch()
    with tempfile.TemporaryDirectory(prefix="mielin-bench-") as folder:
        out, errors = Path(folder) / "out.json", Path(folder) / "errors"
        command = [sys.executable, "-m", f"benchmarks.parts.{part.name}", "--size", size, "--out", str(out)]
        with errors.open("wb") as stderr:
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
            error = ""
            try:
                code = process.wait(part.limits_s[size])
                if code:
                    error = f"it ended with {code}"
            except subprocess.TimeoutExpired:
                error = f"it was ended after {part.limits_s[size]:.0f} s"
            finally:
                around = watch.end()
                _end_all()
        words = errors.read_text(errors="replace")
        found = json.loads(out.read_text()) if out.exists() else {"rows": [], "figures": {}}
        if error:
            error += f": {words.strip()[-WORDS:]}"
        return {
            **found,
            "error": error,
            "seconds": round(time.monotonic() - at, 1),
            "machine": around,
            "commit": machine.commit(),
        }


def _adopt() -> None:
    """What the descendants of this process leave behind becomes its child, so that it can be ended (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _end_all() -> None:
    """Ends what a part has left: servers, nodes, peers.  Only descendants of this process are touched."""
    left = psutil.Process().children(recursive=True)
    for process in left:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(left, GRACE_S)
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, GRACE_S)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return  # it has ended meanwhile


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--size", choices=("smoke", "quick", "full"), default="quick")
    parser.add_argument("--only", default="", help="parts, with commas; of the others the last results stay")
    parser.add_argument("--out", type=Path, help="results; the page is written beside them")
    options = parser.parse_args()
    size: Size = options.size
    if size == "smoke":
        os.environ["BENCH_NO_PEERS"] = "1"
    out: Path = options.out or (RESULTS if size == "full" else BUILD / f"{size}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    wanted = options.only.split(",") if options.only else [part.name for part in PARTS]
    unknown = set(wanted) - {part.name for part in PARTS}
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in PARTS)}")
    _adopt()
    before = json.loads(out.read_text()) if options.only and out.exists() else {"parts": {}}
    results: dict[str, Any] = {
        "size": size,
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.facts(),
        "versions": machine.versions(),
        "peers": _peers(),
        "peer_versions": versions() if have_peers() else {},
        "parts": before["parts"],
    }
    for part in PARTS:
        if part.name not in wanted:
            continue
        machine.wait_until_quiet(QUIET_S[size])
        found = results["parts"][part.name] = measured(part, size)
        _told(part.name, found, size)
        out.write_text(json.dumps(results, indent=1) + "\n")
    failed = [name for name in wanted if results["parts"][name]["error"]]
    if size != "smoke":
        written = page.write(out, ROOT / "docs" if out == RESULTS else out.with_suffix(""))
        print(f"{out} and {written}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _peers() -> str:
    """ "" if they are there; else why not."""
    if have_peers():
        return ""
    return f"{PEERS.relative_to(ROOT)} is not there: `make peers` has failed, or was not run"


def _told(name: str, found: dict[str, Any], size: Size) -> None:
    print(f"{name}: {found['error'] or 'done'} ({found['seconds']} s)", flush=True)
    if size == "smoke":
        return  # that it runs is all it shows
    for row in found["rows"]:
        mark = {True: "met    ", False: "NOT MET", None: "-      "}[row["is_met"]]
        print(f"  {mark} {row['key']} {row['sync']}: {row['measured']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
