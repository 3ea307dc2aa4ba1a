"""Paglets: two hosts on the loopback, and an object that is dispatched from one to the other.

Its state travels in one envelope over HTTP while nobody answers; a process is started for it at the other host.  Mesh and
discovery are off.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paglets.core.agent import Paglet, PagletState
from paglets.core.messages import Message
from paglets.runtime.host import Host

from benchmarks.peers.serve import serve


@dataclass
class CounterState(PagletState):
    pad: bytes = b""
    count: int = 0


class CounterPaglet(Paglet):
    State = CounterState

    def handle_message(self, message: Any) -> Any:
        if message.kind == "add":
            self.state.count += int(message.args["n"])
            return {"count": self.state.count}
        return self.not_handled()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        hosts = [
            Host(
                name, "127.0.0.1", 0, mesh=False, mesh_multicast=False, mesh_lan_discovery=False,
                persistence_dir=Path(folder) / name,
            )
            for name in ("alpha", "beta")
        ]  # fmt: skip
        for host in hosts:
            host.start_background()

        def moves(size: int, count: int) -> dict[str, list[float]]:
            """Milliseconds from the order to the first answer at the other host."""
            proxy = hosts[0].create(CounterPaglet, CounterState(pad=b"x" * size))
            found, asked = [], 0
            for number in range(count):
                asked += 1
                assert proxy.send(Message("add", {"n": 1}))["count"] == asked
                at = time.perf_counter()
                proxy = proxy.dispatch(hosts[(number + 1) % 2].address)
                asked += 1
                assert proxy.send(Message("add", {"n": 1}))["count"] == asked
                found.append((time.perf_counter() - at) * 1000)
            proxy.dispose()
            return {"ms": found}

        def sequential(count: int) -> list[float]:
            """Milliseconds of each ask."""
            proxy, found = hosts[0].create(CounterPaglet, CounterState()), []
            for number in range(count):
                at = time.perf_counter()
                assert proxy.send(Message("add", {"n": 1}))["count"] == number + 1
                found.append((time.perf_counter() - at) * 1000)
            proxy.dispose()
            return found

        serve({"moves": moves, "sequential": sequential}, {"paglets": version("paglets")})
        for host in hosts:
            host.shutdown()


if __name__ == "__main__":
    # A paglet's class must have a module that the children, which it runs in, can import: this one, by its name.
    importlib.import_module("benchmarks.peers.paglets_moves").main()
