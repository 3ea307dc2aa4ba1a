"""`Retry`: how often a durable step calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mielin_cells.errors import ConfigError


def _out_of_range(field: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"Retry({field}={value!r}) is out of range ({wanted}).", field=field, range=wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a step makes its call, and how long it waits in between.  Raises `ConfigError`, naming field and range."""

    tries: int = 3
    """How many calls are made before the step fails."""
    first_s: float = 1.0
    """Seconds before the second call; each further wait is twice as long."""
    max_s: float = 30.0
    """The longest wait, in seconds."""
    on: tuple[type[Exception], ...] = (Exception,)
    """Exceptions after which the call is made again; any other one fails the step at once."""

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
