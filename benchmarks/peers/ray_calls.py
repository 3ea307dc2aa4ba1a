"""Ray on this machine: calls to an actor, and a move as its user does it by hand.

Ray keeps nothing of an actor.  Its user reads the state, kills the actor, creates another one elsewhere with that state, and
calls it.  Here "elsewhere" is a second Ray node on the same machine.
"""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from typing import Any

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # the switch by which Ray stays on the loopback
)

import ray
from ray.cluster_utils import Cluster

from benchmarks.peers.serve import serve


class Counter:
    def __init__(self, pad: bytes = b"", count: int = 0) -> None:
        self.pad = pad
        self.count = count

    def add(self, n: int) -> int:
        self.count += n
        return self.count

    def state(self) -> tuple[bytes, int]:
        return self.pad, self.count


class AsyncCounter(Counter):
    async def add(self, n: int) -> int:  # type: ignore[override]  # an actor with a coroutine runs an event loop
        self.count += n
        return self.count


LOOPBACK = "127.0.0.1"
STORE_BYTES = 512 * 2**20
node_args: dict[str, Any] = {"num_cpus": 2, "node_ip_address": LOOPBACK, "object_store_memory": STORE_BYTES}
cluster = Cluster(
    initialize_head=True, head_node_args={**node_args, "include_dashboard": False, "resources": {"a": 100}}
)
cluster.add_node(**node_args, resources={"b": 100})
cluster.wait_for_nodes()
ray.init(address=cluster.address, _node_ip_address=LOOPBACK, log_to_driver=False, configure_logging=False)
remotes = {False: ray.remote(Counter), True: ray.remote(AsyncCounter)}
kept: dict[tuple[bool, int], Any] = {}


def actor(is_async: bool, number: int) -> Any:
    if (is_async, number) not in kept:
        made = kept[is_async, number] = remotes[is_async].options(num_cpus=0).remote()
        ray.get(made.add.remote(0))
    return kept[is_async, number]


def pipelined(count: int, actors_used: int, is_async: bool, window: int) -> float:
    """Answers per second with up to `window` asks on their way."""
    actors = [actor(is_async, number) for number in range(actors_used)]
    before = sum(ray.get([one.add.remote(0) for one in actors]))
    at = time.perf_counter()
    for first in range(0, count, window):
        ray.get([actors[n % actors_used].add.remote(1) for n in range(first, min(first + window, count))])
    taken = time.perf_counter() - at
    assert sum(ray.get([one.add.remote(0) for one in actors])) == before + count
    return count / taken


def sequential(count: int, is_async: bool) -> list[float]:
    """Milliseconds of each ask."""
    one, times = actor(is_async, 0), []
    for _ in range(count):
        at = time.perf_counter()
        ray.get(one.add.remote(1))
        times.append((time.perf_counter() - at) * 1000)
    return times


def moves(size: int, count: int, is_warm: bool = True) -> dict[str, list[float]]:
    """Moves between the two nodes: milliseconds without an agent, and of the whole.

    The state is read with the last call that counts, so nothing is lost; from there to the new actor's first answer nobody
    answers.  `is_warm`: an idle worker process is waiting at the other node, as after an earlier actor there.
    """
    made, place, added, found = remotes[False], "a", 0, []
    one = made.options(num_cpus=0, resources={place: 1}).remote(b"x" * size)
    for _ in range(count):
        added = ray.get(one.add.remote(1))
        at = time.perf_counter()
        pad, counted = ray.get(one.state.remote())
        ray.kill(one)
        place = "b" if place == "a" else "a"
        one = made.options(num_cpus=0, resources={place: 1}).remote(pad, counted)
        assert ray.get(one.add.remote(1)) == added + 1
        found.append((time.perf_counter() - at) * 1000)
    ray.kill(one)
    return {"ms": found}


serve({"pipelined": pipelined, "sequential": sequential, "moves": moves}, {"ray": version("ray")})
ray.shutdown()
cluster.shutdown()
