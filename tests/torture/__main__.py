"""`python -m torture --minutes N`: the half of the time on one server, the other half on a cluster of three with
three copies and four shards.

Each set-up goes through rounds: the load with everything going wrong, then everything is healed and must come to rest; then what
clients recorded and what the store holds is judged.  The agents of a round are looked at one round later, when each of
their migrations has its end.  Prints a line a round and the figures as JSON; exits with 1 if anything was violated.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from support.nats_servers import opened, proxied

from mielin_cells.client.client import Client
from mielin_cells.deployment.connect import Address, connected
from mielin_cells.errors import CellError, RetryError
from mielin_cells.log.ids import inbox_subject, journal_subject, log_subject
from mielin_cells.log.inboxes.lines import PRIORITIES
from mielin_cells.settings import Settings
from mielin_cells.store import journal
from mielin_cells.store.reader import load as load_agent
from mielin_cells.testing.checkers.scene import Observed
from torture.agents import TOKENS
from torture.check import Check, outages
from torture.load import REST_S, Load
from torture.nemesis import Nemesis
from torture.nodes import NodeProcess
from torture.stores import Store, store
from torture.tape import Tape

CONFIG = """
[settings]
tries = 100  # of a message whose process was lost: here that is never the message's fault
prepare_s = 2.0
pause_s = 2.0
handover_s = 0.7
probation_s = 4.0
reconcile_s = 1.0
migration_s = 20.0
snapshot_records = 64

