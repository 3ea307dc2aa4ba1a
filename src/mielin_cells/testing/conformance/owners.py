"""Checks of ownership records: one expectation for all entries of an agent's log, trims that keep owner and end, and the index."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mielin_cells.substrate.ports import Appended, Conflict, Entry, Log, Substrate
from mielin_cells.testing.conformance import kit
from mielin_cells.testing.conformance.kit import check, contend, must, read_tail, store

POLL_S = 0.01


async def own(log: Log, subject: str, owner: str, expect: int | None = None) -> int:
    """Appends an ownership record, which must succeed; the sequence."""
    outcome = await log.append(subject, f"to {owner}".encode(), expect, owner)
    if not isinstance(outcome, Appended):
        raise AssertionError(f"An ownership record for {subject} was answered {outcome}.")
    return outcome.seq


async def _shows(log: Log, owner: str, wanted: list[str], why: str) -> list[str]:
    """`owned` may be late, so it is asked until it says all of `wanted`; what it says then."""
    try:
        async with asyncio.timeout(kit.WAIT_S):
            while not {*wanted} <= {*(owned := await log.owned(owner))}:
                await asyncio.sleep(POLL_S)
            return owned
    except TimeoutError:
        raise AssertionError(why) from None


@check
async def entries_of_both_kinds_are_one_log(substrate: Substrate) -> None:
    log, seqs = substrate.log, list[int]()
    wanted = list[Entry]()
    for n, owner in enumerate((b"a", None, None, b"b", None, b"a", b"", None)):
        data = b"%d" % n
        expect = seqs[-1] if seqs else 0
        outcome = await log.append("log.k", data, expect, owner.decode() if owner is not None else None)
        if not isinstance(outcome, Appended):
            raise AssertionError(f"Expecting the last sequence, whatever kind of entry has it, was answered {outcome}.")
        seqs.append(outcome.seq)
        wanted.append(Entry(outcome.seq, data))
        must(await log.last("log.k") == wanted[-1], "`last` is not the last of both kinds.")
        must(await log.settled("log.k") == wanted[-1], "`settled` is not the last of both kinds.")
    await store(log, "log.kk", b"another's", 0)
    must(await log.read("log.k") == wanted, "A read does not give both kinds, in order.")
    for at, entry in enumerate(wanted):
        must(await log.read("log.k", entry.seq, 2) == wanted[at + 1 : at + 3], f"A read of two after entry {at}.")
        must(await log.read("log.k", entry.seq, 1) == wanted[at + 1 : at + 2], f"A read of one after entry {at}.")
    must(await read_tail(log, "log.k", 0, len(wanted)) == wanted, "A tail does not give both kinds, in order.")
    lasts = await log.lasts(["log.k", "log.none", "log.kk"])
    must(lasts["log.k"] == wanted[-1] and lasts.keys() == {"log.k", "log.kk"}, "`lasts` is not the last of both kinds.")
    listed = await log.subjects("log.k")
    must(listed == [("log.k", seqs[-1]), ("log.kk", lasts["log.kk"].seq)], "`subjects` does not give each log once.")


@check
async def a_live_tail_gives_both_kinds_without_gap(substrate: Substrate) -> None:
    """Started between appends that come without waiting, one after another."""
    log, count = substrate.log, 120
    first = await own(log, "log.t", "a", 0)
    following = asyncio.create_task(read_tail(log, "log.t", 0, count + 1))
    wanted = [Entry(first, b"to a")]
    for n in range(count):
        data, last = b"%d" % n, wanted[-1].seq
        outcome = await log.append("log.t", data, last if n % 5 else None, f"n{n % 3}" if n % 4 == 0 else None)
        if not isinstance(outcome, Appended):
            raise AssertionError(f"An append was answered {outcome}.")
        wanted.append(Entry(outcome.seq, data))
    must(await following == wanted, "A tail that runs along has a gap, a repeat, or another order.")


@check
async def one_contender_wins_each_place_whatever_it_appends(substrate: Substrate) -> None:
    """Ownership records of several nodes and other records contend under one expectation: one `Appended` each."""
    await contend(substrate.log, [f"log.c{n}" for n in range(20)], 3, lambda n: None if n % 3 == 0 else f"n{n}")


@check
async def an_entry_of_either_kind_moves_the_place_of_the_other(substrate: Substrate) -> None:
    log = substrate.log
    created = await own(log, "log.e", "a", 0)
    record = await store(log, "log.e", b"record", created)
    for stale in (0, created):
        for owner in (None, "a", "b"):
            outcome = await log.append("log.e", b"stale", stale, owner)
            must(isinstance(outcome, Conflict), f"Expecting {stale} of a log that ends at {record}: {outcome}.")
    claimed = await own(log, "log.e", "b", record)
    for owner in (None, "a", "b"):
        outcome = await log.append("log.e", b"stale", record, owner)
        must(isinstance(outcome, Conflict), f"Expecting {record} of a log that ends at {claimed}: {outcome}.")
    must([entry.seq for entry in await log.read("log.e")] == [created, record, claimed], "What was refused was stored.")


@check
async def a_trim_of_a_log_keeps_its_end_and_its_owner(substrate: Substrate) -> None:
    log = substrate.log
    seqs = [await own(log, "log.m", "a", 0)]
    for n in range(4):
        seqs.append(await store(log, "log.m", b"%d" % n, seqs[-1]))
    seqs.append(await own(log, "log.m", "b", seqs[-1]))
    for n in range(4, 8):
        seqs.append(await store(log, "log.m", b"%d" % n, seqs[-1]))

    await log.trim("log.m", seqs[3])
    left = [entry.seq for entry in await log.read("log.m")]
    must(left == seqs[3:], "A trim removed too much, or left the first ownership record, which is not the last one.")
    await log.trim("log.m", seqs[8])
    left = [entry.seq for entry in await log.read("log.m")]
    must(left == [seqs[5], *seqs[8:]], "A trim removed the last ownership record, or too little.")
    await log.trim("log.m", seqs[-1] + 100)
    left = [entry.seq for entry in await log.read("log.m")]
    must(left == [seqs[5], seqs[-1]], "A trim of everything must leave the last ownership record and the last entry.")
    for stale in (0, seqs[5], seqs[-2]):
        must(isinstance(await log.append("log.m", b"stale", stale), Conflict), "A trim has opened the fence.")
    claimed = await own(log, "log.m", "c", seqs[-1])
    await log.trim("log.m", claimed + 1)
    must(
        [entry.seq for entry in await log.read("log.m")] == [claimed], "A trim of all but the end, which is the owner."
    )
    must(isinstance(await log.append("log.m", b"stale", seqs[-1]), Conflict), "A trim has opened the fence.")
    await store(log, "log.m", b"next", claimed)


@check
async def logs_are_found_by_their_owner(substrate: Substrate) -> None:
    """In time, whatever the node's name."""
    log = substrate.log
    for owner in ("n", "n.1", "N 2", "_", "*", ">", "ø"):
        wanted = [f"log.o{len(owner.encode())}{ord(owner[0])}x{n}" for n in range(3)]
        for subject in wanted:
            await store(log, subject, b"record", await own(log, subject, owner, 0))
        owned = await _shows(log, owner, wanted, f"The logs that {owner!r} owns are not found.")
        must(owned == wanted, f"{owner!r} is told of logs that never named it.")
    must(await log.owned("nobody") == [], "A node that no log has named owns something.")

    after = 0
    for owner in ("one", "two", "one", "two", ""):
        after = await own(log, "log.moves", owner, after)
        await _shows(log, owner, ["log.moves"], "The owner that a log names last is not found.")


