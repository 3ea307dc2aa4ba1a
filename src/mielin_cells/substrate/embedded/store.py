"""The SQLite side of the embedded substrate: schema, the lock on the file, batches, pages, and what SQLite's errors mean.

No asyncio and no thread in here.  A file has two connections: `write` may run on another thread than the reads.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Final

from mielin_cells.errors import (
    CellError,
    EpochRegression,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
    StoreUnreachable,
)
from mielin_cells.log.ids import is_agents_log
from mielin_cells.substrate.embedded import schema
from mielin_cells.substrate.embedded.place import READ_ONLY, FileLock, check_place, check_writable, has_bytes
from mielin_cells.substrate.format import FORMAT, check_format
from mielin_cells.substrate.ports import Entry, Found

APPLICATION_ID: Final = 0x6D63656C  # "mcel": tells our files from other SQLite databases
BUSY_S: Final = 5.0
"""How long a write waits for a foreign program (a backup, a shell) that has locked the file."""

PAGE_BYTES: Final = 2 * 1024 * 1024
"""One page of a read ends here, so that reading it holds the event loop for a few milliseconds at most."""

PAGE_ROWS: Final = 256
TRIM_BYTES: Final = 4 * 1024 * 1024
"""A step of a trim ends here: in memory, giving 1 MiB free takes about 0.7 ms of the event loop."""

CHECKPOINT_PAGES: Final = 4000  # 16 MiB of WAL: fewer fsyncs than SQLite's 1000
EXACT_ROWS: Final = 64
CHUNK_ROWS: Final = (1024, 512, 256, 128, 64)

ROW: Final = 4
"""Values of one entry in the flat list of a batch: seq, subject, data, owner."""
_FULL, _IOERR = 13, 10
_KINDS: Final[dict[int, tuple[type[CellError], str]]] = {
    5: (StoreBusy, "is locked by another program; nothing was written, try again"),
    6: (StoreBusy, "is locked by another program; nothing was written, try again"),
    15: (StoreBusy, "is locked by another program; nothing was written, try again"),
    _FULL: (
        StoreFull,
        "is full; nothing was written. Free space, then try again: agents keep their last durable state",
    ),
    3: (StoreReadOnly, READ_ONLY),
    8: (StoreReadOnly, READ_ONLY),
    14: (StoreReadOnly, "cannot be opened for writing. Check owner and mode of the file and its directory"),
    11: (StoreCorrupt, "is damaged. Stop, keep a copy of the file, and restore a backup"),
    19: (StoreCorrupt, "has entries that another program wrote; nothing was written. Stop, and find out which"),
    24: (StoreCorrupt, "is damaged. Stop, keep a copy of the file, and restore a backup"),
    26: (StoreCorrupt, "is not a store, or is damaged. Check the path; if it is right, restore a backup"),
}


class WriteFailed(Exception):
    """A batch was not written, or (`in_doubt`) may have been."""

    def __init__(self, error: CellError, *, in_doubt: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.in_doubt = in_doubt


class Trim:
    """One step of a trim below `before`: removes up to `rows` entries below `reach`, the oldest first, fewer if they are large.

    `has_more` says that there may be others.
    """

    __slots__ = ("before", "has_more", "is_final", "reach", "rows", "subject")

    def __init__(self, subject: str, before: int, rows: int, *, is_final: bool) -> None:
        self.subject = subject
        self.before = self.reach = before
        self.rows = rows
        self.is_final = is_final
        self.has_more = False


def translated(error: sqlite3.Error, where: str, path: str | None) -> CellError:
    """What SQLite's error means to a caller."""
    code: int = getattr(error, "sqlite_errorcode", 1)
    kind, sentence = _KINDS.get(code & 0xFF, (StoreUnreachable, "does not answer; try again, or look at the disk"))
    return kind(f"The store {where} {sentence} ({error}).", path=path)


@lru_cache
def _insert(rows: int) -> str:
    return "INSERT INTO entries(seq, subject, data, owner) VALUES " + ",".join(["(?,?,?,?)"] * rows)


def _chunks(rows: int) -> list[int]:
    """Few statements, of sizes that come again: each is compiled once, and SQLite gives up the GIL per statement only."""
    chunks = []
    while rows > EXACT_ROWS:
        size = next(size for size in CHUNK_ROWS if size <= rows)
        chunks.append(size)
        rows -= size
    if rows:
        chunks.append(rows)
    return chunks


