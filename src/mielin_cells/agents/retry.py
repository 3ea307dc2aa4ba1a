"""`Retry`: how often a durable step calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mielin_cells.errors import ConfigError


def _out_of_range(field: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"Retry({field}={value!r}) is out of range ({wanted}).", field=field, range=wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a step calls, and how long it waits in between.  Raises `ConfigError` for what cannot be."""

    tries: int = 3
    """Calls before the step has failed."""
    first_s: float = 1.0
    """Wait before the second call; doubles each time."""
    max_s: float = 30.0
    """The longest wait."""
    on: tuple[type[Exception], ...] = (Exception,)
    """What is worth another call; anything else fails the step at once."""

    def __post_init__(self) -> None:
        tries: Any = self.tries  # of a caller who is not type-checked each may be anything
        if type(tries) is not int or tries < 1:
            raise _out_of_range("tries", tries, "a whole number from 1")
        for name, seconds in (("first_s", self.first_s), ("max_s", self.max_s)):
            if type(seconds) not in (int, float) or not 0 <= seconds <= 1e9:
                raise _out_of_range(name, seconds, "0 to 1e+09 seconds")
        kinds: Any = self.on
        if type(kinds) is not tuple or not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
        ):
            raise _out_of_range("on", kinds, "a tuple of exception classes, as (OSError, TimeoutError)")

    def wait_s(self, tried: int) -> float:
        """Seconds before the next call, after `tried` of them."""
        return float(min(self.max_s, self.first_s * 2.0 ** min(tried - 1, 64)))
