"""The base of all requests."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

R_co = TypeVar("R_co", covariant=True)


class Request(msgspec.Struct, Generic[R_co], array_like=True, frozen=True, tag=True):
    """A request that a node answers with an `R_co`."""
