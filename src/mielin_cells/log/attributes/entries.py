"""The entries of attributes: one subject for each agent, of which only the last entry counts.

Each is appended behind the last one that its writer knows, and has a number that the agent's state gives (`Attributes.n`).  So an
owner that lost the agent cannot put an older value behind a newer one.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from mielin_cells.errors import RecordInvalid
from mielin_cells.log.attributes.values import Value
from mielin_cells.log.codec import Codec, framed, pack
from mielin_cells.log.ids import ATTRIBUTES, attributes_subject


class Listing(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is known of an agent's attributes beside its log."""

    agent: str
    cls: str
    n: int
    """As in the agent's state (`Attributes.n`)."""
    revision: int
    """The agent's log had come to this position when it was written, and these were the attributes there."""
    at: float
    """When it was written, in wall seconds by its writer's clock; for people."""
    values: dict[str, Value]
    has_ended: bool = False


PATTERN = f"{ATTRIBUTES}*"
"""All subjects of attributes."""

_listings = Codec[Listing](Listing, "listing of attributes")


def encode_listing(listing: Listing) -> bytes:
    return framed(pack(listing))


def decode_listing(data: bytes, subject: str) -> Listing:
    """Raises `RecordInvalid`, also for an entry of another agent."""
    listing = _listings.decode_framed(data, subject)
    if attributes_subject(listing.agent) != subject:
        raise RecordInvalid(f"{subject} holds the attributes of agent {listing.agent!r}.", subject=subject)
    return listing


class Place(NamedTuple):
    """The last entry of an agent's subject: its sequence (0: none), and what it says."""

    seq: int
    listing: Listing | None

    def lacks(self, wanted: Listing) -> bool:
        """True if `wanted` is to be written behind it.

        Numbers decide.  Two of one number are the same, unless the store has lost what the agent's log had: then the owner's counts.
        """
        there = self.listing
        return there is None or there.n < wanted.n or (there.n == wanted.n and there.values != wanted.values)
