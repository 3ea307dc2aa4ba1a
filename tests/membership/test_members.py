"""The log of the members: what its records make of the table, and how appends to it are decided."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from mielin_cells.errors import CellError, RecordInvalid, UnknownNode
from mielin_cells.log.codec import framed
from mielin_cells.log.ids import MEMBERS
from mielin_cells.membership import table as tables
from mielin_cells.membership.announcement import Announcement
from mielin_cells.membership.members import (
    IMAGE_RECORDS,
    NOBODY,
    AnyRecord,
    Cordoned,
    Doubted,
    Forgotten,
    Joined,
    Leads,
    Left,
    Loads,
    Serving,
    Status,
    Suspected,
    Table,
    decode_record,
    encode_record,
)
from mielin_cells.membership.standing import check_standing
from mielin_cells.membership.table import Members
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Appended, Entry, Outcome, Unknown


def folded(*records: AnyRecord | None) -> Table:
    table = Table()
    for record in records:
        table.apply(table.seq + 1, record)
    return table


def joined(name: str, incarnation: int = 1) -> Joined:
    return Joined(name, incarnation, b"")


@pytest.mark.parametrize(
    ("records", "status"),
    [
        ([], Status.JOINED),
        ([Serving("a", 1)], Status.SERVING),
        ([Serving("a", 1, is_starting=True)], Status.JOINED),
        ([Serving("a", 1), Suspected("a", 1, 9)], Status.SUSPECTED),
        ([Suspected("a", 1, 9), Serving("a", 1)], Status.SERVING),
        ([Doubted("a", 1, 9)], Status.DOUBTED),
        ([Left("a", 1), Serving("a", 1)], Status.LEFT),
        ([Suspected("a", 1, 9), joined("a", 2)], Status.JOINED),
        ([joined("a", 2), Suspected("a", 1, 9)], Status.JOINED),  # for the silence of the earlier one
        ([joined("a", 2), Left("a", 1)], Status.JOINED),
        ([Serving("a", 1), joined("a", 1)], Status.SERVING),
    ],
)
def test_what_the_records_say_of_a_node(records: list[AnyRecord], status: Status) -> None:
    assert folded(joined("a"), *records).members["a"].status is status


def test_a_cordon_outlives_the_processes_of_a_node() -> None:
    table = folded(joined("a"), Cordoned("a", 1), Left("a", 1), joined("a", 2))
    assert table.members["a"].is_cordoned
    assert not folded(joined("a"), Cordoned("a", 1), Cordoned("a", 1, is_cordoned=False)).members["a"].is_cordoned


def test_an_incarnation_is_never_given_again() -> None:
    table = folded(joined("a", 5), Left("a", 5), Forgotten("a", 5, 9))
    assert (table.members, table.next_incarnation("a"), table.next_incarnation("b")) == ({}, 6, 6)
    table = folded(joined("a"), None)  # what cannot be read may have given one
    assert table.next_incarnation("a") == 3


@pytest.mark.parametrize("record", [joined("a", 2), Left("a", 1), Forgotten("a", 1, 3)])
def test_nobody_leads_once_the_leader_is_gone(record: AnyRecord) -> None:
    table = folded(joined("a"), Serving("a", 1), Leads("a", 1))
    assert (table.leader, table.term) == (("a", 1), 3)
    table.apply(4, record)
    assert table.leader == NOBODY


def test_the_first_two_that_serve_are_deputies_and_one_that_restarts_comes_last() -> None:
    names = "abcd"
    table = folded(*(joined(name) for name in names), *(Serving(name, 1) for name in names), Leads("b", 1))
    assert (table.watchers, table.deputies) == (["b", "a", "c"], ["a", "c"])
    table.apply(20, joined("a", 2))
    table.apply(21, Serving("a", 2))
    assert table.deputies == ["c", "d"]
    table.apply(22, Suspected("c", 1, 9))
    assert table.deputies == ["d", "a"]


def test_an_image_is_the_table() -> None:
    about = Announcement(classes={"C": 2}, labels={"zone": "eu"}, cores=4)
    table = folded(
        Joined("a", 1, b"n", about), joined("z", 9), Serving("a", 1, 7), Leads("a", 1), Cordoned("z", 9), Left("z", 9),
        joined("gone", 3), Forgotten("gone", 3, 4), Loads("a", 1, 4, {"a": 40, "nobody": 3}),
    )  # fmt: skip
    again = Table()
    again.apply(100, table.image())
    assert again.members == table.members
    assert list(again.members) == list(table.members)
    assert (again.leader, again.term, again.floor, again.seq) == (("a", 1), 4, 3, 100)
    assert again.members["a"].agents == 40


def test_records_of_newer_versions_are_read_as_far_as_this_one_knows_them() -> None:
    newer = ["Joined", "a", 3, b"n", {"classes": {"C": 1}, "gpus": 8}, "more"]
    record = decode_record(framed(msgspec.msgpack.encode(newer)), "here")
    assert record == Joined("a", 3, b"n", Announcement(classes={"C": 1}))
    with pytest.raises(RecordInvalid):
        decode_record(framed(msgspec.msgpack.encode(["Promoted", "a", 1])), "here")
    assert decode_record(framed(msgspec.msgpack.encode(["Joined", "a", 1, b""])), "here") == joined("a")


@pytest.mark.parametrize(
    ("record", "is_refused"),
    [
        (Serving("owner", 1), True),
        (joined("owner", 2), True),
        (Suspected("owner", 1, 9), False),
        (Doubted("owner", 1, 9), False),
        (Left("owner", 1), False),
        (Forgotten("owner", 1, 9), False),
    ],
)
def test_nobody_claims_from_a_node_that_serves(record: AnyRecord, is_refused: bool) -> None:
    table = folded(joined("me"), joined("owner"), record)
    try:
        check_standing(table, "me", "owner")
    except CellError:
        assert is_refused
    else:
        assert not is_refused


@pytest.mark.parametrize("record", [Suspected("me", 1, 9), Doubted("me", 1, 9), Left("me", 1)])
def test_a_node_that_is_suspected_claims_from_nobody(record: AnyRecord) -> None:
    table = folded(joined("me"), joined("owner"), Suspected("owner", 1, 9), record)
    with pytest.raises(CellError):
        check_standing(table, "me", "owner")


# ---- appends -------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def store() -> AsyncIterator[Embedded]:
    substrate = await Embedded.open(None)
    yield substrate
    await substrate.close()


async def test_after_a_conflict_a_record_is_decided_anew(store: Embedded) -> None:
    leader, node = Members(store.log), Members(store.log)
    await tables.enter(node, "a", Announcement(), b"1")
    await leader.read()
    await tables.enter(node, "a", Announcement(), b"2")
    assert not await leader.try_append(Suspected("a", 1, 0))
    assert leader.table.members["a"].incarnation == 2  # it has read on, and may not say the same again
    assert (await Members(store.log).read()).members["a"].status is Status.JOINED


class Unsure:
    """A log whose first appends have an unknown outcome, stored or not."""

    def __init__(self, store: Embedded, *, stored: list[bool]) -> None:
        self._log = store.log
        self._stored = stored

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    async def append(self, subject: str, data: bytes, expect: int | None = None) -> Outcome:
        if not self._stored or self._stored.pop(0):
            outcome = await self._log.append(subject, data, expect)
            return outcome if not self._stored else Unknown("lost")
        return Unknown("lost")


@pytest.mark.parametrize("stored", [[True, True], [False, True], [False, False, True]])
async def test_an_unknown_outcome_is_settled_by_reading_on(store: Embedded, stored: list[bool]) -> None:
    members = Members(Unsure(store, stored=stored))  # type: ignore[arg-type]
    entered = await tables.enter(members, "a", Announcement(), b"mine")
    assert (entered.incarnation, entered.nonce) == (1, b"mine")
    entries = await store.log.read(MEMBERS)
    assert [type(decode_record(entry.data, "")) for entry in entries] == [Joined]


async def test_two_processes_of_one_name_have_two_incarnations_and_the_later_one_stays(store: Embedded) -> None:
    given = await asyncio.gather(*(tables.enter(Members(store.log), "a", Announcement(), b"%d" % n) for n in range(8)))
    assert len({one.nonce for one in given}) == 8 or max(one.incarnation for one in given) == 8
    table = await Members(store.log).read()
    assert table.members["a"].incarnation == 8


async def test_a_table_is_followed_over_a_trimmed_log(store: Embedded) -> None:
    writer, late = Members(store.log), Members(store.log)
    await tables.enter(writer, "a", Announcement(), b"1")
    await writer.try_append(Leads("a", 1))
    await late.read()
    for n in range(IMAGE_RECORDS):
        await writer.try_append(Serving("a", 1, n))
    assert writer.table.is_long
    seq = await writer.try_append(writer.table.image())
    await writer.trim(seq)
    await writer.try_append(Serving("a", 1, 7))
    for reader in (late, Members(store.log)):
        table = await reader.read_to_end()
        assert (table.seq, table.members, table.leader) == (writer.table.seq, writer.table.members, ("a", 1))
        assert not table.is_long


async def test_a_store_that_was_put_back_is_read_again(store: Embedded) -> None:
    members, other = Members(store.log), Members(store.log)
    await tables.enter(other, "a", Announcement(), b"1")
    members.table.apply(1000, joined("b"))
    table = await members.read_to_end()
    assert list(table.members) == ["a"]
    assert await members.try_append(Serving("a", 1))


async def test_a_record_that_comes_while_the_end_is_asked_for_is_not_taken_for_a_store_that_was_put_back(
    store: Embedded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    members, settled = Members(store.log), store.log.settled
    await tables.enter(members, "a", Announcement(), b"1")

    async def slow(subject: str) -> Entry | None:
        last = await settled(subject)
        await members.try_append(Serving("a", 1))
        return last

    monkeypatch.setattr(store.log, "settled", slow)
    table = await members.read_to_end()
    assert table is members.table
    assert table.members["a"].status is Status.SERVING
    assert "put back" not in caplog.text


async def test_a_follower_sees_each_record(store: Embedded) -> None:
    members, other, seen = Members(store.log), Members(store.log), list[int]()
    following = asyncio.create_task(members.follow(lambda table: seen.append(table.seq)))
    await tables.enter(other, "a", Announcement(), b"1")
    await other.try_append(Serving("a", 1))
    async with asyncio.timeout(30):
        while members.table.seq < other.table.seq:
            await asyncio.sleep(0.01)
    following.cancel()
    assert members.table.members == other.table.members
    assert seen[-1] == other.table.seq


async def test_a_node_that_is_not_there_is_not_cordoned(store: Embedded) -> None:
    with pytest.raises(UnknownNode):
        await tables.cordon(store.log, "nobody", True)


async def test_what_no_version_wrote_is_skipped(store: Embedded) -> None:
    await tables.enter(Members(store.log), "a", Announcement(), b"1")
    await store.log.append(MEMBERS, b"rubbish")
    outcome = await store.log.append(MEMBERS, encode_record(Serving("a", 1)))
    assert isinstance(outcome, Appended)
    assert (await Members(store.log).read()).members["a"].status is Status.SERVING
