"""Digests that each change updates, instead of hashing everything again: of numbered leaves, and of named contents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TypeAlias

from blake3 import blake3

DIGEST_BYTES = 32
FAN_OUT_BITS = 6
FAN_OUT = 1 << FAN_OUT_BITS
"""64 digests make a node of 2 KiB, which BLAKE3 hashes in about 2 us: three levels reach 262,144 leaves."""

_NONE = bytes(DIGEST_BYTES)  # an empty slot; BLAKE3 giving it for real content is as likely as any collision
_EMPTY_NODE = _NONE * FAN_OUT

_Nodes: TypeAlias = set[int]


class DigestTree:
    """Digest of a set of (index, digest) pairs; equal sets have equal roots, whatever the history.

    `set` costs a list assignment; `root` hashes again only the paths above leaves set since the last root.
    Empty parts take no memory.  The number of levels is the smallest that holds the largest index, so it depends on the
    set alone.
    """

    __slots__ = ("_dirty", "_levels", "_root")

    def __init__(self) -> None:
        self._levels: list[dict[int, list[bytes]]] = [{}]  # level 0: nodes whose slots are leaves
        self._dirty: _Nodes = set()  # nodes of level 0 changed since the last root
        self._root = _root_of(0, b"")

    def set(self, index: int, digest: bytes | None) -> None:
        """Puts a leaf of 32 bytes at `index`; None removes it."""
        if index < 0 or (digest is not None and len(digest) != DIGEST_BYTES):
            raise ValueError(f"leaf {index} needs an index from 0 and {DIGEST_BYTES} bytes")
        self._put(0, index, _NONE if digest is None else digest)
        self._dirty.add(index >> FAN_OUT_BITS)

    def root(self) -> bytes:
        """32 bytes over all leaves."""
        if self._dirty:
            dirty, self._dirty = self._dirty, set()
            level = 0
            while dirty:
                dirty = self._raise(level, dirty)
                level += 1
            self._shrink()
            top = self._levels[-1].get(0)
            self._root = _root_of(0, b"") if top is None else _root_of(len(self._levels), b"".join(top))
        return self._root

    def _put(self, level: int, index: int, digest: bytes) -> None:
        nodes = self._levels[level]
        slots = nodes.get(index >> FAN_OUT_BITS)
        if slots is None:
            slots = nodes[index >> FAN_OUT_BITS] = [_NONE] * FAN_OUT
        slots[index & (FAN_OUT - 1)] = digest

    def _raise(self, level: int, dirty: _Nodes) -> _Nodes:
        """Hashes the changed nodes of a level into the level above; returns what changed there."""
        nodes = self._levels[level]
        top = len(self._levels) == level + 1
        if top and any(nodes):  # a node other than 0: one more level, which node 0 has to enter too
            self._levels.append({})
            if 0 in nodes:
                dirty = dirty | {0}
            top = False
        changed: _Nodes = set()
        for node in dirty:
            joined = b"".join(nodes[node])
            if joined == _EMPTY_NODE:
                del nodes[node]
            if not top:
                self._put(level + 1, node, _NONE if joined == _EMPTY_NODE else blake3(joined).digest())
                changed.add(node >> FAN_OUT_BITS)
        return changed

    def _shrink(self) -> None:
        """Removes the levels that the largest index no longer needs."""
        levels = self._levels
        while len(levels) > 1 and not any(levels[-2]):
            levels.pop()


def _root_of(depth: int, joined: bytes) -> bytes:
    return blake3(bytes((depth,)) + joined).digest()


BUCKETS = 4096
"""Of named leaves: a change hashes the digests of its bucket again, 25 of 100,000."""


class NamedDigests:
    """Digest of a set of named contents; equal sets have equal roots, whatever the history.

    `changed` notes a name; what it holds is hashed when `some` or `root` comes to it, by `content`, which gives None for a name that
    is gone.
    """

    __slots__ = ("_buckets", "_changed", "_content", "_dirty", "_tree")

    def __init__(self, content: Callable[[str], bytes | None], names: Iterable[str]) -> None:
        self._content = content
        self._changed: dict[str, None] = dict.fromkeys(names)
        self._buckets: dict[int, dict[str, bytes]] = {}
        self._dirty: set[int] = set()
        self._tree = DigestTree()

    def changed(self, name: str) -> None:
        self._changed[name] = None

    @property
    def behind(self) -> int:
        """Names whose contents are not hashed yet."""
        return len(self._changed)

    def some(self, limit: int) -> bool:
        """Hashes up to `limit` of them, or of the buckets that they are in; True if there is more to hash."""
        names = list(islice(self._changed, limit))
        for name in names:
            del self._changed[name]
            self._hash(name)
        self._gather(limit - len(names))
        return bool(self._changed or self._dirty)

    def root(self) -> bytes:
        """32 bytes over all names and contents."""
        self.some(len(self._changed))
        self._gather(len(self._dirty))
        return self._tree.root()

    def _gather(self, limit: int) -> None:
        for number in list(islice(self._dirty, limit)):
            self._dirty.discard(number)
            bucket = self._buckets[number]
            if not bucket:
                del self._buckets[number]
            self._tree.set(number, blake3(b"".join(sorted(bucket.values()))).digest() if bucket else None)

    def _hash(self, name: str) -> None:
        data, content = name.encode(), self._content(name)
        number = int.from_bytes(blake3(data).digest(2), "little") % BUCKETS
        bucket = self._buckets.setdefault(number, {})
        self._dirty.add(number)
        if content is None:
            bucket.pop(name, None)
        else:
            bucket[name] = blake3(len(data).to_bytes(8, "little") + data + content).digest()
