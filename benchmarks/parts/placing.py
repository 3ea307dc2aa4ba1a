"""Placing 100,000 agents with policies on 1,000 simulated nodes, and how evenly, beside the best that a solver finds.

The nodes exist only in a table of members; what is measured is `membership.selection`, as spawns, moves and takeovers use it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections import Counter
from random import Random
from statistics import median
from typing import Any

from benchmarks.figures import Found, Size, spread
from benchmarks.harness import run, say
from benchmarks.peer import ROOT
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.members import Joined, Loads, Serving, Table
from mielin_cells.membership.selection import Spread
from mielin_cells.policies import Facts, Policy, Preference
from mielin_cells.policy.placement.values import Need

NODES: dict[Size, int] = {"smoke": 50, "quick": 1_000, "full": 1_000}
AGENTS: dict[Size, int] = {"smoke": 500, "quick": 100_000, "full": 100_000}
ROUNDS: dict[Size, int] = {"smoke": 1, "quick": 1, "full": 5}
INSTANCES: dict[Size, int] = {"smoke": 2, "quick": 10, "full": 40}
SECONDS_MAX = 10.0
TIMES_MAX = 1.1
SOLVER = ROOT / "build" / "solver" / "bin" / "python"
SOLVER_S = 60.0

POLICIES = (
    Policy(), Policy(require=("node.labels.region == 'eu'",)), Policy(require=("node.mains and node.cpu < 80",)),
    Policy(prefer=(Preference("node.mains", 0.5), Preference("1 - node.cpu / 100", 0.3))), Policy(spread=("zone",)),
)  # fmt: skip


def table_of(nodes: int, rng: Random) -> Table:
    """A table of members in which each node serves, has labels, and has told its facts."""
    table, facts = Table(), dict[str, Facts]()
    for number in range(nodes):
        name = f"node-{number:04}"
        labels = {"zone": f"z{number % 10}", "region": "us" if number % 4 == 0 else "eu"}
        table.apply(2 * number + 1, Joined(name, 1, b"", Announcement(classes={"Chat": 1}, labels=labels)))
        table.apply(2 * number + 2, Serving(name, 1))
        facts[name] = Facts(cpu=float(rng.randrange(100)), mains=rng.random() < 0.7)
    table.apply(2 * nodes + 1, Loads("node-0000", 1, 1, {}, facts))
    return table


def place_all(size: Size, found: Found) -> None:
    nodes, agents = NODES[size], AGENTS[size]
    alone, mixed = list[float](), list[float]()
    for seed in range(ROUNDS[size]):
        for policies, seconds in (((Policy(),), alone), (POLICIES, mixed)):
            chooser = Spread().follow(table_of(nodes, Random(seed)), None)
            begun = time.process_time()
            for number in range(agents):
                need = Need(f"a{number}", "Chat", 1, policies[number % len(policies)])
                if chooser.choose((), need) is None:
                    raise AssertionError("every agent has a place")
            seconds.append(time.process_time() - begun)
            say(f"{agents:,} agents on {nodes:,} nodes, {len(policies)} policies: {seconds[-1]:.2f} s")
    found.figures["seconds_without_policies"], found.figures["seconds"] = spread(alone), spread(mixed)
    middle = median(mixed)
    note = (
        f"processor time; {len(POLICIES)} policies: none, two with conditions, one with preferences, one spread over 10 zones; "
        f"without policies {median(alone):.2f} s"
    )
    is_met = middle < SECONDS_MAX if size != "smoke" else None
    found.row("place-many", "", f"{middle:.2f} s", is_met, f"{agents:,} agents on {nodes:,} nodes; {note}")


# ---- beside a solver -----------------------------------------------------------------------------------------


def instance(seed: int) -> tuple[dict[str, Any], int]:
    """Nodes with agents, and new agents that may run on some of them; and the highest load after our placement."""
    rng = Random(seed)
    nodes, zones = rng.randrange(8, 30), rng.randrange(2, 5)
    table = Table()
    for number in range(nodes):
        name, labels = f"n{number:02}", {"zone": f"z{rng.randrange(zones)}", "gpu": rng.choice(("yes", "no", "no"))}
        table.apply(2 * number + 1, Joined(name, 1, b"", Announcement(labels=labels)))
        table.apply(2 * number + 2, Serving(name, 1, rng.randrange(12)))
    policies = [Policy(), Policy(require=("node.labels.gpu == 'yes'",))]
    policies += [Policy(require=(f"node.labels.zone == 'z{zone}'",)) for zone in range(zones)]
    chooser, loads = Spread().follow(table, None), Counter({member.name: member.agents for member in table})
    groups = Counter[tuple[str, ...]]()
    for number in range(rng.randrange(100, 500)):
        need = Need(f"a{number}", "", 0, rng.choice(policies))
        able = tuple(name for name in chooser.names if chooser.fits(name, need))
        node = chooser.choose((), need)
        if node is not None:
            loads[node] += 1
            groups[able] += 1
    given = {member.name: member.agents for member in table}
    return {"loads": given, "groups": [[list(able), count] for able, count in groups.items()]}, max(loads.values())


def beside_solver(size: Size, found: Found) -> None:
    python = os.environ.get("BENCH_SOLVER", str(SOLVER))
    made = [instance(seed) for seed in range(INSTANCES[size])]
    try:
        command = (python, str(ROOT / "benchmarks" / "solver.py"))
        told = subprocess.run(
            command, input=json.dumps([one for one, _ in made]), capture_output=True, text=True, check=True,
            timeout=SOLVER_S * len(made),
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        found.row("place-solver", "", "the solver is not installed (`make solver`)", None, str(error)[:200])
        return
    times = [ours / best for (_, ours), best in zip(made, json.loads(told.stdout), strict=True)]
    found.figures["times_the_solver"] = spread(times)
    note = f"{len(times)} instances of 8 to 29 nodes and 100 to 499 agents, in any order; median {median(times):.3f}"
    found.row("place-solver", "", f"at most {max(times):.3f} times", max(times) <= TIMES_MAX, note)


async def measure(size: Size, found: Found) -> None:
    await asyncio.to_thread(place_all, size, found)
    await asyncio.to_thread(beside_solver, size, found)


if __name__ == "__main__":
    run(measure)
