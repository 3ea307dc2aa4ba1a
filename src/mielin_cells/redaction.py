"""Addresses as they are shown: without what lets one in.  Pure."""

from __future__ import annotations

import re
from typing import Final

_LETS_IN: Final = re.compile(r"^(\w+://)?.*@", re.DOTALL)
_BEHIND: Final = re.compile(r"([?#]).*", re.DOTALL)
"""No server is named there, but it is where other systems take a password."""
_NO_PORT: Final = re.compile(r"^((?:\w+://)?[^:/?#\[\]]*:)(?!\d*(?:[/?#]|$)|//)[^/?#]*")
"""`user:secret`, whose host was forgotten."""
_IN_TEXT: Final = re.compile(r"(\w+://)(?:[^\s'\"<>]|['\"](?![\s,;:.)\]}]|$))*@")
"""A quote may be in a password; one with a separator behind it ends the address."""


_NEXT: Final = re.compile(r"\s*,\s*(?=\w+://)")
"""Between two addresses."""


def split_addresses(url: str) -> list[str]:
    """Each of the addresses that have commas between them.  A comma without a scheme behind it may be in a password."""
    return _NEXT.split(url)


def redacted(url: str) -> str:
    """The address without user, password or token, which may hold any character.  Nothing else shows an address."""
    return ",".join(_redacted(one) for one in split_addresses(url))


def _redacted(url: str) -> str:
    return _NO_PORT.sub(r"\1...", _BEHIND.sub(r"\1...", _LETS_IN.sub(r"\1", url)))


def scrubbed(text: str) -> str:
    """The text, with every address in it redacted."""
    return _IN_TEXT.sub(r"\1", text) if "://" in text else text
