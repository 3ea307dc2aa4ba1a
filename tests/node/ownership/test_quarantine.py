"""A store that went backwards or lost records: a process that remembers more has the agent quarantined until an operator decides."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
from support.put_back import QUICK, WAIT_S, Deployment, deployed

import mielin_cells as cells
from mielin_cells.client.operator import Operator
from mielin_cells.errors import EpochRegression, JournalGap, StateUnloadable, StoreCorrupt
from mielin_cells.log.ids import inbox_subject, journal_subject, log_subject
from mielin_cells.migration.journal import Cancelled, Ended, Planned
from mielin_cells.node.activation.context import NodeContext
from mielin_cells.node.moves.journal import JournalWriter
from mielin_cells.node.ownership.quarantine import find_inbox_regression, find_regression
from mielin_cells.rpc import requests
from mielin_cells.store import journal as journals
from mielin_cells.store.reader import load
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Appended, Entry

BEGUN, GO = asyncio.Event(), asyncio.Event()


class Wallet(cells.Agent):
    coins: int = 0

    @cells.handler
    async def wait(self) -> int:
        BEGUN.set()
        await GO.wait()
        self.coins += 1
        return self.coins

    @cells.handler
    async def add(self, n: int = 1) -> int:
        self.coins += n
        return self.coins


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await is_so():
            await asyncio.sleep(0.01)


async def quarantined(at: Deployment, agent: str) -> str:
    """Waits until the agent's log says that it is quarantined, and returns the reason."""

    async def is_so() -> bool:
        error = (await load(at.log, agent)).lifecycle.error
        return error is not None and error.code == "EpochRegression"

    await until(is_so)
    error = (await load(at.log, agent)).lifecycle.error
    assert error is not None
    return error.message


async def shows(at: Deployment, agent: str, code: str) -> str:
    """Waits until operators see the agent in ERROR with the code; the error."""

    async def is_so() -> bool:
        return any(info.id == agent and info.code == code for info in await at.client.agents())

    await until(is_so)
    info = await Operator(at.client).show(agent)
    assert isinstance(info, cells.AgentInfo)
    assert (info.state, info.code) == ("Error", code)
    return info.error


def rows_removed(path: Path, subject: str, *which: int) -> None:
    """Takes entries out of a closed store, by their places in the subject."""
    with sqlite3.connect(path) as store:
        seqs = [seq for (seq,) in store.execute("SELECT seq FROM entries WHERE subject = ? ORDER BY seq", (subject,))]
        for place in which:
            store.execute("DELETE FROM entries WHERE seq = ?", (seqs[place],))
    store.close()


# ---- the store is put back while somebody lives ------------------------------------------------------------------


async def test_a_running_owner_whose_acknowledged_records_are_gone_quarantines_its_agent(tmp_path: Path) -> None:
    async with deployed(tmp_path, "node-1") as at:
        purse = await at.client.spawn(Wallet, "p")
        other = await at.client.spawn(Wallet, "untouched")
        assert await purse.add(1) == 1
        assert await other.add(5) == 5
        copy = at.copied()
        assert await purse.add(10) == 11
        await at.put_back(copy)
        fresh = at.new_client()
        await fresh.open()
        with pytest.raises(EpochRegression, match="mielin resume p"):  # not a time out, and not 2
            await fresh.get(Wallet, "p").add(1)
        assert "older copy" in await quarantined(at, "p")
        assert "mielin resume p" in await shows(at, "p", "EpochRegression")
        assert await other.add(1) == 6  # it had acknowledged nothing since the copy
        await at.client.resume("p")
        assert await fresh.get(Wallet, "p").add(100) == 102  # the loss is accepted; what waited in the inbox came first
        await fresh.close()


async def test_an_owner_with_nothing_to_do_finds_it_out_too(tmp_path: Path) -> None:
    async with deployed(tmp_path, "node-1", "node-2") as at:
        purse = await at.client.on("node-2").spawn(Wallet, "p")
        copy = at.copied()
        await purse.add(1)
        await at.put_back(copy)
        await quarantined(at, "p")
        assert await find_regression(at.log, "p", (await load(at.log, "p")).seq) is None