class Store:
    """An open database.  Opening raises `StoreInUse`, `StoreCorrupt`, `StoreReadOnly`, `ConfigError`, ..."""

    def __init__(self, place: str | os.PathLike[str] | None, sync: str) -> None:
        self.path = path = None if place is None else os.path.realpath(place)
        self.where = "in memory" if path is None else repr(path)
        self.deployment = ""
        self._lock: FileLock | None = None
        self._connections: list[sqlite3.Connection] = []
        is_empty = True
        if path is not None:
            check_place(path)
            self._lock = FileLock(path)
            is_empty = not has_bytes(path)
        try:
            if path is not None:
                check_writable(path)
            with self._translating():
                if path is not None and is_empty and self._lock is not None and self._lock.store:
                    self._check_not_emptied(path)
                self._write = self._connect(sync)
                self._prepare()
                self._read = self._write if path is None else self._connect(sync, reads=True)
                self._inode = os.stat(path).st_ino if path is not None else 0
                if self._lock is not None:
                    self._check_not_older(self._lock)
                    self._lock.note(self.deployment, self.seq_max(), sync)
        except BaseException:
            self.close()
            raise

    def _check_not_emptied(self, path: str) -> None:
        """A file that was removed is a fresh start; one of no bytes beside the lock of a store has lost its content."""
        if os.path.exists(path):
            raise StoreCorrupt(
                f"The store {path!r} has no bytes, but was a store before: it was truncated. Restore a backup, or "
                f"remove {path!r} and {path + '.lock'!r} to start from nothing.",
                path=path,
            )

    def _check_not_older(self, lock: FileLock) -> None:
        """The note beside the file says up to where it had acknowledged."""
        have = self.seq_max()
        if lock.store == self.deployment and have < lock.seq:
            raise EpochRegression(
                f"The store {self.where} had acknowledged entry {lock.seq} and ends at {have}: it lost its tail in a power cut, or an "
                f"older copy was put in its place. Nothing was changed. Restore the newer one, or remove {str(self.path) + '.lock'!r} "
                "to accept the loss.",
                path=self.path, have=have, need=lock.seq,
            )  # fmt: skip

    # ---- opening ---------------------------------------------------------------------------------------------

    def _connect(self, sync: str, *, reads: bool = False) -> sqlite3.Connection:
        # Serialized by us: writes on one thread at a time, reads on the loop's.
        connection = sqlite3.connect(
            self.path or ":memory:",
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        self._connections.append(connection)
        run = connection.execute
        run("PRAGMA temp_store = MEMORY")
        run("PRAGMA trusted_schema = OFF")
        if reads:
            run("PRAGMA query_only = ON")
        elif self.path is None:
            run("PRAGMA synchronous = OFF")
        else:
            self._check_owner(connection)
            run("PRAGMA journal_mode = WAL").fetchone()
            run(f"PRAGMA synchronous = {'FULL' if sync == 'power' else 'NORMAL'}")
            run(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}").fetchone()
        return connection

    def _check_owner(self, connection: sqlite3.Connection) -> None:
        """Refuses another program's database before anything in it is changed."""
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and application != APPLICATION_ID:
            raise StoreCorrupt(
                f"The file {self.path!r} is the database of another program, not a store; nothing was changed. "
                "Name another path.",
                path=self.path,
            )
        if tables:
            self._check_format(connection)
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
        path = str(self.path)
        # SQLite reads what is missing of the last page as zeros.  A checkpoint that was killed leaves such a page too,
        # but then the WAL has all of it.
        if os.path.getsize(path) % page_bytes and not has_bytes(path + "-wal"):
            raise StoreCorrupt(
                f"The store {path!r} ends within a page: it was truncated; nothing was changed. Restore a backup.",
                path=path,
            )

    def _check_format(self, connection: sqlite3.Connection) -> None:
        have = dict(connection.execute("SELECT key, value FROM meta").fetchall()).get("format")
        check_format(f"The store {self.where}", have, "another file")

    def _prepare(self) -> None:
        """Makes the tables of a new file."""
        run = self._write.execute
        run("BEGIN IMMEDIATE")
        if not run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in schema.SCHEMA:
                run(statement)
            run(f"PRAGMA application_id = {APPLICATION_ID}")
            made = (("format", FORMAT), ("deployment", secrets.token_hex(16)), ("seq", 0))
            for row in made:
                run("INSERT INTO meta VALUES (?, ?)", row)
        for index in schema.SCAN_INDEXES:
            run(index)
        meta: dict[str, Any] = dict(run("SELECT key, value FROM meta").fetchall())
        run("COMMIT")
        self.deployment = str(meta["deployment"])

    # ---- writing ---------------------------------------------------------------------------------------------

    def write(self, rows: list[Any], trims: list[Trim]) -> None:
        """One transaction: all of `rows` (flat: seq, subject, data, owner, seq, ...), then the trims.  Raises `WriteFailed`."""
        self._check_in_place()
        self._run(rows, trims)
        if self._lock is not None and rows:
            self._lock.reached(rows[-ROW])

    def _check_in_place(self) -> None:
        """What is written to a file that is not in its place any more would be acknowledged, and gone."""
        if self.path is None:
            return
        try:
            is_there = os.stat(self.path).st_ino == self._inode
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise WriteFailed(
                StoreCorrupt(
                    f"The store file {self.path!r} was removed or replaced while it was open; nothing was written, and no more is. "
                    "Put it back, or start again with the one that is there.", path=self.path,
                ), in_doubt=False,
            )  # fmt: skip

    def _run(self, rows: list[Any], trims: list[Trim]) -> None:
        run = self._write.execute
        chunks = _chunks(len(rows) // ROW)
        alone = len(chunks) == 1 and not trims  # the statement is its own transaction
        at_commit = alone
        try:
            if self._write.in_transaction:  # left by a failed rollback
                run("ROLLBACK")
            if alone:
                run(_insert(chunks[0]), rows)
                return
            run("BEGIN IMMEDIATE")
            start = 0
            for chunk in chunks:
                run(_insert(chunk), rows[start : start + ROW * chunk])
                start += ROW * chunk
            for trim in trims:
                self._remove(trim)
                if trim.is_final:  # it may take the highest seq of all away, which is not to be used again
                    run("UPDATE meta SET value = max(value, ?) WHERE key = 'seq'", (trim.before - 1,))
            at_commit = True
            run("COMMIT")
        except sqlite3.Error as error:
            # An I/O error at the commit leaves frames in the WAL that a recovery may find whole; all else leaves nothing.
            in_doubt = at_commit and getattr(error, "sqlite_errorcode", 1) & 0xFF not in _KINDS
            if self._write.in_transaction:
                try:
                    run("ROLLBACK")
                except sqlite3.Error:
                    in_doubt = True
            raise WriteFailed(translated(error, self.where, self.path), in_doubt=in_doubt) from error

    def _remove(self, trim: Trim) -> None:
        keeps = 0
        if is_agents_log(trim.subject):
            keeps = self._write.execute(schema.OWNED_LAST, (trim.subject,)).fetchone()[0] or 0
        sizes = self._write.execute(schema.TRIM_SIZES, (trim.subject, trim.reach, keeps, trim.rows)).fetchall()
        upto = size = 0
        for upto, length in sizes:  # noqa: B007 - the last one is what the loop is for
            size += length
            if size >= TRIM_BYTES:
                break
        trim.has_more = size >= TRIM_BYTES or len(sizes) == trim.rows
        self._write.execute(schema.TRIM, (trim.subject, upto, keeps))

    # ---- reading ---------------------------------------------------------------------------------------------

    def page(self, subject: str, after: int, rows: int) -> tuple[list[Entry], bool]:
        """Up to `rows` entries, fewer if they are large, and whether there may be more."""
        entries: list[Entry] = []
        size = 0
        make = Entry._make
        with self._translating():
            cursor = self._read.execute(schema.PAGE, (subject, after, rows))
            try:
                for row in cursor:
                    entries.append(make(row))
                    size += len(row[1])
                    if size >= PAGE_BYTES:
                        return entries, True
            finally:
                cursor.close()  # an open cursor would pin an old state of the file
        return entries, len(entries) == rows

    def last(self, subject: str) -> Entry | None:
        with self._translating():
            row = self._read.execute(schema.LAST, (subject,)).fetchone()
        return None if row is None else Entry._make(row)

    def last_seq(self, subject: str) -> int:
        with self._translating():
            return self._read.execute(schema.LAST_SEQ, (subject,)).fetchone()[0] or 0

    def subjects(self, start: str, rows: int) -> list[tuple[str, int]]:
        """Up to `rows` subjects from `start` on, in order of name, each with its last seq."""
        with self._translating():
            return self._read.execute(schema.SUBJECTS, (start, rows)).fetchall()

    def owned(self, owner: str, after: int, rows: int) -> list[tuple[int, str]]:
        """Up to `rows` ownership records behind `after` that name `owner` and are their log's last ones: seq and subject."""
        with self._translating():
            return self._read.execute(schema.OWNED, (owner, after, rows)).fetchall()

    def logs(self, start: str, rows: int) -> list[tuple[str, int]]:
        """Up to `rows` agents' logs from `start` on, in order of name, each with whether it has an ownership record."""
        with self._translating():
            return self._read.execute(schema.LOGS_OWNED, (start, rows)).fetchall()

    def owners(self) -> list[str]:
        """All that ownership records name."""
        with self._translating():
            return [owner for (owner,) in self._read.execute(schema.OWNERS)]

    def scan(self, glob: str, after: int, rows: int) -> list[Found]:
        """Up to `rows` entries of topics, or attributes, whose subjects match the glob, in order of seq, fewer if they are large."""
        found: list[Found] = []
        size = 0
        with self._translating():
            cursor = self._read.execute(schema.SCANS[glob.partition(".")[0]], (after, glob, rows))
            try:
                for row in cursor:
                    found.append(Found._make(row))
                    size += len(row[2])
                    if size >= PAGE_BYTES:
                        break
            finally:
                cursor.close()
        return found

    def seq_max(self) -> int:
        """The highest seq that was ever given."""
        with self._translating():
            row = self._read.execute(
                "SELECT max((SELECT value FROM meta WHERE key = 'seq'), (SELECT coalesce(max(seq), 0) FROM entries))"
            ).fetchone()
        return int(row[0])

    # ---- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Puts the WAL into the file and gives the file free.  Repeating it is harmless."""
        connections, self._connections = self._connections, []
        for connection in reversed(connections):  # the writer last: the last one out takes the WAL into the file
            with suppress(sqlite3.Error):  # what was acknowledged is in the WAL; the next open takes it in
                connection.close()
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise translated(error, self.where, self.path) from error
