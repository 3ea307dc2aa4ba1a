"""docs/benchmarks.md from benchmarks/results.json: `python -m benchmarks.page [RESULTS FOLDER]`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.bars import BARS, Bar
from benchmarks.peer import PEERS, ROOT
from benchmarks.words import LIMITS, METHOD, PEER_WORDS, PLOTS

MARKS = {True: "yes", False: "**no**", None: "not measured"}


def write(results: Path, folder: Path) -> Path:
    """Writes the page and its plots into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    trouble = _plotted(results, folder / "plots")
    path = folder / "benchmarks.md"
    path.write_text(text(json.loads(results.read_text()), folder / "plots", trouble))
    return path


def _plotted(results: Path, folder: Path) -> str:
    """Draws with the peers' environment; why not, if it cannot."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        return "matplotlib is not there (`make peers`)"
    done = subprocess.run(
        [str(python), "-m", "benchmarks.plots", str(results), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def text(results: dict[str, Any], plots: Path, trouble: str) -> str:
    found = {(row["key"], row["sync"]): row for part in results["parts"].values() for row in part["rows"]}
    lines = [
        "# Benchmarks", "",
        "Written by `make bench`; do not edit. Where our time goes, and what was tried, is in [performance](performance.md).", "",
        *_head(results), "", "## What is to be reached", "",
        "Ratios within one run; \"always\": every write is on the disk before it is acknowledged; \"lazy\": within two minutes.", "",
        "| what | sync | bar | measured | met |", "|-|-|-|-|-|",
    ]  # fmt: skip
    lines += [
        _row(bar, sync, found.get((bar.key, sync)), results["parts"].get(bar.part))
        for bar in BARS
        for sync in bar.syncs
    ]
    lines += _missed(found)
    for name, words in PLOTS.items():
        if (plots / f"{name}.svg").exists():
            lines += ["", f"![{words}](plots/{name}.svg)"]
    if trouble:
        lines += ["", f"The plots were not drawn: {trouble}."]
    lines += [
        "",
        "## How it is measured",
        "",
        *METHOD,
        "",
        "## The peers",
        "",
        *_peers(results),
        "",
        *_circumstances(results),
    ]
    return "\n".join(lines) + "\n"


def _head(results: dict[str, Any]) -> list[str]:
    machine = results["machine"]
    kind = {"full": "A full run", "quick": "A quick run: figures for development"}.get(results["size"], results["size"])
    about = f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, {machine['system']}"
    server = next(
        (part["figures"]["server"] for part in results["parts"].values() if part["figures"].get("server")), ""
    )
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    software = f"Python {machine['python']}, SQLite {machine['sqlite']}{f', nats-server {server}' if server else ''}, {versions}"
    return [f"{kind} of {results['at'][:10]}, {_commits(results)}; {about}; {software}."]


def _commits(results: dict[str, Any]) -> str:
    """The commit that was measured, if it is that of every part: a run of some parts keeps the figures of the others."""
    commits = {part["commit"] for part in results["parts"].values()} or {results["machine"]["commit"]}
    if len(commits) > 1:
        return f"with parts of {len(commits)} commits, which [the last table](#how-busy-the-machine-was) names"
    return f"commit {commits.pop() or 'unknown'}"


def _row(bar: Bar, sync: str, row: dict[str, Any] | None, part: dict[str, Any] | None) -> str:
    if row is None:
        why = "its part was not run" if part is None else f"its part failed: {_first(part['error'])}"
        return f"| {bar.what} | {sync} | {bar.bar} | {why} | {MARKS[None]} |"
    note = f"<br>{row['note']}" if row["note"] else ""
    return f"| {bar.what} | {sync} | {bar.bar} | {row['measured']}{note} | {MARKS[row['is_met']]} |"


def _first(error: str) -> str:
    """How a part failed, and the last line of what it wrote."""
    lines = error.strip().splitlines() or ["nothing was told"]
    said = lines[0] if len(lines) == 1 else f"{lines[0].partition(':')[0]}; {lines[-1]}"
    return said.replace("|", "/")[:300]


def _missed(found: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    missed: dict[str, list[str]] = {}
    for (key, sync), row in found.items():
        if row["is_met"] is False:
            missed.setdefault(key, []).append(f"{sync + ': ' if sync else ''}{row['measured']}")
    if not missed:
        return ["", "Every bar is met."]
    lines = ["", "## Bars that are not met", ""]
    for bar in BARS:
        if bar.key in missed:
            measured = "; ".join(missed[bar.key])
            lines += [f"- **{bar.what}**: {bar.bar}. Measured: {measured}. {LIMITS.get(bar.key, '')}".rstrip()]
    return lines


def _peers(results: dict[str, Any]) -> list[str]:
    if results["peers"]:
        return [f"They were left out of this run: {results['peers']}."]
    return [f"- **{name}** {results['peer_versions'].get(name, '')}: {words}" for name, words in PEER_WORDS.items()]


def _circumstances(results: dict[str, Any]) -> list[str]:
    lines = [
        "## How busy the machine was",
        "",
        "| part | commit | took | load before | others' share of the processors | |",
        "|-|-|-|-|-|-|",
    ]
    for name, part in results["parts"].items():
        around = part["machine"]
        said = f"failed: {_first(part['error'])}" if part["error"] else ""
        busy = f"{around['load_before']} | {around['others_share']:.0%}"
        lines += [f"| {name} | {part['commit']} | {part['seconds']:.0f} s | {busy} | {said} |"]
    return lines


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    print(write(*given) if given else write(ROOT / "benchmarks" / "results.json", ROOT / "docs"))