async def test_a_node_that_only_saw_the_log_quarantines_the_agent_of_a_node_that_forgot(tmp_path: Path) -> None:
    async with deployed(tmp_path, "node-1", "node-2") as at:
        purse = await at.client.on("node-1").spawn(Wallet, "p")
        copy = at.copied()
        for _ in range(50):
            await purse.add(1)
        seen, witness = (await load(at.log, "p")).seq, at.nodes["node-2"]

        async def has_seen() -> bool:
            return witness.quarantine.seen.get("p") == seen

        await until(has_seen)
        at.kill("node-1")
        await at.put_back(copy)
        await at.start("node-1")
        await quarantined(at, "p")


async def test_a_former_owner_finds_its_records_gone_behind_those_of_a_node_that_never_knew_them(
    tmp_path: Path,
) -> None:
    async with deployed(tmp_path, "node-1", "node-2") as at:
        purse = await at.client.on("node-1").spawn(Wallet, "p")
        await purse.add(1)
        copy = at.copied()
        await purse.add(10)
        had = at.nodes["node-1"].activations.live["p"].fold.seq
        await at.put_back(copy)
        taking = at.nodes["node-2"].claims.claim(
            requests.Claim("p", "before anybody looked")
        )  # and its records pass the sequence
        await asyncio.gather(taking, return_exceptions=True)
        fresh = at.new_client()
        await fresh.open()
        await asyncio.gather(*(fresh.get(Wallet, "p").add(1) for _ in range(20)), return_exceptions=True)
        await quarantined(at, "p")
        found = await load(at.log, "p")
        assert found.seq > had
        assert isinstance(await find_regression(at.log, "p", had), EpochRegression)
        await fresh.close()


async def test_a_client_that_remembers_more_than_all_nodes_has_the_agent_quarantined(tmp_path: Path) -> None:
    async with deployed(tmp_path, "node-1") as at:
        purse = await at.client.spawn(Wallet, "p")
        await purse.add(1)
        copy = at.copied()
        for n in range(9):
            assert await purse.add(1) == n + 2
        at.kill("node-1")
        await at.put_back(copy)
        await at.start("node-1")
        with pytest.raises(EpochRegression, match="older copy"):
            await purse.add(1)
        await shows(at, "p", "EpochRegression")
        with pytest.raises(EpochRegression):
            await purse.add(1)
        await at.client.resume("p")
        assert await purse.add(1) == 4  # the copy's one, the two that failed, this one


async def test_a_message_that_is_handled_across_the_loss_does_not_hide_those_that_come_after(tmp_path: Path) -> None:
    """Its commit takes the cursor past the end of the inbox that is there now: whatever came below it would never be read."""
    async with deployed(tmp_path, "node-1") as at:
        slow, other = await at.client.spawn(Wallet, "slow"), await at.client.spawn(Wallet, "other")
        copy = at.copied()
        for _ in range(20):
            await other.add(1)
        BEGUN.clear()
        GO.clear()
        asking = asyncio.create_task(slow.wait())
        await BEGUN.wait()
        await at.put_back(copy)
        GO.set()
        assert await asking == 1
        fresh = at.new_client()
        await fresh.open()
        with pytest.raises(EpochRegression):
            await fresh.get(Wallet, "slow").add(1)
        await at.client.resume("slow")
        assert await fresh.get(Wallet, "slow").add(1) == 3
        await fresh.close()


async def test_an_agent_whose_whole_log_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    async with deployed(tmp_path, "node-1") as at:
        copy = at.copied()
        purse = await at.client.spawn(Wallet, "p")
        await purse.add(7)
        await at.put_back(copy)

        async def is_told() -> bool:
            return any(info.id == "p" and info.code == "EpochRegression" for info in await at.client.agents())

        await until(is_told)
        with pytest.raises(EpochRegression, match="is gone"):
            await at.client.spawn(Wallet, "p")


async def test_a_store_that_comes_back_as_it_was_quarantines_nobody(tmp_path: Path) -> None:
    async with deployed(tmp_path, "node-1", "node-2") as at:
        purses = [await at.client.spawn(Wallet, f"p{n}") for n in range(4)]
        await asyncio.gather(*(purse.add(1) for purse in purses))
        await at.put_back(at.copied())
        assert await asyncio.gather(*(purse.add(1) for purse in purses)) == [2] * 4
        await at.client.migrate(purses[0], to="node-2")
        await at.nodes["node-1"].rounds.round()
        await at.nodes["node-2"].rounds.round()
        assert [info.state for info in await at.client.agents()] == ["Running"] * 4


