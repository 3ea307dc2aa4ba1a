"""Tokens of external waits: each names one wait of one input of an agent, and proves that the deployment has made it (rule T5)."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

import msgspec
from blake3 import blake3

from mielin_cells.errors import NoSuchWait
from mielin_cells.log.codec import UNREADABLE, pack

SECRET_BYTES = 32
PROOF_BYTES = 16
HEAD = "w1."
"""Begins each token: the first format."""
TOKEN_CHARS_MAX = 4096

OPENED = "\twait "
"""Begins the name of the `StepCall` that opens a wait; its result is the wait's deadline.  No step of an author has such a name."""
GIVEN = "\toutcome "
"""Begins the name of the `StepCall` that gives a wait's outcome to the handler."""


class WaitName(msgspec.Struct, array_like=True, frozen=True):
    """What tells one wait from all others: it is the same whenever the turn runs again, on whatever node."""

    agent: str
    sender: str
    """With `n`, the input whose turn makes the wait."""
    n: int
    start: int
    """Of the sender's session (`Mail.start`): it says whether a session that is not known was forgotten."""
    path: tuple[int, ...]
    """The branch of the turn."""
    name: str
    k: int
    """How many waits of this name the branch has made before."""

    @property
    def key(self) -> bytes:
        """By which records and ledgers know it."""
        return blake3(pack(self)).digest(16)


def token_of(secret: bytes, name: WaitName) -> str:
    data = pack(name)
    return HEAD + urlsafe_b64encode(blake3(data, key=secret).digest(PROOF_BYTES) + data).rstrip(b"=").decode()


def wait_of(token: str) -> WaitName:
    """The wait that a token names.  Whether the token is genuine shows when it is made again.  Raises `NoSuchWait`."""
    try:
        if type(token) is str and token.startswith(HEAD) and len(token) <= TOKEN_CHARS_MAX:
            text = token[len(HEAD) :].encode("ascii")
            data = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
            return _decode(data[PROOF_BYTES:])
    except (*UNREADABLE, ValueError):
        pass
    raise NoSuchWait("This is no token of a wait: it was cut or changed.  Copy the whole token; nothing was done.")


_decode = msgspec.msgpack.Decoder(WaitName).decode


def label_of(name: str) -> str:
    """A step of a turn, for people, by its name in the record."""
    if name.startswith(OPENED):
        return f"wait {name[len(OPENED) :]!r}"
    if name.startswith(GIVEN):
        return f"the outcome of wait {name[len(GIVEN) :]!r}"
    return f"step {name.strip()!r}"
