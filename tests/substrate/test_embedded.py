"""The embedded substrate beyond the common contract: its file, the processes that use it, a full disk, a damaged file, its end."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mielin_cells.errors import (
    CellError,
    ConfigError,
    StoreCorrupt,
    StoreFull,
    StoreIncompatible,
    StoreInUse,
    StoreUnreachable,
)
from mielin_cells.substrate.embedded import Embedded, schema
from mielin_cells.substrate.embedded.store import APPLICATION_ID
from mielin_cells.substrate.ports import Appended, Conflict, Entry, Log

CHILD_S = 30
"""A child that takes longer has hung, and the test has failed."""

OPEN = """
import asyncio, sys
from mielin_cells.errors import CellError
from mielin_cells.substrate.embedded import Embedded

async def main():
    try:
        store = await Embedded.open(sys.argv[1])
    except CellError as error:
        print(error.code, error, flush=True)
        return
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await store.close()

asyncio.run(main())
"""

APPEND = """
import asyncio, sys
from mielin_cells.substrate.embedded import Embedded

async def caller(log, who):
    for n in range(10**9):
        outcome = await log.append("a.%d" % who, b"%d" % n + b"." * 2000)
        print(who, n, outcome.seq, flush=True)

async def main():
    store = await Embedded.open(sys.argv[1])
    await asyncio.gather(*(caller(store.log, who) for who in range(4)))

asyncio.run(main())
"""

LIMITED = """
import asyncio, resource, sys
from mielin_cells.errors import CellError
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Appended

async def some(log, first, count, what):
    outcomes = []
    for n in range(first, first + count):
        try:
            outcome = await log.append("a", b"%d" % n + b"." * 4000)
        except CellError as error:
            outcome = error
        outcomes.append(outcome)
        if isinstance(outcome, Appended):
            print("appended", n, flush=True)
    print(what, *sorted({type(outcome).__name__ for outcome in outcomes}), flush=True)