async def test_a_leader_that_answers_for_a_moment_with_what_it_had_quarantines_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with deployed(tmp_path, "node-1") as at:
        purse = await at.client.spawn(Wallet, "p")
        await purse.add(1)
        before, stale = at.log.last, await at.log.last(log_subject("p"))
        await purse.add(1)
        asked = 0

        async def last(subject: str) -> Entry | None:
            nonlocal asked
            asked += subject == log_subject("p")
            return stale if subject == log_subject("p") and asked < 4 else await before(subject)

        monkeypatch.setattr(at.log, "last", last)
        at.nodes["node-1"].quarantine.suspect("p", at.nodes["node-1"].activations.live["p"].fold.seq)

        async def is_through() -> bool:
            return asked >= 4 and "p" not in at.nodes["node-1"].quarantine

        await until(is_through)
        assert await purse.add(1) == 3
        assert (await load(at.log, "p")).epoch == 1


async def test_a_paused_agent_is_quarantined_and_a_quarantined_one_moves_as_such(tmp_path: Path) -> None:
    async with deployed(tmp_path, "node-1", "node-2") as at:
        purse = await at.client.on("node-1").spawn(Wallet, "p")
        await purse.add(1)
        await at.client.pause(purse)
        copy = at.copied()
        await at.client.resume(purse)
        await purse.add(1)
        await at.put_back(copy)
        await quarantined(at, "p")
        await shows(at, "p", "EpochRegression")
        await at.client.migrate(purse, to="node-2" if (await at.client.owner("p"))[0] == "node-1" else "node-1")
        assert await shows(at, "p", "EpochRegression")


# ---- a file ----------------------------------------------------------------------------------------------------


async def test_a_file_that_is_an_older_copy_is_not_opened_until_the_loss_is_accepted(tmp_path: Path) -> None:
    store, copy = tmp_path / "store.db", tmp_path / "copy.db"
    async with cells.local(path=store) as cluster:
        await (await cluster.spawn(Wallet, "p")).add(1)
    shutil.copy(store, copy)
    async with cells.local(path=store) as cluster:
        await cluster.get(Wallet, "p").add(10)
    shutil.copy(copy, store)
    for _ in range(2):
        with pytest.raises(EpochRegression, match="older copy"):
            async with cells.local(path=store):
                pytest.fail("it was opened")
    (tmp_path / "store.db.lock").unlink()
    async with cells.local(path=store) as cluster:
        assert await cluster.get(Wallet, "p").add(1) == 2


