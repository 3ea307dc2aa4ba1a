"""The tables of the embedded store, and what is asked of them."""

from __future__ import annotations

from typing import Final

SCHEMA: Final = (
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    # An index on subject alone ends in the rowid, which is seq: it is an index on (subject, seq).
    # `owner` is set in the ownership records of agents' logs only; the last two indexes have only those.
    "CREATE TABLE entries(seq INTEGER PRIMARY KEY, subject TEXT NOT NULL, data BLOB NOT NULL, owner TEXT)",
    "CREATE INDEX entries_by_subject ON entries(subject)",
    "CREATE INDEX entries_by_owner ON entries(owner) WHERE owner IS NOT NULL",
    "CREATE INDEX entries_owned ON entries(subject) WHERE owner IS NOT NULL",
)
_SCANNED: Final = {name: f"subject >= '{name}.' AND subject < '{name}/'" for name in ("topic", "attr")}
# Older files of this format have no such indexes: they are made when one is opened.
SCAN_INDEXES: Final = tuple(
    f"CREATE INDEX IF NOT EXISTS entries_{name}s ON entries(seq) WHERE {where}" for name, where in _SCANNED.items()
)
SCANS: Final = {
    name: f"SELECT subject, seq, data FROM entries INDEXED BY entries_{name}s WHERE {where} "
    "AND seq > ? AND subject GLOB ? ORDER BY seq LIMIT ?"
    for name, where in _SCANNED.items()
}
PAGE: Final = "SELECT seq, data FROM entries WHERE subject = ? AND seq > ? ORDER BY seq LIMIT ?"
LAST: Final = "SELECT seq, data FROM entries WHERE subject = ? ORDER BY seq DESC LIMIT 1"
LAST_SEQ: Final = "SELECT max(seq) FROM entries WHERE subject = ?"
# A loose scan: one index search per subject, however many entries it has.
SUBJECTS: Final = """
WITH RECURSIVE names(name) AS (
  SELECT min(subject) FROM entries WHERE subject >= ?
  UNION ALL
  SELECT (SELECT min(subject) FROM entries WHERE subject > name) FROM names WHERE name IS NOT NULL
)
SELECT name, (SELECT max(seq) FROM entries WHERE subject = name) FROM names
WHERE name IS NOT NULL LIMIT ?
"""
OWNED_LAST: Final = "SELECT max(seq) FROM entries WHERE subject = ? AND owner IS NOT NULL"
OWNED: Final = """
SELECT seq, subject FROM entries AS e WHERE owner = ? AND seq > ?
AND seq = (SELECT max(seq) FROM entries WHERE subject = e.subject AND owner IS NOT NULL) ORDER BY seq LIMIT ?
"""
OWNERS: Final = """
WITH RECURSIVE names(name) AS (
  SELECT min(owner) FROM entries WHERE owner IS NOT NULL
  UNION ALL
  SELECT (SELECT min(owner) FROM entries WHERE owner > name AND owner IS NOT NULL) FROM names WHERE name IS NOT NULL
)
SELECT name FROM names WHERE name IS NOT NULL
"""
LOGS_OWNED: Final = """
WITH RECURSIVE names(name) AS (
  SELECT min(subject) FROM entries WHERE subject >= ? AND subject < 'log/'
  UNION ALL
  SELECT (SELECT min(subject) FROM entries WHERE subject > name AND subject < 'log/') FROM names WHERE name IS NOT NULL
)
SELECT name, EXISTS (SELECT 1 FROM entries WHERE subject = name AND owner IS NOT NULL) FROM names
WHERE name IS NOT NULL LIMIT ?
"""
# The size of a value is in its row's header: what is behind it is not read.
TRIM_SIZES: Final = (
    "SELECT seq, length(data) FROM entries WHERE subject = ? AND seq < ? AND seq <> ? ORDER BY seq LIMIT ?"
)
TRIM: Final = "DELETE FROM entries WHERE seq IN (SELECT seq FROM entries WHERE subject = ? AND seq <= ?) AND seq <> ?"