@check
async def many_logs_of_one_owner_are_all_found(substrate: Substrate) -> None:
    log = substrate.log
    wanted = [f"log.w{n:04}" for n in range(2400)]
    for start in range(0, len(wanted), 200):
        await asyncio.gather(*(own(log, name, "w", 0) for name in wanted[start : start + 200]))
    owned = await _shows(log, "w", wanted, "Of many logs of one owner some are not found.")
    must(owned == wanted, "Many logs of one owner are not in order of name.")


@check
async def an_owner_is_found_after_trims(substrate: Substrate) -> None:
    log = substrate.log
    created = await own(log, "log.f", "a", 0)
    handed = await own(log, "log.f", "b", await store(log, "log.f", b"record", created))
    end = await store(log, "log.f", b"record", handed)
    await log.trim("log.f", end + 1)
    await _shows(log, "b", ["log.f"], "After a trim the owner's log is not found.")
    await log.forget_owned("b", "log.f", handed)
    await _shows(log, "b", ["log.f"], "A hint was forgotten although no record after it named another node.")
    await log.forget_owned("a", "log.f", handed)
    must("log.f" not in await log.owned("a"), "A former owner is found although it asked to be forgotten.")
    await own(log, "log.f", "a", end)
    await _shows(log, "a", ["log.f"], "An owner that was forgotten is not found when it owns again.")
    await log.forget_owned("a", "log.f", handed)
    await _shows(log, "a", ["log.f"], "A newer hint was forgotten by an older sequence.")


