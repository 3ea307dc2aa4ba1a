"""`cells.local`: a whole deployment in this process, on the embedded substrate."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Literal

from mielin_cells.agents.reference import classes, policies_of, versions_of
from mielin_cells.client.opening import Opening, check_opening
from mielin_cells.errors import ConfigError, UsageError
from mielin_cells.settings import Settings

if TYPE_CHECKING:
    from mielin_cells.client.client import Client
    from mielin_cells.migration.progress import ProgressCallback
    from mielin_cells.migration.recovery import RecoveryConfig
    from mielin_cells.node.node import Node
    from mielin_cells.substrate.health import Facts
    from mielin_cells.substrate.ports import Substrate

LOCAL_S = 1.0
"""A deployment in this process measures the machine once it has lasted for so long: most of them are there for a moment only."""

NODES_MAX = 64
"""The nodes of one process share its event loop; more of them show nothing new."""


async def inspect(path: str | os.PathLike[str]) -> Facts:
    """What a store's file says of itself, for `mielin doctor`.  Creates nothing."""
    from mielin_cells.substrate.embedded import Embedded

    return await Embedded.inspected(path)


def local(
    nodes: int = 1,
    path: str | os.PathLike[str] | None = None,
    *,
    settings: Settings | None = None,
    recovery: RecoveryConfig | None = None,
    progress: ProgressCallback | None = None,
    sync: Literal["process", "power"] = "process",
    substrate: Substrate | None = None,
) -> Opening:
    """A cluster of `nodes` nodes, `node-1` to `node-N`, in this process, on SQLite in memory or in the file `path`.

    With a path, the next `local` on the same file has the agents again, with every acknowledged effect, also after `kill -9`, and with
    `sync="power"` after a power cut.  Its nodes take over the agents of nodes that no longer exist.  In memory, agents end with the
    block.  Leaving the block takes at most three times `pause_s`, also on a full disk; nothing acknowledged is lost.
    `recovery`: how failed moves are retried (default: 3 retries, the first after 10 s).  `progress` is called with each event of each
    migration.  `substrate`: nodes run on this one, as long as the block lasts; it is closed then.

    Raises `StoreInUse` if another process has the file open, `StoreIncompatible` if another version wrote it, `StoreCorrupt`,
    `StoreReadOnly`, `StoreFull`, `ConfigError`.

        >>> async with cells.local(nodes=2, path="till.db") as deployment:
        ...     shop = await deployment.spawn(Till, "shop")
        ...     await shop.sell(250)
        ...
        250
        >>> async with cells.local(path="till.db") as deployment:  # later, or after a crash
        ...     await deployment.get(Till, "shop").sell(50)
        ...
        300
    """
    if type(nodes) is not int or not 1 <= nodes <= NODES_MAX:
        raise ConfigError(
            f"nodes = {nodes!r} is out of range (1 to {NODES_MAX}).", field="nodes", range=f"1 to {NODES_MAX}"
        )
    check_opening(settings, recovery, progress)
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise UsageError(f"path is {path!r}; wanted: the store's file, as text or a Path.")
    if path is not None and substrate is not None:
        raise UsageError(
            "path and substrate were both given; a substrate of your own decides itself where it keeps its data."
        )
    return Opening("cells.local()", lambda: _opened(nodes, path, settings, recovery, progress, sync, substrate))


async def _take_what_is_left(client: Client, names: list[str]) -> None:
    """Takes over agents of nodes that this process does not have; no other process can have them."""
    from mielin_cells.membership.takeover import Takeover

    table = await client.members.read_to_end()
    gone = table.members.keys() - set(names)
    if gone:
        nodes = [info for info in table.infos() if info.name not in gone]
        takeover = Takeover(client.log, client.wire, time.monotonic)
        await takeover.take(gone, table.members, nodes, on_order=True, force=True)


@asynccontextmanager
async def _opened(
    nodes: int, path: str | os.PathLike[str] | None, settings: Settings | None, recovery: RecoveryConfig | None,
    progress: ProgressCallback | None, sync: Literal["process", "power"], given: Substrate | None,
) -> AsyncIterator[Client]:  # fmt: skip
    # Imported late: it would double the time of `import mielin_cells`, and the command line never needs it.
    import asyncio

    from mielin_cells.client.client import Client
    from mielin_cells.deployment.facts.measuring import Measuring, installed_sensors
    from mielin_cells.membership.announcement import Announcement
    from mielin_cells.node.moves.admission import room_of
    from mielin_cells.node.node import Node
    from mielin_cells.substrate.embedded import Embedded

    substrate = await Embedded.open(path, sync=sync) if given is None else given
    rng = Random()
    client = Client(substrate.log, substrate.wire, settings=settings, rng=rng)
    file = substrate.path if isinstance(substrate, Embedded) else None
    running: list[Node] = []
    measuring = Measuring(installed_sensors, every_s=client.settings.facts_s, disk=os.path.dirname(path or "") or ".")
    measuring.start(LOCAL_S)
    try:
        await client.open()
        for number in range(1, nodes + 1):
            about = Announcement(
                classes=versions_of(classes), policies=policies_of(classes), architecture=platform.machine(), at=time.time()
            )  # fmt: skip
            node = Node(
                f"node-{number}", substrate.log, substrate.wire, classes.get, settings=settings, rng=rng, wall=time.time,
                about=about, room=room_of(file), waits_for_room=False, recovery=recovery,
                cluster=client, measure=measuring.facts,
            )  # fmt: skip
            if progress is not None:
                node.migrations.watchers.add(progress)
            running.append(node)
            await node.start()
        await _take_what_is_left(client, [node.name for node in running])
        yield client
    finally:
        measuring.stop()
        until = asyncio.get_running_loop().time() + 2 * client.settings.pause_s
        for node in running:
            await node.stop(until=until)
        await client.close()
        await substrate.close()
