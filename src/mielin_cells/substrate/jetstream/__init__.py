"""The substrate on NATS JetStream, for several processes or hosts."""

from __future__ import annotations

import os
from typing import Final, TypeAlias

from mielin_cells.substrate.health import Facts
from mielin_cells.substrate.jetstream.address import check_domain, check_url, options_of
from mielin_cells.substrate.jetstream.connection import Connection
from mielin_cells.substrate.jetstream.health import facts, mend_index
from mielin_cells.substrate.jetstream.log import JetLog
from mielin_cells.substrate.jetstream.streams import (
    Layout,
    StreamOptions,
    check_options,
    check_server,
    streams,
    with_replicas,
)
from mielin_cells.substrate.jetstream.wire import JetWire

DEPLOYMENT: Final = "mielin"

SHARDS_IF_SYNCED: Final = 4
"""The server syncs a stream's file after each write to it, one write after the other, and those of several streams at the same time.
Writes that are not synced gain nothing, and a power cut may remove more of them from one stream than from another.
"""


Path: TypeAlias = str | os.PathLike[str]


async def _opened(
    url: str, creds: Path | None, tls_ca: Path | None, domain: str | None, deployment: str, options: StreamOptions
) -> Connection:
    check_options(deployment, options)
    connection = Connection(check_url(url), options_of(creds, tls_ca), check_domain(domain))
    try:
        await connection.open()
    except BaseException:
        await connection.close()
        raise
    return connection


class JetStream:
    """`Substrate` on a NATS server.  `JetStream.open(url)` is the only way to make one."""

    def __init__(self, connection: Connection, log: JetLog, wire: JetWire, sync: str, layout: Layout) -> None:
        self._connection = connection
        self.log = log
        self.wire = wire
        self.sync = sync
        self.shards, self.replicas, _ = layout

    @property
    def server_version(self) -> str:
        return self._connection.version

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        creds: Path | None = None,
        tls_ca: Path | None = None,
        deployment: str = DEPLOYMENT,
        shards: int | None = None,
        replicas: int | None = None,
        makes: bool = True,
        sync: str = "process",
        domain: str | None = None,
        placement_tags: tuple[str, ...] = (),
    ) -> JetStream:
        """Connects, and creates the deployment's streams if they are missing and `makes` is true.

        `shards`: the streams that logs and inboxes are spread over, fixed when the deployment is created; the default is 4 if
        `sync` says that the server syncs each write ("power"), else 1.  `replicas`: copies of each stream (default: 3 on a cluster
        of at least 3 servers, else 1).  `placement_tags`: only servers that have all of these keep the streams (default: those of the
        cluster that is connected to).  Values other than the deployment's own are refused.

        `domain`: the JetStream domain of the servers that have the streams, if the URL is that of a leaf server.

        Raises `StoreUnreachable`, `AuthFailed`, `JetStreamDisabled`, `ServerTooOld`,
        `PermissionDenied`, `ConfigError`, `NotConnected`, `StreamMissing`, `QuotaExceeded`.
        """
        options = StreamOptions(shards, replicas, makes, SHARDS_IF_SYNCED if sync == "power" else 1, placement_tags)
        connection = await _opened(url, creds, tls_ca, domain, deployment, options)
        try:
            check_server(connection)
            layout = await streams(connection, deployment, options)
        except BaseException:
            await connection.close()
            raise
        log = JetLog(connection, deployment, layout.shards, layout.is_clustered)
        connection.back = log.reconnected
        return cls(connection, log, JetWire(connection, deployment), sync, layout)

    @classmethod
    async def inspected(
        cls,
        url: str,
        *,
        creds: Path | None = None,
        tls_ca: Path | None = None,
        deployment: str = DEPLOYMENT,
        sync: str = "",
        named_by: str = "",
        domain: str | None = None,
    ) -> Facts:
        """What the server says of itself and of the deployment's streams; makes nothing.  Raises as `open`."""
        connection = await _opened(url, creds, tls_ca, domain, deployment, StreamOptions())
        try:
            return await facts(connection, deployment, sync, named_by)
        finally:
            await connection.close()

    @classmethod
    async def replicated(
        cls,
        url: str,
        *,
        creds: Path | None = None,
        tls_ca: Path | None = None,
        deployment: str = DEPLOYMENT,
        replicas: int | None = None,
        domain: str | None = None,
    ) -> dict[str, tuple[int, int]]:
        """Changes how many copies the servers keep (default: as for a new deployment); before and after, by changed stream.

        Also makes the index of owners anew if it has lost agents: its copies are the same before and after.

        Returns when the servers have accepted the change; new copies are filled after that.  Raises as `open`.
        """
        connection = await _opened(url, creds, tls_ca, domain, deployment, StreamOptions(replicas=replicas))
        try:
            changed = await with_replicas(connection, deployment, replicas)
            mended = await mend_index(connection, deployment)
            return changed | ({mended.name: (mended.copies, mended.copies)} if mended.lost else {})
        finally:
            await connection.close()

    async def close(self) -> None:
        self.wire.close()
        self.log.close()
        await self._connection.close()