def test_a_file_that_lost_what_a_killed_process_had_acknowledged_is_not_opened(tmp_path: Path) -> None:
    """As after a power cut: the note beside the file is on the disk, and the end of the file is not."""
    store = tmp_path / "store.db"
    code = (
        "import asyncio, os, sys\nfrom mielin_cells.substrate.embedded import Embedded\n"
        "async def main():\n    store = await Embedded.open(sys.argv[1])\n"
        "    for n in range(9): await store.log.append('a', b'x' * 5000)\n    os._exit(0)\nasyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(store)], check=True, timeout=WAIT_S)
    wal = Path(f"{store}-wal")
    wal.write_bytes(wal.read_bytes()[:-4000])
    with pytest.raises(EpochRegression, match="had acknowledged entry 9 and ends at 8"):
        asyncio.run(Embedded.open(store))


async def test_nothing_is_acknowledged_into_a_file_that_is_not_in_its_place(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    opened = await Embedded.open(store)
    await opened.log.append("a", b"1")
    store.rename(tmp_path / "away.db")
    with pytest.raises(StoreCorrupt, match="while it was open"):
        await opened.log.append("a", b"2")
    (tmp_path / "away.db").rename(store)
    assert await opened.log.append("a", b"2") == Appended(3)
    await opened.close()


# ---- records are missing -----------------------------------------------------------------------------------------


async def test_a_missing_record_in_the_middle_of_a_log_quarantines_the_agent(tmp_path: Path) -> None:
    store = tmp_path / "first.db"
    async with deployed(tmp_path, "node-1") as at:
        purse = await at.client.spawn(Wallet, "p")
        for _ in range(5):
            await purse.add(1)
    rows_removed(store, log_subject("p"), 3)
    async with deployed(tmp_path, "node-1", "node-2") as at:
        assert "Restore a backup" in await shows(at, "p", "JournalGap")
        with pytest.raises(JournalGap):
            await at.client.get(Wallet, "p").add(1)
        for node in at.nodes.values():
            with pytest.raises((JournalGap, cells.errors.Fenced)):
                await node.claims.claim(requests.Claim("p", "an operator", force=True))
        with pytest.raises(StateUnloadable, match="missing"):
            await at.client.resume("p")


async def test_an_inbox_that_lost_its_tail_quarantines_the_agent_and_a_resume_takes_what_comes(tmp_path: Path) -> None:
    store = tmp_path / "first.db"
    async with deployed(tmp_path, "node-1") as at:
        purse = await at.client.spawn(Wallet, "p")
        for _ in range(5):
            await purse.add(1)
        cursor = at.nodes["node-1"].activations.live["p"].fold.ledger.cursor
    rows_removed(store, inbox_subject("p"), -1, -2)
    async with deployed(tmp_path, "node-1") as at:
        assert isinstance(await find_inbox_regression(at.log, "p", cursor), EpochRegression)
        assert "acknowledged messages" in await quarantined(at, "p")
        await shows(at, "p", "EpochRegression")
        await at.client.resume("p")
        assert await at.client.get(Wallet, "p").add(1) == 6
        assert await find_inbox_regression(at.log, "p", (await load(at.log, "p")).ledger.cursor) is None


async def test_a_journal_that_lost_its_tail_ends_as_gave_up(tmp_path: Path) -> None:
    first = await Embedded.open(tmp_path / "j.db")

    def writer(store: Embedded) -> JournalWriter:
        home = NodeContext(
            "node-1", 1, store.log, store.wire, Random(1), lambda: 1.0, QUICK, "", lambda activation, error: None
        )
        return JournalWriter(home, "p", "m-1")

    writing = writer(first)
    await writing.write(lambda h: Planned(**h, source="node-1", target="node-2", epoch=1, config={}))
    await first.close()
    (tmp_path / "older.db").write_bytes((tmp_path / "j.db").read_bytes())
    again = await Embedded.open(tmp_path / "j.db")
    goes_on = writer(again)
    goes_on.fold = await journals.read(again.log, "p", "m-1")
    await goes_on.write(lambda h: Ended(**h, outcome="completed", target="node-2"))
    ended_at = goes_on.fold.seq
    await again.close()
    older = await Embedded.open(tmp_path / "older.db")
    late = writer(older)
    late.fold = await journals.read(older.log, "p", "m-1")
    late.fold.seq = ended_at  # what a process that lives remembers
    with pytest.raises(EpochRegression, match="m-1"):
        await late.write(lambda h: Cancelled(**h))
    found = await journals.read(older.log, "p", "m-1")
    assert isinstance(found.end, Ended)
    assert (found.end.outcome, found.end.code) == ("gave_up", "EpochRegression")
    await older.close()


async def test_a_journal_without_its_beginning_or_with_a_gap_is_unreadable(tmp_path: Path) -> None:
    store = await Embedded.open(tmp_path / "j.db")
    home = NodeContext(
        "node-1", 1, store.log, store.wire, Random(1), lambda: 1.0, QUICK, "", lambda activation, error: None
    )
    for name in ("m-1", "m-2"):
        writer = JournalWriter(home, "p", name)
        await writer.write(lambda h: Planned(**h, source="node-1", target="", epoch=1, config={}))
        await writer.write(lambda h: Cancelled(**h))
        await writer.write(lambda h: Ended(**h, outcome="rolled_back", target=""))
    await store.close()
    rows_removed(tmp_path / "j.db", journal_subject("p", "m-1"), 0)
    rows_removed(tmp_path / "j.db", journal_subject("p", "m-2"), 1)
    store = await Embedded.open(tmp_path / "j.db")
    found, trouble = await journals.all_of(store.log)
    assert found == []
    assert [(name, error.code) for name, error in trouble] == [("m-1", "JournalGap"), ("m-2", "JournalGap")]
    await store.close()
