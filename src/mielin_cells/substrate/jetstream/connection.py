"""One connection to a NATS server as the rest uses it.  It and `library` alone import nats.

Requests have one answer or a batch, listeners need no task each, and a lost connection is opened again for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import ssl
from collections.abc import Callable
from typing import Any, Final

import nats
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mielin_cells.errors import (
    AuthFailed,
    CellError,
    ConfigError,
    MessageTooLarge,
    PermissionDenied,
    StoreUnreachable,
)
from mielin_cells.redaction import redacted, scrubbed
from mielin_cells.substrate.jetstream import api
from mielin_cells.substrate.jetstream.address import is_unknown_host, servers_of
from mielin_cells.substrate.jetstream.api import Unanswered
from mielin_cells.substrate.jetstream.heard import Heard, Waiters
from mielin_cells.substrate.jetstream.library import Insecure, LibraryClient

logger = logging.getLogger("mielin_cells.jetstream")

CONNECT_S: Final = 5.0
RECONNECT_S: Final = 0.25
"""Between two tries; for ever."""
PING_S: Final = 2.0
PINGS: Final = 2
"""A silent server counts as lost after three of these intervals."""
_OPTIONS: Final[dict[str, Any]] = {
    "name": "mielin-cells",
    "connect_timeout": CONNECT_S,
    "reconnect_time_wait": RECONNECT_S,
    "max_reconnect_attempts": -1,
    "ping_interval": PING_S,
    "max_outstanding_pings": PINGS,
    "pending_size": 0,  # nothing is kept back while disconnected and sent later
    "skip_subject_validation": True,  # ours are made of checked words
}


class Listener(Subscription):
    """A subscription without a queue and a task: what comes is passed on from within the connection's reader.

    The library's own costs over 3 KiB and a turn of the event loop for each message.  Only `_id`, `_subject` and the sink
    differ between listeners; the rest of what the library looks at is the same for all.
    """

    _queue = ""
    _max_msgs = 0
    _received = 0
    _cb = None
    _future = None
    _closed = False
    _jsi = None
    _pending_size = 0
    _pending_bytes_limit = 0
    _pending_next_msgs_calls: Any = None
    _wait_for_msgs_task = None
    _message_iterator = None

    def __init__(self, connection: Connection, subject: str, receive: Callable[[Heard], None]) -> None:
        self._connection = connection
        self._subject = subject
        self._receive = receive
        self._id = 0

    @property
    def _pending_queue(self) -> Listener:  # type: ignore[override]
        return self

    def put_nowait(self, msg: Msg) -> None:
        try:
            self._receive(Heard(msg))
        except Exception:
            logger.exception("A listener on %r raised; the others still get their messages.", self._subject)

    def close(self) -> None:
        """No message is passed on after it.  Repeating it is harmless."""
        self._connection.silence(self)


class Connection:
    """One connection to a server.  A request that was sent and lost its connection is `Unanswered`, never sent again."""

    def __init__(self, url: str, options: dict[str, Any], domain: str | None = None) -> None:
        self.url = redacted(url)
        self.api = f"$JS.{domain}.API." if domain else "$JS.API."
        """What stands before all subjects of JetStream's API."""
        self._servers, credential = servers_of(url)
        self._options = {**options, **credential, **_OPTIONS}
        self.back: Callable[[], None] | None = None
        """Called after a reconnect: messages sent meanwhile were missed."""
        self._nc = LibraryClient()
        self._waiters = Waiters()
        self._inbox = f"{api.INBOX}{secrets.token_hex(11)}."
        self._listeners: set[Listener] = set()
        self._is_closing = False
        self._reopening: asyncio.Task[None] | None = None
        self._cause: Exception | None = None
        """What the library reported last: for a server that cannot be reached it only raises that there is none."""
        self._deaf: PermissionDenied | None = None
        """The server does not let this user hear answers: then nothing is asked."""
        self.listen(self._inbox + "*", self._waiters.answer)

    # ---- life ------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Raises a named error if no server can be used.  Of several each is the first to be tried once, beginning with any."""
        self._deaf = None
        servers = random.sample(self._servers, len(self._servers))
        for _ in servers[1:]:
            with contextlib.suppress(StoreUnreachable):
                await self._open(servers)
                return
            servers.append(servers.pop(0))
        await self._open(servers)

    async def _open(self, servers: list[str]) -> None:
        """At the first of these that takes a connection; what it then says is not tried again elsewhere."""
        nc = LibraryClient()
        try:
            await nc.connect(
                servers=servers,
                dont_randomize=True,
                # For this try alone: the caller decides about the next.  "For ever" would hold for it, too.
                **{**self._options, "max_reconnect_attempts": 1},
                allow_reconnect=False,
                error_cb=self._failed,
                disconnected_cb=self._disconnected,
                reconnected_cb=self._reconnected,
                closed_cb=self._closed,
            )
        except nats.errors.NoServersError as error:
            await nc.drop()
            raise self._refused(self._cause or error) from error
        except Exception as error:  # the library raises its own, the operating system's and ssl's
            await nc.drop()
            raise self._refused(error) from error
        except BaseException:
            await nc.drop()
            raise
        nc.options.update(
            allow_reconnect=True,
            dont_randomize=False,
            max_reconnect_attempts=self._options["max_reconnect_attempts"],
        )
        self._nc = nc
        for listener in self._listeners:
            self._register(listener)

    def _refused(self, error: Exception) -> CellError:
        text = scrubbed(str(error)) or type(error).__name__
        if isinstance(error, nats.errors.AuthorizationError) or "uthorization" in text or "uthentication" in text:
            return AuthFailed(
                f"The server {self.url} refuses this user ({text}); check the credential in the URL, or --creds.",
                url=self.url,
            )
        if isinstance(error, Insecure):
            return AuthFailed(
                f"The server {self.url} does not use TLS ({text}), and nothing was shown to it; enable TLS there, or leave "
                "out --tls-ca and use nats:// in the URL.",
                url=self.url,
            )
        if isinstance(error, ssl.SSLError):
            return AuthFailed(
                f"The server {self.url} and this client do not trust each other ({text}); give --tls-ca its certificate.",
                url=self.url,
            )
        if isinstance(error, ImportError):
            return ConfigError(
                f"A credentials file needs the package nkeys ({text}); `pip install nkeys`.",
                field="creds",
                range="nkeys",
            )
        return StoreUnreachable(
            f"The server {self.url} does not answer ({text}); start it, or name another with --connect URL.",
            url=self.url, host_unknown=is_unknown_host(error),
        )  # fmt: skip

    async def close(self) -> None:
        self._is_closing = True
        if self._reopening is not None:
            self._reopening.cancel()
            await asyncio.wait((self._reopening,), timeout=CONNECT_S)
        await self._nc.drop(CONNECT_S)
        self._waiters.lose("the connection was closed")

    @property
    def version(self) -> str:
        return str(self._nc._server_info["version"])

    @property
    def payload_max(self) -> int:
        return int(self._nc.max_payload)

    @property
    def in_cluster(self) -> bool:
        return bool(self._nc._server_info.get("cluster"))

    @property
    def servers(self) -> int:
        """Of the cluster, as far as it tells of them."""
        return len(self._nc._server_info.get("connect_urls") or ()) or 1

    def check(self) -> None:
        """Raises `StoreUnreachable` once this connection is closed, `PermissionDenied` if it cannot hear any answer."""
        if self._is_closing:
            raise StoreUnreachable(f"The connection to {self.url} is closed; open it again.", url=self.url)
        if self._deaf is not None:
            raise _copy_of(self._deaf)

    # ---- sending ---------------------------------------------------------------------------------------------

    async def send(self, subject: str, data: bytes, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Raises `StoreUnreachable` or `MessageTooLarge`: then it was not sent, and will not be."""
        self.check()
        try:
            await self._nc.publish(subject, data, reply, headers)
        except nats.errors.MaxPayloadError:
            raise MessageTooLarge(
                f"A message of {len(data)} bytes is above the server's limit of {self.payload_max}; it was not sent.",
                limit=self.payload_max, size=len(data),
            ) from None  # fmt: skip
        except (nats.errors.Error, OSError) as error:
            cause = error if self._nc.is_connected else self._cause  # else the library says that its buffer is full
            why = f" ({cause})" if cause is not None else ""
            raise StoreUnreachable(
                f"The server {self.url} is not connected now{why}; nothing was sent. It reconnects by itself.",
                url=self.url,
            ) from None

    async def call(self, subject: str, data: bytes, timeout: float, headers: dict[str, str] | None = None) -> Heard:
        """One answer.  Raises `Unanswered` after `timeout` seconds or when the connection is lost; `PermissionDenied`."""
        heard: Heard = await self._ask(subject, data, timeout, headers, None)
        return heard

    async def collect(self, subject: str, data: bytes, timeout: float) -> list[Heard]:
        """All messages of one answer, up to and with the one that has a status.  Raises as `call`."""
        heard: list[Heard] = await self._ask(subject, data, timeout, None, [])
        return heard

    async def _ask(
        self, subject: str, data: bytes, timeout: float, headers: dict[str, str] | None, batch: list[Heard] | None
    ) -> Any:
        waiter = self._waiters.add(subject, batch)
        late = Unanswered(f"no answer within {timeout:g} s")
        timer = asyncio.get_running_loop().call_later(timeout, waiter.fail, late)
        try:
            await self.send(subject, data, self._inbox + waiter.token, headers)
            return await waiter.future
        finally:
            timer.cancel()
            self._waiters.remove(waiter)

    # ---- listening -------------------------------------------------------------------------------------------

    def listen(self, subject: str, receive: Callable[[Heard], None], most: int = 0) -> Listener:
        """Calls `receive` with each message, from now on.  What this connection sends later, the server sees later.

        `most`: the server sends no more of them than this (after a reconnect it does, until the listener is closed).
        """
        listener = Listener(self, subject, receive)
        self._listeners.add(listener)
        self._register(listener)
        if most:
            self._command(f"UNSUB {listener._id} {most}\r\n")
        return listener

    def silence(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners.discard(listener)
            if self._nc._subs.pop(listener._id, None) is not None:
                self._command(f"UNSUB {listener._id}\r\n")

    def _register(self, listener: Listener) -> None:
        nc = self._nc
        nc._sid += 1
        listener._id = nc._sid
        nc._subs[listener._id] = listener  # the library subscribes again by this when it has reconnected
        self._command(f"SUB {listener._subject}  {listener._id}\r\n")

    def _command(self, line: str) -> None:
        """Writes a line in its order among what is published: a read that follows sees the subscription made."""
        nc = self._nc
        if not nc.is_connected:
            return
        data = line.encode()
        nc._pending.append(data)
        nc._pending_data_size += len(data)
        if nc._flush_queue is not None and nc._flush_queue.empty():
            nc._flush_queue.put_nowait(asyncio.get_running_loop().create_future())

    # ---- what the library tells ------------------------------------------------------------------------------

    async def _failed(self, error: Exception) -> None:
        self._cause = error
        refused = api.forbidden(str(error))
        if refused is None:
            logger.debug("connection to %s: %r", self.url, error)
            return
        action, lowered = refused
        ours = self._waiters.all() if action == api.PUBLISH else self._listeners
        names = {one.subject for one in ours if one.subject.lower() == lowered}
        # The library tells it in small letters: of two that differ in nothing else, it may be either.
        subject = names.pop() if len(names) == 1 else lowered
        refusal = api.denied(action, subject)
        logger.warning("%s", refusal)
        if action != api.PUBLISH:
            if subject == self._inbox + "*":
                self._deaf = refusal
                self._waiters.lose(str(refusal))
            return
        for waiter in self._waiters.all():
            if waiter.subject == subject:
                waiter.fail(_copy_of(refusal))

    async def _disconnected(self) -> None:
        self._deaf = None
        if not self._is_closing:
            logger.warning("The connection to %s is lost; reconnecting until it succeeds.", self.url)
        self._waiters.lose("the connection was lost")

    async def _reconnected(self) -> None:
        self._cause = None
        logger.warning("Connected to %s again.", self.url)
        if self.back is not None:
            self.back()

    async def _closed(self) -> None:
        """Keeps reconnecting after errors on which the library gives up."""
        if not self._is_closing and self._reopening is None:
            found = [uri.geturl() for uri in self._nc.discovered_servers]
            self._servers += [server for server in found if server not in self._servers]
            self._reopening = asyncio.get_running_loop().create_task(self._reopen())

    async def _reopen(self) -> None:
        said = ""
        while not self._is_closing:
            try:
                await self.open()
                break
            except CellError as error:
                if str(error) != said:
                    said = str(error)
                    logger.warning("%s", error)
                await asyncio.sleep(RECONNECT_S)
        self._reopening = None
        await self._reconnected()


def _copy_of(error: PermissionDenied) -> PermissionDenied:
    """One for each that waits: an exception keeps the traceback of where it was raised."""
    return PermissionDenied(error.message, **error.facts)
