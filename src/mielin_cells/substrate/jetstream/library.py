"""The library's client, hardened against servers and clients that send what they should not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final

import nats
from nats.aio.client import Client

logger = logging.getLogger("mielin_cells.jetstream")

DROP_S: Final = 0.25


class Insecure(nats.errors.Error):
    """TLS was asked for, and the server does not have it."""


class LibraryClient(Client):
    """The library's client, hardened against malformed messages of others."""

    async def drop(self, seconds: float = DROP_S) -> None:
        """Closes the connection, also one that failed to open: the library leaves its socket open and its tasks running."""
        if self._flush_queue is not None:
            with contextlib.suppress(OSError, nats.errors.Error):
                async with asyncio.timeout(seconds):  # it waits for ever for the end of a TLS that did not begin
                    await self._close(Client.CLOSED, do_cbs=False)

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except BaseException as error:
            if self._transport is not None:
                # The library forgets it when it tries again.
                self._transport.close()  # type: ignore[no-untyped-call]  # it has no annotations
            is_nonsense = isinstance(error, (ValueError, LookupError, TypeError, AttributeError))
            if is_nonsense and not isinstance(error, OSError):  # a wrong certificate is both
                raise nats.errors.Error(f"it does not speak NATS: {error}") from error  # else it would not try again
            raise

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection:
            if not isinstance(info["version"], str) or not isinstance(info["max_payload"], int):
                raise TypeError("its greeting has values of other types")
            server = self._current_server
            wants_tls = "tls" in self.options or (server is not None and server.uri.scheme == "tls")
            if wants_tls and not info.get("tls_required"):  # else the library goes on without, and shows the password
                raise Insecure("it does not ask for TLS")
        await super()._process_info(info, initial_connection)

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        """The library looks at each character of each name, which is a tenth of what a load of an agent takes."""
        headers: dict[str, str] = {}
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            name, sign, value = line.partition(":")
            name = name.strip()
            if sign and name.isascii() and len(name.split()) == 1:
                headers[name] = value.strip()
        return headers

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        # An exception would end the reader, which is only replaced seconds later.
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except (ValueError, LookupError) as error:  # bytes that are no text, headers that are none
            logger.warning("A message on %r cannot be read and is dropped: %s.", subject, error)
