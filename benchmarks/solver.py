"""The least highest load that any placement of the agents has, by OR-tools; run with an interpreter that has it (`make solver`).

Reads instances as JSON: the agents that each node has, and groups of new agents with the nodes that they may run on.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def best(instance: dict[str, Any]) -> int:
    from ortools.sat.python import cp_model

    model, loads = cp_model.CpModel(), instance["loads"]
    total = sum(loads.values()) + sum(count for _, count in instance["groups"])
    highest = model.new_int_var(max(loads.values()), total, "highest")
    given: dict[str, list[Any]] = {name: [] for name in loads}
    for number, (able, count) in enumerate(instance["groups"]):
        parts = [model.new_int_var(0, count, f"{number}-{name}") for name in able]
        model.add(sum(parts) == count)
        for name, part in zip(able, parts, strict=True):
            given[name].append(part)
    for name, load in loads.items():
        model.add(load + sum(given[name]) <= highest)
    model.minimize(highest)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    status = solver.solve(model)
    if status != cp_model.OPTIMAL:
        raise SystemExit(f"the solver has no best answer: {solver.status_name(status)}")
    least: int = round(solver.objective_value)
    return least


if __name__ == "__main__":
    print(json.dumps([best(one) for one in json.load(sys.stdin)]))
