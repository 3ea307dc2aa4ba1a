"""What `cells.local()` and `cells.connect()` return: `async with` opens the cluster, and any task may leave the block."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mielin_cells.agents.context import Caller, current
from mielin_cells.errors import UsageError
from mielin_cells.settings import Settings

if TYPE_CHECKING:
    from mielin_cells.agents.cluster import Cluster
    from mielin_cells.client.client import Client


def check_opening(settings: Any, recovery: Any = None, progress: Any = None) -> None:
    """Raises `UsageError` for an argument of a wrong type, which would otherwise fail later and elsewhere."""
    if settings is not None and not isinstance(settings, Settings):
        raise UsageError(f"settings must be a cells.Settings(...), not {settings!r}.")
    if recovery is not None and not hasattr(recovery, "validate"):
        raise UsageError(f"recovery must be a RecoveryConfig(...) of mielin_cells.migration, not {recovery!r}.")
    if progress is not None and not callable(progress):
        raise UsageError(f"progress must be callable with each event; {progress!r} is not.")


class Opening:
    """`async with` it.  A notebook may enter it in one cell and leave it in another: `await opening.__aenter__()`."""

    def __init__(self, what: str, make: Callable[[], AbstractAsyncContextManager[Client]]) -> None:
        self._what = what
        self._make = make
        self._inside: AbstractAsyncContextManager[Client] | None = None
        self._client: Client | None = None
        self._token: Token[Caller | None] | None = None

    async def __aenter__(self) -> Cluster:
        if self._inside is not None:
            raise UsageError(f"This {self._what} is open already; make another one for another block.")
        self._inside = self._make()
        try:
            self._client = await self._inside.__aenter__()
        except BaseException:
            self._inside = None
            raise
        self._client.opening = self
        self._token = current.set(self._client)
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        import asyncio  # half of what importing the package takes, and whoever comes here has it

        inside, client = self._inside, self._client
        if inside is None or client is None:
            return None
        if client.loop is not asyncio.get_running_loop():
            raise UsageError(
                f"This {self._what} was opened in another event loop and cannot be closed from here; leave the block in the loop "
                "that it was entered in, with asyncio.run_coroutine_threadsafe from another thread."
            )
        self._inside = self._client = client.opening = None
        self._forget(client)
        return await inside.__aexit__(kind, error, trace)

    def _forget(self, client: Client) -> None:
        """References without a cluster of their own no longer use this cluster."""
        try:
            if self._token is not None:
                current.reset(self._token)
        except ValueError:  # entered in another task, whose context is not this one's
            if current.get() is client:
                current.set(None)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{self._what} is not open, and has no {name!r}: write `async with {self._what} as cluster`, and use the cluster."
        )