[recovery]
max_retries = 3
initial_retry_delay_secs = 0.25
max_retry_delay_secs = 2.0
recovery_timeout_secs = 30
"""

ROUND_S = 50.0
"""Of trouble, at most, between two times of rest."""

AGENTS = 12
INDEX_S = 45.0
"""A server takes up an index again by itself within half a minute."""
MENDS = 3
"""How often an index that lacks agents is made anew."""

WAITED_S = 0.5
"""A call that waits longer counts as time in which its agent was not available."""

COUNTED = (
    "kill", "stop", "stop past the lease", "cut", "kill server", "stop server", "kill leader", "kill index leader",
    "kill failover leader", "kill all servers", "delete index",
)  # fmt: skip
BUG = "Traceback (most recent call last)"


@dataclass(slots=True)
class Figures:
    """Of one set-up."""

    name: str
    nodes: int
    shards: int
    seconds: float = 0.0
    rounds: int = 0
    events: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    acknowledged: int = 0
    reads: int = 0
    heard: Counter[str] = field(default_factory=Counter)
    """Shared reads, streams and posts, and what became of them."""
    errors: Counter[str] = field(default_factory=Counter)
    migrations: Counter[str] = field(default_factory=Counter)
    landed: Counter[str] = field(default_factory=Counter)
    outages: list[float] = field(default_factory=list)
    rests: list[float] = field(default_factory=list)
    indexes: int = 0
    """How many times the index of owners was made."""
    lost: int = 0
    """Agents that an index did not name at their owner long after everything was healed."""
    ended: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """As a JSON-like value."""
        counted = sum(count for what, count in self.events.items() if what.startswith(COUNTED))
        return {
            "store": self.name, "nodes": self.nodes, "shards": self.shards, "seconds": round(self.seconds), "rounds": self.rounds,
            "kill_stop_cut_events": counted, "events": dict(sorted(self.events.items())),
            "calls": self.calls, "acknowledged": self.acknowledged, "owner_reads": self.reads,
            "heard": dict(sorted(self.heard.items())),
            "migrations": dict(sorted(self.migrations.items())), "landed": dict(sorted(self.landed.items())),
            "told_clients": dict(sorted(self.errors.items())), "nodes_ended_by_themselves": dict(self.ended),
            "indexes_made": self.indexes, "lost_by_the_index": self.lost,
            "unavailable_s": _spread(self.outages), "rest_after_healing_s": _spread(self.rests),
            "violations": self.violations,
        }  # fmt: skip


def _spread(values: list[float]) -> dict[str, float]:
    some = sorted(values) or [0.0]
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {"count": len(values)} | {
        name: round(some[min(len(some) - 1, int(len(some) * p))], 2) for name, p in at.items()
    }


@dataclass(slots=True)
class Rested:
    """A round whose agents have answered, and are still to be judged."""

    load: Load
    shown: dict[str, Observed]


class Setup:
    """One store with its nodes, for some time."""

    def __init__(
        self, under: Store, nodes: list[NodeProcess], nemesis: Nemesis, client: Client, tape: Tape, quiet: asyncio.Event
    ) -> None:  # fmt: skip
        self._under = under
        self._nodes = nodes
        self._tape = tape
        self._nemesis = nemesis
        self._client = client
        self._before: Rested | None = None
        self.load: Load | None = None
        self._quiet = quiet
        """Set when nothing goes wrong any more, and only the last migrations' ends are waited for."""
        self.figures = Figures(under.name, len(nodes), len(under.streams))

    async def run(self, seconds: float, rng: Random) -> Figures:
        figures, begun = self.figures, time.monotonic()
        count = max(1, round(seconds / (ROUND_S * 1.25)))
        each_s = seconds / count
        try:
            for number in range(count):
                await self._round(f"r{number}", begun + each_s * (number + 0.8), rng)
            self._quiet.set()
            await self._judged()
        except TimeoutError:
            figures.violations.append(f"I15: it did not come to rest: {traceback.format_exc()}")
        figures.seconds = time.monotonic() - begun
        figures.indexes = await self._under.generation()
        figures.events, figures.ended = self._nemesis.events, self._nemesis.ended
        figures.violations += [f"I15: a deed could not be undone: {one}" for one in self._nemesis.broken]
        for node in self._nodes:
            count = node.logged().count(BUG)
            if count:
                figures.violations.append(f"I21: {node.name} logged {count} tracebacks; see {node.log}")
        return figures

    async def _round(self, name: str, until: float, rng: Random) -> None:
        load = self.load = Load(self._client, [node.name for node in self._nodes], name, AGENTS, rng)
        await load.begin()
        self._nemesis.begin()
        await asyncio.sleep(max(1.0, until - time.monotonic()))
        await self._nemesis.heal()
        healed = time.monotonic()
        await load.end()
        shown = await load.rest()
        await self._indexed(load)
        self.figures.rests.append(time.monotonic() - healed)
        await self._judged()
        self._before = Rested(load, shown)
        self.figures.rounds += 1
        events = sum(self._nemesis.events.values())
        _say(f"{self.figures.name}, round {name}: {events} events, {len(load.recording.calls)} calls, at rest after "
             f"{self.figures.rests[-1]:.1f} s, {len(self.figures.violations)} violations")  # fmt: skip

    async def _judged(self) -> None:
        """The round before: every migration has its end by now, or soon."""
        if self._before is None:
            return
        load, log = self._before.load, self._client.log
        everybody = [*load.recording.agents, *load.recording.kids]
        await self._settled(everybody)
        subjects = [log_subject(agent) for agent in everybody]
        for agent in everybody:  # their ends may have landed just now
            subjects += [journal_subject(agent, migration) for _, migration in await journal.listed(log, agent)]
            subjects += [inbox_subject(agent, priority) for priority in PRIORITIES]
        ends = [(subject, await log.last(subject)) for subject in subjects]
        async with asyncio.timeout(REST_S):
            topics = await log.topic_ends()
            await self._tape.reaches(((subject, end.seq) for subject, end in ends if end is not None), topics)
        check = Check(load.recording, TOKENS)
        await check.look(
            self._client.log, self._before.shown, self._tape.taken([*load.recording.agents, *load.recording.kids])
        )
        self._before = None
        await load.leave()
        self._add(load, check)

    async def _indexed(self, load: Load) -> None:
        """The index of owners names every agent again at the node that its log names.

        One that is lacking is no violation, since the index is only a hint, but it is counted; and making it anew must mend it.
        """
        missing = await self._missing(load, INDEX_S)
        for _ in range(MENDS):
            if not missing:
                return
            self.figures.lost += len(missing)
            await self._under.delete_index()
            missing = await self._missing(load, INDEX_S)
        if missing:
            load.found.append(
                f"I15: an index of owners that was made anew {MENDS} times does not name {sorted(missing)}"
            )

    async def _missing(self, load: Load, patience_s: float) -> set[str]:
        """Agents that the index does not name at their owners, once it names all or after this time."""
        log, missing = self._client.log, set(load.recording.agents)
        until = time.monotonic() + patience_s
        while missing and time.monotonic() < until:
            with contextlib.suppress(RetryError):
                lists = [await log.owned(node.name) for node in self._nodes]
                owned = {
                    (node.name, subject) for node, some in zip(self._nodes, lists, strict=True) for subject in some
                }
                loaded = [(agent, await load_agent(log, agent)) for agent in load.recording.agents]
                missing = {agent for agent, fold in loaded if (fold.owner, log_subject(agent)) not in owned}
            await asyncio.sleep(0.2)
        return missing

    async def _settled(self, agents: list[str]) -> None:
        """Returns when no journal is open, or when that has taken too long, which the check then tells."""
        until = time.monotonic() + REST_S
        while time.monotonic() < until:
            found = [one for agent in agents for one in (await journal.all_of(self._client.log, agent))[0]]
            if all(one.end is not None for one in found):
                return
            await asyncio.sleep(0.5)

    def _add(self, load: Load, check: Check) -> None:
        figures, recording = self.figures, load.recording
        figures.calls += len(recording.calls)
        figures.acknowledged += sum(timed.call.acked for timed in recording.calls)
        figures.reads += len(recording.reads)
        figures.errors += recording.errors + load.heard.errors
        figures.heard += Counter(
            {
                "shared reads": len(load.heard.glances), "streams": len(recording.recitals), "posts": load.posts,
                "streams restarted": sum(one.restarts for one in recording.recitals),
            }
        )  # fmt: skip
        figures.heard += load.talk.counts
        figures.landed += check.verdict.landed
        figures.migrations += Counter(f"reported {one.report.outcome}" for one in recording.reports)
        figures.migrations += Counter(f"attempts {outcome}" for outcome in check.verdict.outcomes.values())
        figures.outages += outages(recording.calls, WAITED_S)
        if load.found or check.verdict.violations:
            figures.violations += [f"{recording.agents[0]}..: {one}" for one in load.found + check.verdict.violations]


