"""The place of a store's file, and the lock and the note beside it that keep other processes out."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final, NamedTuple

from mielin_cells.errors import ConfigError, StoreInUse, StoreReadOnly
from mielin_cells.substrate.lock import lock

READ_ONLY: Final = "cannot be written; nothing was changed. Check owner and mode of the file and its directory"


def check_place(path: str) -> None:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise ConfigError(
            f"The store {path!r} cannot be made: there is no directory {folder!r}. Create it, or name another path.",
            field="path", range="a file in a directory that exists",
        )  # fmt: skip
    if os.path.isdir(path):
        raise ConfigError(
            f"The store {path!r} is a directory; name a file in it.", field="path", range="a file, not a directory"
        )


def check_writable(path: str) -> None:
    """Under the lock, before SQLite sees the file: it would open a read-only one, and leave files beside it."""
    try:
        if os.path.exists(path):
            os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        raise StoreReadOnly(f"The store {path!r} {READ_ONLY} ({error.strerror}).", path=path) from error


def has_bytes(path: str) -> bool:
    return os.path.exists(path) and os.path.getsize(path) > 0


class Note(NamedTuple):
    """What the process that opened a store's file last has left beside it."""

    process: str
    store: str
    seq: int
    sync: str


def read_note(path: str) -> Note:
    """Empty where there is no note."""
    try:
        with open(path + ".lock", encoding="utf-8") as file:
            words = [*file.read(200).split(), "", "", "", ""]
    except (OSError, UnicodeDecodeError):
        return Note("", "", 0, "")
    return Note(words[0], words[1], int(words[2]) if words[2].isdecimal() else 0, words[3])


class FileLock:
    """An advisory lock on `<path>.lock`, which the system gives free when the process ends, however it ends.

    The file stays: removing it would let two processes lock two files of one name.
    """

    def __init__(self, path: str) -> None:
        try:
            self._descriptor = os.open(path + ".lock", os.O_RDWR | os.O_CREAT, 0o666)  # held until `release`
        except OSError as error:
            raise StoreReadOnly(
                f"The store {path!r} cannot be opened: its lock file {path + '.lock'!r} cannot be written "
                f"({error.strerror}). Check owner and mode of the directory.",
                path=path,
            ) from error
        try:
            lock(self._descriptor)
        except OSError as error:
            self.release()
            process = read_note(path).process or "unknown"
            raise StoreInUse(
                f"The store {path!r} is open in another place (process {process}); only one process may use it "
                "at a time. Close that one, or name another path.",
                path=path,
            ) from error
        before = read_note(path)
        self.store = before.store
        """The deployment that the file held when it was last open, "" if none."""
        self.seq = before.seq
        """Up to where it had acknowledged then, at least."""
        self.note(*before[1:])

    def note(self, store: str, seq: int, sync: str) -> None:
        """For the next process that tries, for `mielin doctor`, and to recognize a file that was emptied or is an older copy."""
        self.store, self.seq, self._sync = store, seq, sync
        # It cannot matter to this process if the note cannot be written: the lock itself is held.
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
        self.reached(seq)

    def reached(self, seq: int) -> None:
        """Everything up to `seq` was acknowledged.  Not flushed to the disk: a note that is behind claims too little."""
        with suppress(OSError):
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, f"{os.getpid()} {self.store} {seq:020d} {self._sync}\n".encode())

    def release(self) -> None:
        """Repeating it is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
