"""What a SQLite file says of itself, also while another process has it open; nothing is made or changed."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

from mielin_cells.errors import ConfigError
from mielin_cells.substrate.embedded.place import read_note
from mielin_cells.substrate.embedded.store import APPLICATION_ID, translated
from mielin_cells.substrate.format import check_format
from mielin_cells.substrate.health import Facts

SYNCED = "power"


def inspected(path: str | os.PathLike[str]) -> Facts:
    """Raises `ConfigError` if there is no such file, `StoreCorrupt` if it is none of ours, and what else keeps it from being read."""
    place = os.path.realpath(path)
    if not os.path.isfile(place):
        raise ConfigError(f"--path {os.fspath(path)}: there is no such file.", field="path", range="a store's file")
    troubles: list[str] = []
    try:
        with closing(sqlite3.connect(f"file:{_quoted(place)}?mode=ro", uri=True, timeout=1.0)) as connection:
            run = connection.execute
            if run("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise ConfigError(f"{place!r} is not a store of mielin-cells.", field="path", range="a store's file")
            mode = str(run("PRAGMA journal_mode").fetchone()[0])
            meta = dict(run("SELECT key, value FROM meta").fetchall())
            check_format(f"The store {place!r}", meta.get("format"), "another file")
            last = int(run("SELECT coalesce(max(seq), 0) FROM entries").fetchone()[0])
            damage = [str(row[0]) for row in run("PRAGMA quick_check(3)") if row[0] != "ok"]
    except sqlite3.Error as error:
        raise translated(error, repr(place), place) from error
    troubles += [f"SQLite finds the file damaged ({what}). Stop, keep a copy, and restore a backup." for what in damage]
    if mode != "wal":
        troubles.append(
            f"journal_mode is {mode}, not wal: another program has changed it. Open the store once to set it."
        )
    _, store, seq, sync = read_note(place)
    have = max(last, int(meta.get("seq", 0)))
    if store == meta.get("deployment") and have < seq:
        troubles.append(
            f"It had acknowledged entry {seq} and ends at {have}: it lost its tail in a power cut, or an older copy was put in "
            f"its place. Restore the newer one, or remove {place + '.lock'!r} to accept the loss."
        )
    shown = {"power": "full", "process": "normal"}.get(sync, "not to be seen from here")
    return Facts(
        kind="sqlite", where=place, version=sqlite3.sqlite_version, sync_s=None if not sync else 0.0 if sync == SYNCED else 30.0,
        sync_from="the note beside it", settings={"journal_mode": mode, "synchronous": shown}, troubles=troubles,
    )  # fmt: skip


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