def _config(folder: Path) -> Path:
    folder.mkdir(parents=True)
    config = folder / "mielin.toml"
    config.write_text(CONFIG)
    return config


async def tortured(
    folder: Path, servers: int, nodes: int, shards: int, seconds: float, rng: Random, quiet: asyncio.Event
) -> Figures:
    """One set-up from its start to its figures.  `quiet` is set when the next may begin."""
    config = _config(folder)
    settings = Settings(migration_s=20.0, probation_s=4.0, ask_timeout_s=20.0)
    async with contextlib.AsyncExitStack() as stack:
        under = await stack.enter_async_context(store(folder, servers, shards))
        own = await stack.enter_async_context(proxied(*under.servers))
        client = await stack.enter_async_context(connected(Address(own.url), settings))
        links = {}
        processes = []
        for number in range(1, nodes + 1):
            name = f"node-{number}"
            links[name] = await stack.enter_async_context(proxied(*under.servers))
            processes.append(NodeProcess(folder, name, links[name].url, "--config", str(config)))

        async def claim(node: str) -> None:
            """An operator takes an agent to this node, whoever has it."""
            agents = setup.load.recording.agents if setup.load is not None else []
            with contextlib.suppress(CellError, TimeoutError):
                async with asyncio.timeout(5.0):
                    await client.claim(rng.choice(agents), to=node)

        async def leading() -> str:
            """The node that leads failover."""
            with contextlib.suppress(CellError, TimeoutError):
                async with asyncio.timeout(2.0):
                    return (await client.members.read()).leader[0]
            return ""

        nemesis = Nemesis(under, processes, links, rng, claim, leading, folder / "events.log")
        tape = Tape(await stack.enter_async_context(opened(own.url, replicas=under.replicas)))
        taping = asyncio.create_task(tape.run())
        setup = Setup(under, processes, nemesis, client, tape, quiet)
        try:
            await asyncio.gather(*(node.start() for node in processes))
            await asyncio.gather(*(node.serving() for node in processes))
            return await setup.run(seconds, rng)
        finally:
            taping.cancel()
            await asyncio.gather(taping, return_exceptions=True)
            await nemesis.close()


def _say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)


async def main(
    minutes: float, seed: int, folder: Path, setups: list[tuple[int, int, int]], record: Path | None, commit: str
) -> bool:
    """Prints the figures, and adds them to the record as one line.  True if nothing was violated."""
    works = []
    for servers, nodes, shards in setups:
        rng, quiet, place = Random(f"torture {seed} {servers}"), asyncio.Event(), folder / f"servers-{servers}"
        work = asyncio.create_task(tortured(place, servers, nodes, shards, minutes * 60 / len(setups), rng, quiet))
        works.append(work)
        await asyncio.wait((work, asyncio.create_task(quiet.wait())), return_when=asyncio.FIRST_COMPLETED)
    told = [figures.told() for figures in await asyncio.gather(*works)]
    total = {
        "commit": commit,
        "seed": seed,
        "kill_stop_cut_events": sum(one["kill_stop_cut_events"] for one in told),
        "violations": sum(len(one["violations"]) for one in told),
        "setups": told,
    }
    print(json.dumps(total, indent=2))
    if record is not None:
        with record.open("a") as file:
            file.write(json.dumps(total) + "\n")
    return not total["violations"]


def _commit() -> str:
    """What runs, if git can tell."""
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return found.stdout.strip()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="0: a new one, which is printed")
    parser.add_argument("--folder", type=Path, help="keep data and logs here")
    parser.add_argument("--only", choices=("single", "cluster"), help="one of the two set-ups")
    parser.add_argument("--shards", type=int, help="streams of logs (default: 1 on one server, 4 on the cluster)")
    parser.add_argument("--record", type=Path, help="add the figures to this file, as one line of JSON")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    chosen = [(1, 4, given.shards or 1), (3, 3, given.shards or 4)]
    if given.only is not None:
        chosen = [chosen[given.only == "cluster"]]
    place = given.folder or Path(tempfile.mkdtemp(prefix="torture-")) / "run"
    good = asyncio.run(main(given.minutes, given.seed or int(time.time()), place, chosen, given.record, _commit()))
    if good and given.folder is None:
        shutil.rmtree(place.parent)
    else:
        _say(f"data, logs and events are in {place}")
    sys.exit(0 if good else 1)
