"""Commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from mielin_cells import __version__

app = App(name="mielin", help="Stateful agents that move between nodes while they work.", version=__version__)


@app.command
def demo(
    *,
    events: Annotated[Path | None, Parameter(help="A CSV file, plain or .gz, with the built-in one's columns.")] = None,
    nodes: Annotated[int, Parameter(help="Nodes, all in this process.")] = 3,
    migrations: Annotated[int, Parameter(help="Live migrations while events flow.")] = 500,
    json: Annotated[Path | None, Parameter(help="Write the report to this file, too.")] = None,
    path: Annotated[Path | None, Parameter(help="Keep the store in this file (default: a temporary one).")] = None,
    resume: Annotated[Path | None, Parameter(help="Go on with the store that an ended run kept with --path.")] = None,
    sync: Annotated[Literal["process", "power"], Parameter(help="What an acknowledged write survives.")] = "process",
) -> None:
    """Run the main job: a month of real flights through thousands of agents that move while they work.

    Each aircraft is an agent, and each destination airport.  At the end every agent is compared with an independent
    computation.  Exits with 0 only if nothing was lost, doubled or changed, and nine of ten migrations completed.
    """
    from mielin_cells.cli.demo import run

    raise SystemExit(run(events, nodes, migrations, json, path, resume, sync))
