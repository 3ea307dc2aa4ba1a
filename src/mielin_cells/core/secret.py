"""Addresses as they are shown: without what lets one in.  Pure."""

from __future__ import annotations

import re
from typing import Final

_LETS_IN: Final = re.compile(r"^(\w+://)?.*@", re.DOTALL)
_IN_TEXT: Final = re.compile(r"(\w+://)[^\s'\"<>]*@")


def redacted(url: str) -> str:
    """The address without user, password or token, which may hold any character.  Nothing else shows an address."""
    return _LETS_IN.sub(r"\1", url)


def scrubbed(text: str) -> str:
    """The text, with every address in it redacted."""
    return _IN_TEXT.sub(r"\1", text) if "://" in text else text