async def main():
    store = await Embedded.open(sys.argv[1])
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    await some(store.log, 0, 10, "before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
    await some(store.log, 10, 40, "limited")
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    await some(store.log, 50, 10, "after")
    await store.close()

asyncio.run(main())
"""

READ_ONLY = """
import asyncio, os, sys
from mielin_cells.errors import CellError
from mielin_cells.substrate.embedded import Embedded

async def main():
    # What is needed is imported first: another user may not reach it.
    await asyncio.to_thread(int)
    await (await Embedded.open()).close()
    if os.geteuid() == 0:
        os.seteuid(65534)  # permissions are not for the superuser
    try:
        await Embedded.open(sys.argv[1])
        print("open", flush=True)
    except CellError as error:
        print(error.code, error, flush=True)

asyncio.run(main())
"""


@contextmanager
def child(script: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def output(script: str, path: Path) -> list[str]:
    """What a child that ends by itself has printed."""
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=CHILD_S, check=True)
    return done.stdout.splitlines()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


async def stored(log: Log, subject: str, data: bytes, expect: int | None = None) -> int:
    outcome = await log.append(subject, data, expect)
    assert isinstance(outcome, Appended), outcome
    return outcome.seq


async def everything(log: Log, subject: str) -> list[Entry]:
    found: list[Entry] = []
    while page := await log.read(subject, found[-1].seq if found else 0):
        found += page
    return found


async def filled(path: Path, count: int = 20, size: int = 1000) -> None:
    """A store with entries, closed."""
    store = await Embedded.open(path)
    await asyncio.gather(*(stored(store.log, f"s.{n % 3}", b"%d" % n + b"." * size) for n in range(count)))
    await store.log.append("log.a", b"claimed", 0, "node-1")
    await store.close()


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files but the lock, whose note is rewritten by whoever holds it."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


# ---- one process at a time -----------------------------------------------------------------------------------


async def test_a_second_process_is_refused_with_the_first_ones_number_and_may_open_once_that_has_ended(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.db"
    with child(OPEN, path) as first:
        assert line(first) == "open"

        with pytest.raises(StoreInUse) as raised:
            await Embedded.open(path)
        (refused,) = output(OPEN, path)

        assert str(first.pid) in raised.value.message
        assert str(path) in raised.value.message
        assert "Close that one, or name another path." in raised.value.message
        assert raised.value.path == str(path)
        assert refused.startswith("StoreInUse ")
        first.communicate("\n", timeout=CHILD_S)
        assert first.returncode == 0
    await (await Embedded.open(path)).close()


async def test_another_name_of_the_same_file_is_refused_too(tmp_path: Path) -> None:
    path, other = tmp_path / "store.db", tmp_path / "other.db"
    store = await Embedded.open(path)
    other.symlink_to(path)
    with pytest.raises(StoreInUse):
        await Embedded.open(other)
    await store.close()


async def test_the_file_is_free_once_its_process_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with child(OPEN, path) as first:
        assert line(first) == "open"
        first.kill()
        first.wait(CHILD_S)
        store = await Embedded.open(path)
        await stored(store.log, "a", b"mine")
        await store.close()


# ---- what an acknowledgement is worth ------------------------------------------------------------------------


@pytest.mark.parametrize("acks", [1, 40, 400])
async def test_every_append_acknowledged_before_a_kill_is_there_in_order(acks: int, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with child(APPEND, path) as process:
        told = [line(process) for _ in range(acks)]
        process.kill()
        assert process.stdout is not None
        told += [text for text in process.stdout.read().split("\n")[:-1] if text]

    store = await Embedded.open(path)

    found = {who: await everything(store.log, f"a.{who}") for who in range(4)}
    for entries in found.values():
        assert [int(entry.data.rstrip(b".")) for entry in entries] == list(range(len(entries)))
        assert all(len(entry.data) > 2000 for entry in entries)
    for text in told:
        who, n, seq = map(int, text.split())
        assert found[who][n].seq == seq
    highest = max(entry.seq for entries in found.values() for entry in entries)
    assert await stored(store.log, "a.9", b"next") > highest
    await store.close()


async def test_the_deployments_name_and_the_sequences_survive_also_when_all_entries_are_trimmed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = await Embedded.open(path)
    name, last = store.deployment, await stored(store.log, "a", b"1")
    await store.log.trim("a", last + 1)
    await store.close()

    store = await Embedded.open(path)

    assert store.deployment == name
    assert await store.log.subjects("") == []
    assert await stored(store.log, "a", b"2", 0) > last
    await store.close()


# ---- no room -------------------------------------------------------------------------------------------------


def limited(store: Embedded, pages: int) -> None:
    """The most pages that SQLite may use, as if the disk ended there."""
    store._store._write.execute(f"PRAGMA max_page_count = {pages}").fetchone()


@pytest.mark.parametrize("on_disk", [False, True])
async def test_a_full_store_takes_nothing_by_halves_and_goes_on_once_there_is_room(
    on_disk: bool, tmp_path: Path
) -> None:
    store = await Embedded.open(tmp_path / "store.db" if on_disk else None)
    log = store.log
    before = await stored(log, "a", b"before")
    seen = log.tail("a", before)
    limited(store, 64)

    calls = [log.append(f"b.{n}", bytes(20_000), 0) for n in range(50)]  # one transaction: whole or not at all
    outcomes = await asyncio.gather(*calls, log.append("a", b"with them", before), return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {StoreFull}
    assert isinstance(outcomes[0], StoreFull)
    assert "nothing was written. Free space" in outcomes[0].message
    assert outcomes[0].retry_after is not None
    assert await log.subjects("") == [("a", before)]
    assert await log.last("a") == Entry(before, b"before")
    assert isinstance(await log.append("a", b"a stale one", 0), Conflict)
    small = await stored(log, "a", b"a small one fits", before)
    limited(store, 100_000)
    again = await asyncio.gather(*(stored(log, f"b.{n}", bytes(20_000), 0) for n in range(50)))
    assert min(again) > small > before
    assert await anext(seen) == [Entry(small, b"a small one fits")]
    await store.close()


async def test_after_a_restart_a_full_file_holds_exactly_what_it_accepted(tmp_path: Path) -> None:
    store = await Embedded.open(tmp_path / "store.db")
    limited(store, 100)
    kept: list[Entry] = []
    refused = 0
    for n in range(60):
        data = b"%d" % n + bytes(10_000)
        try:
            kept.append(Entry(await stored(store.log, "a", data), data))
        except StoreFull:
            refused += 1
    await store.close()

    assert kept
    assert refused
    store = await Embedded.open(tmp_path / "store.db")
    assert await everything(store.log, "a") == kept
    await store.close()


async def test_a_disk_that_takes_no_more_bytes_gives_every_append_an_outcome_that_holds(tmp_path: Path) -> None:
    """The system itself refuses the write, so SQLite may not know: what is told as stored is stored, the rest once at most."""
    path = tmp_path / "store.db"
    told = output(LIMITED, path)

    appended = [int(text.split()[1]) for text in told if text.startswith("appended ")]
    said = {text.split()[0]: set(text.split()[1:]) for text in told if not text.startswith("appended ")}
    assert said["before"] == said["after"] == {"Appended"}
    assert said["limited"] - {"Appended"}
    assert said["limited"] <= {"Appended", "Unknown", "StoreFull", "StoreUnreachable"}
    store = await Embedded.open(path)
    found = [int(entry.data.rstrip(b".")) for entry in await everything(store.log, "a")]
    assert found == sorted(set(found))
    assert set(appended) <= set(found)
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    await store.close()


# ---- no permission -------------------------------------------------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def test_a_read_only_file_is_refused_and_left_as_it_is(open_folder: Path) -> None:
    path = open_folder / "store.db"
    asyncio.run(filled(path))
    path.chmod(0o444)
    path.with_name("store.db.lock").chmod(0o666)
    before = bytes_of(open_folder)

    (said,) = output(READ_ONLY, path)

    assert said.startswith("StoreReadOnly ")
    assert "Check owner and mode" in said
    assert str(path) in said
    assert bytes_of(open_folder) == before


def test_a_file_in_a_read_only_folder_is_refused(open_folder: Path) -> None:
    path = open_folder / "store.db"
    asyncio.run(filled(path))
    path.with_name("store.db.lock").unlink()
    open_folder.chmod(0o555)

    (said,) = output(READ_ONLY, path)
    open_folder.chmod(0o777)

    assert said.startswith("StoreReadOnly ")
    assert "its lock file" in said


async def test_a_path_without_a_folder_or_that_is_one_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "store.db", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            await Embedded.open(path)
    with pytest.raises(ConfigError, match="'process' or 'power'"):
        await Embedded.open(tmp_path / "store.db", sync="sometimes")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


# ---- no store, or a damaged one ------------------------------------------------------------------------------


def _text(path: Path) -> None:
    path.write_text("Dear diary, " * 500)


def _few(path: Path) -> None:
    path.write_bytes(b"SQLi")


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE notes(text)")
    other.close()


def _newer(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        other.execute("CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID")
        other.execute("INSERT INTO meta VALUES ('format', 5)")
    other.close()


NO_STORES: dict[str, tuple[Callable[[Path], None], str]] = {
    "text": (_text, "is not a store, or is damaged"),
    "a few bytes": (_few, "is not a store, or is damaged"),
    "another program's database": (_foreign, "another program"),
    "a newer format": (
        _newer,
        "has format 5, which another version of mielin-cells wrote; this version reads format 4",
    ),
}


@pytest.mark.parametrize("kind", NO_STORES)
async def test_a_file_that_is_no_store_is_refused_by_name_and_not_changed(kind: str, tmp_path: Path) -> None:
    make, sentence = NO_STORES[kind]
    path = tmp_path / "store.db"
    make(path)
    before = path.read_bytes()

    with pytest.raises((StoreCorrupt, StoreIncompatible), match=sentence) as raised:
        await Embedded.open(path)

    assert str(path) in raised.value.message
    assert path.read_bytes() == before


async def test_a_store_that_was_emptied_is_refused_and_one_that_was_removed_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await filled(path)
    os.truncate(path, 0)
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match="has no bytes, but was a store before"):
            await Embedded.open(path)
        assert path.stat().st_size == 0
    path.unlink()
    store = await Embedded.open(path)
    assert await store.log.subjects("") == []
    await store.close()


async def answers_of(path: Path) -> list[list[Entry]] | CellError:
    """All that the store has, by each of its indexes, or the error that it is refused with."""
    try:
        store = await Embedded.open(path)
    except CellError as error:
        return error
    try:
        owned = [Entry(1, subject.encode()) for subject in await store.log.owned("node-1")]
        scanned = [[Entry(one.seq, one.data) for one in await store.log.scan(f"{name}.>", 0)] for name in schema.SCANS]
        return [*[await everything(store.log, f"s.{n}") for n in range(3)], owned, *scanned]
    except CellError as error:
        return error
    finally:
        await store.close()


async def test_a_store_that_was_cut_off_anywhere_is_refused_or_gives_only_what_was_in_it(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await filled(path, 30, 1500)
    whole, full = path.read_bytes(), await answers_of(path)
    assert isinstance(full, list)
    refused = 0
    for size in range(1, len(whole), 1021):
        path.write_bytes(whole[:size])
        left = await answers_of(path)
        if isinstance(left, CellError):
            assert isinstance(left, StoreCorrupt), left
            refused += 1
            continue
        for entries, all_entries in zip(left, full, strict=True):
            assert set(entries) <= set(all_entries)
    assert refused == len(range(1, len(whole), 1021))


async def test_a_damaged_page_is_an_error_with_the_next_step_and_never_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await filled(path, 30, 1500)
    whole, full = path.read_bytes(), await answers_of(path)
    assert isinstance(full, list)
    page_bytes = 4096
    for start in range(0, len(whole), page_bytes):
        path.write_bytes(whole[:start] + b"\xff" * page_bytes + whole[start + page_bytes :])
        with pytest.raises(StoreCorrupt, match="restore a backup"):
            found = await answers_of(path)
            if isinstance(found, CellError):
                raise found


# ---- the end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True])
async def test_closing_gives_every_waiting_call_its_outcome_and_refuses_later_ones(
    on_disk: bool, tmp_path: Path
) -> None:
    path = tmp_path / "store.db"
    store = await Embedded.open(path if on_disk else None)
    log = store.log
    calls = [asyncio.ensure_future(log.append("a", b"%d" % n)) for n in range(5000)]
    trim = asyncio.ensure_future(log.trim("b", 5))
    await asyncio.sleep(0)

    await asyncio.gather(store.close(), store.close())

    assert {type(outcome) for outcome in await asyncio.gather(*calls)} == {Appended}
    await asyncio.gather(trim, return_exceptions=True)
    assert not [thread for thread in threading.enumerate() if thread.name == "mielin-store"]
    for call in (log.append("a", b""), log.read("a"), log.last("a"), log.trim("a", 1), log.subjects("")):
        with pytest.raises(StoreUnreachable, match="is closed; open it again"):
            await call
    with pytest.raises(StoreUnreachable):
        log.tail("a")
    if on_disk:
        store = await Embedded.open(path)
        assert [entry.data for entry in await everything(store.log, "a")] == [b"%d" % n for n in range(5000)]
        await store.close()


async def test_a_call_that_was_cancelled_does_not_hold_up_the_others_of_its_transaction(tmp_path: Path) -> None:
    store = await Embedded.open(tmp_path / "store.db")
    calls = [asyncio.ensure_future(store.log.append("a", b"%d" % n)) for n in range(20)]
    await asyncio.sleep(0)
    calls[3].cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for n, outcome in enumerate(outcomes) if n != 3] == [Appended] * 19
    await store.close()


async def test_a_write_that_breaks_leaves_no_append_waiting_and_the_index_as_the_file(tmp_path: Path) -> None:
    """A foreign program has put an entry where the next one belongs: the transaction fails, and the store goes on after it."""
    path = tmp_path / "store.db"
    store = await Embedded.open(path)
    seq = await stored(store.log, "a", b"1")
    with sqlite3.connect(path) as foreign:
        foreign.execute("INSERT INTO entries VALUES (?, 'a', x'00', NULL)", (seq + 1,))
    foreign.close()

    outcomes = await asyncio.gather(*(store.log.append("b", b"%d" % n, 0) for n in range(3)), return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {StoreCorrupt}
    assert await stored(store.log, "b", b"goes on", 0) > seq
    await store.close()