@check
async def a_settled_list_lacks_nothing_that_was_acknowledged(substrate: Substrate) -> None:
    """Asked at once after the record, each time: it is not enough that the index comes there in the end."""
    log, owned = substrate.log, list[str]()
    for n in range(40):
        owned.append(f"log.s{n:02}")
        await own(log, owned[-1], "s", 0)
        must(await log.owned("s", "settled index") == owned, "A settled list lacks a log, or has one that is nobody's.")
        must(await log.owned("s", "logs") == owned, "A list by the logs lacks a log, or has one that is nobody's.")
    names = [f"log.t{n}" for n in range(120)]
    await asyncio.gather(*(own(log, name, "t", 0) for name in names))
    both = await asyncio.gather(*(log.owned("t", "settled index") for _ in range(4)), log.owned("t", "logs"))
    must(all(one == sorted(names) for one in both), "A settled list lacks a log that was acknowledged before.")
    there = [name for name, _ in await log.subjects("log.") if "=" in name]
    must(there == [], "`subjects` has a log that is nobody's.")
    must(await log.owned("nobody", "settled index") == [], "A node that no log has named owns something.")
    must(await log.mend_owned() == 0, "An index was made anew that lacks nothing.")


@check
async def the_last_owner_is_found_by_the_logs_after_trims(substrate: Substrate) -> None:
    log = substrate.log
    handed = await own(log, "log.l", "b", await own(log, "log.l", "a", 0))
    end = await store(log, "log.l", b"record", handed)
    await log.trim("log.l", end + 1)
    must("log.l" in await log.owned("b", "logs"), "After a trim the owner's log is not found by the logs.")
    await log.forget_owned("b", "log.l", handed)
    must("log.l" in await log.owned("b", "logs"), "What the index forgets is not found by the logs.")


@check
async def the_logs_that_name_others_are_found(substrate: Substrate) -> None:
    """At once, also if the index has forgotten them; without those that name none but the nodes, or nobody.  One in which no record
    names an owner is found with any nodes."""
    log = substrate.log
    wanted = [f"log.y{number:03}" for number in range(300)]
    await asyncio.gather(*(own(log, name, f"y{number % 3}", 0) for number, name in enumerate(wanted)))
    handed = await own(log, "log.yz", "ø.1", await own(log, "log.yz", "y0", 0))
    await store(log, "log.yz", b"record", handed)
    await own(log, "log.y-ended", "", await own(log, "log.y-ended", "y0", 0))

    async def others(*nodes: str) -> list[str]:
        found = await log.owned_by_others(nodes)
        must(found == sorted(set(found)), "The logs are not in order of name, or one is there twice.")
        must(not [name for name in found if "=" in name], "`owned_by_others` has a log that is nobody's.")
        return [name for name in found if name.startswith("log.y")]

    must(await others("y0", "y1", "y2") == ["log.yz"], "The log that names another node is not found alone.")
    await store(log, "log.yy", b"record", 0)
    must(await others("y0", "y1", "y2") == ["log.yy", "log.yz"], "A log without an ownership record is not found.")
    must(
        [name for name in await others("y0", "ø.1") if name[:6] not in ("log.yy", "log.yz")]
        == [name for number, name in enumerate(wanted) if number % 3],
        "Of the logs that name other nodes some are not found, or some are found that name none.",
    )
    must({*wanted, "log.yz"} <= {*await others()}, "Without nodes, not all logs are found.")
    await log.forget_owned("y1", wanted[1], 1 << 60)
    must(wanted[1] in await others("y0"), "What the index forgets is not found.")


@check
async def a_record_that_names_an_owner_is_heard_by_it(substrate: Substrate) -> None:
    log = substrate.log
    heard: dict[str, list[str | None]] = {owner: [] for owner in ("n", "n.1", "ø", "")}
    hearing = [log.hear_owned(owner, heard[owner].append) for owner in heard]
    again: list[str | None] = []
    second = log.hear_owned("n", again.append)
    await _until(lambda: True)
    subject, after = "log.h-1", 0
    for owner in ("n", "n.1", "ø", "", "n"):
        before = len(heard[owner])
        after = await own(log, subject, owner, after)
        await _until(lambda owner=owner, before=before: heard[owner][before:] == [subject])  # type: ignore[misc]
    await store(log, subject, b"a record", after)
    await _until(lambda: again == [subject, subject])
    hearing[0].close()
    hearing[0].close()
    await own(log, "log.h-2", "n", 0)
    await _until(lambda: "log.h-2" in again)
    must(
        heard == {"n": [subject, subject], "n.1": [subject], "ø": [subject], "": [subject]},
        "An owner heard what does not name it, or heard after it had closed.",
    )
    for one in (*hearing, second):
        one.close()


async def _until(is_so: Callable[[], bool]) -> None:
    try:
        async with asyncio.timeout(kit.WAIT_S):
            await asyncio.sleep(POLL_S)
            while not is_so():
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError("A record that names an owner was not heard.") from None
