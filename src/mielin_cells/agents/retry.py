"""`Retry`: how often a durable step calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from mielin_cells.errors import ConfigError
from mielin_cells.settings import Delay, check_ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a step makes its call, and how long it waits in between.  Raises `ConfigError`, naming field and range.

    >>> calls = []
    >>> def charge(cents: int) -> str:
    ...     calls.append(cents)
    ...     if len(calls) < 3:
    ...         raise ConnectionError("the bank does not answer")
    ...     return f"receipt-{cents}"
    ...
    >>> class Order(cells.Agent):
    ...     @cells.handler
    ...     async def pay(self, cents: int) -> str:
    ...         retry = cells.Retry(tries=4, first_s=0.01, on=(OSError,))
    ...         return await cells.step("charge", charge, cents, retry=retry)
    ...
    >>> order = await cluster.spawn(Order, "order-1")
    >>> await order.pay(250), len(calls)
    ('receipt-250', 3)
    """

    tries: Annotated[int, msgspec.Meta(ge=1)] = 3
    """How many calls are made before the step fails."""
    first_s: Delay = 1.0
    """Seconds before the second call; each further wait is twice as long."""
    max_s: Delay = 30.0
    """The longest wait, in seconds."""
    on: tuple[type[Exception], ...] = (Exception,)
    """Exceptions after which the call is made again; any other one fails the step at once."""

    def __post_init__(self) -> None:
        check_ranges(self, "Retry({field}={value!r})")
        kinds: Any = self.on  # of a caller who is not type-checked it may be anything
        if type(kinds) is not tuple or not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
        ):
            wanted = "a tuple of exception classes, as (OSError, TimeoutError)"
            raise ConfigError(f"Retry(on={kinds!r}) is out of range ({wanted}).", field="on", range=wanted)

    def wait_s(self, tried: int) -> float:
        """Seconds before the next call, after `tried` of them."""
        return float(min(self.max_s, self.first_s * 2.0 ** min(tried - 1, 64)))
