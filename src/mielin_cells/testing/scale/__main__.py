"""`python -m mielin_cells.testing.scale`: what a node costs, as nodes and agents grow, counted in simulated deployments.

Prints a table and writes the figures as JSON.  The exit code is 1 if an agent was lost or doubled, if a count for each node grows
with the number of nodes, or if drains or failovers take longer.  See docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mielin_cells.testing.scale.measure import measure
from mielin_cells.testing.scale.report import Limits, render, shortfalls


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _play_apart(nodes: int, agents_each: int, args: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own, whose memory ends with it."""
    words = [
        sys.executable, "-m", "mielin_cells.testing.scale", "--one", str(nodes), "--agents-each", str(agents_each),
        "--rest", str(args.rest), "--window", str(args.window), *(["--no-moves"] if args.no_moves else []),
    ]  # fmt: skip
    played = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(played.stdout)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mielin_cells.testing.scale", description=__doc__)
    parser.add_argument(
        "--nodes", default="10,100,1000", help="the sizes, separated by commas; ratios are to the first"
    )
    parser.add_argument("--agents-each", type=int, default=100, help="of each node")
    parser.add_argument(
        "--rest", type=float, default=20.0, help="virtual seconds between the last spawn and the first window"
    )
    parser.add_argument("--window", type=float, default=10.0, help="virtual seconds of each window")
    parser.add_argument("--no-moves", action="store_true", help="without drains and failovers")
    parser.add_argument("--out", type=Path, help="a file for the figures")
    parser.add_argument("--one", type=int, help="one size, in this process; prints its figures alone")
    args = parser.parse_args()
    if args.one is not None:
        result = measure(
            args.one, args.agents_each, _say, moves=not args.no_moves, rest_s=args.rest, window_s=args.window
        )
        print(json.dumps(result.as_json()))
        return 0
    sizes = [int(size) for size in args.nodes.split(",")]
    results = [_play_apart(nodes, args.agents_each, args) for nodes in sizes]
    missed = shortfalls(results, Limits())
    print(render(results))
    for line in missed:
        print(f"missed: {line}")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"results": results, "missed": missed}, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
