"""An advisory lock on an open file, which the system gives free when the last process that holds the file ends."""

from __future__ import annotations

import os

if os.name == "nt":  # pragma: no cover
    import msvcrt

    def lock(descriptor: int) -> None:
        """Raises `OSError` if another process has the lock.  Byte 1024 is locked, so that others can read what is before."""
        os.lseek(descriptor, 1024, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
else:
    import fcntl

    def lock(descriptor: int) -> None:
        """Raises `OSError` if another process has the lock."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
