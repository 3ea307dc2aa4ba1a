"""Fault injection as users have it: what a fault does, how often, and how it is written on a command line."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
from support.moving import Counter, nodes

import mielin_cells as cells
from mielin_cells.agents.reference import classes
from mielin_cells.node.node import Node
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.ports import Appended, Unknown
from mielin_cells.testing.faults import DEFAULT, STEPS, Fault, Faults, FaultySubstrate, Kind, faulty, parsed

CLOSE_S = 120


@pytest.fixture
async def substrate() -> AsyncIterator[Embedded]:
    opened = await Embedded.open()
    yield opened
    await opened.close()


def view(substrate: Embedded, *faults: Fault) -> tuple[FaultySubstrate, Faults]:
    found = Faults(1, *faults)
    return faulty(substrate, found, "node-1"), found


def test_the_same_seed_makes_the_same_faults_and_they_are_counted() -> None:
    def drawn(seed: int) -> list[bool]:
        faults = Faults(seed, Fault("prepare", Kind.REFUSE, 0.3))
        found = [faults.at("prepare") is not None for _ in range(200)]
        assert faults.counts["prepare", "refuse"] == sum(found)
        return found

    assert drawn(1) == drawn(1) != drawn(2)
    assert 30 < sum(drawn(1)) < 90


def test_a_fault_is_capped_and_may_be_for_one_node() -> None:
    faults = Faults(0, Fault("probe", Kind.REFUSE, most=2, node="node-3"))
    assert [faults.at("probe", node) is not None for node in ("node-3", "node-1", "node-3", "node-3")] == [
        True, False, True, False,
    ]  # fmt: skip


def test_a_crash_ends_the_process_at_its_step() -> None:
    ended = []
    faults = Faults(0, Fault("handed_off", Kind.CRASH))
    faults.crash = lambda: ended.append(True)
    faults.at("committed")
    assert not ended
    faults.at("handed_off")
    assert ended


async def test_a_lost_answer_is_unknown_and_the_entry_is_there(substrate: Embedded) -> None:
    faulted, _ = view(substrate, Fault("inbox", Kind.LOSE_ANSWER, most=1))
    assert isinstance(await faulted.log.append("inbox.a", b"x", 0), Unknown)
    assert [entry.data for entry in await faulted.log.read("inbox.a")] == [b"x"]
    assert isinstance(await faulted.log.append("inbox.a", b"y"), Appended)


async def test_a_dropped_append_is_unknown_and_never_there(substrate: Embedded) -> None:
    faulted, _ = view(substrate, Fault("inbox", Kind.DROP, delay_s=0))
    assert isinstance(await faulted.log.append("inbox.a", b"x", 0), Unknown)
    assert await faulted.log.read("inbox.a") == []


async def test_a_process_stops_before_an_append_or_after_it(substrate: Embedded) -> None:
    faulted, faults = view(substrate, Fault("inbox", Kind.STOP, most=1), Fault("inbox", Kind.STOP_AFTER, most=1))
    stops = 0

    def stop() -> None:
        nonlocal stops
        stops += 1

    faults.stop = stop
    assert isinstance(await faulted.log.append("inbox.a", b"x", 0), Appended)
    assert faults.counts == {("inbox", "stop"): 1}
    assert isinstance(await faulted.log.append("inbox.a", b"y", 1), Appended)
    assert stops == 2
    assert [entry.data for entry in await substrate.log.read("inbox.a")] == [b"x", b"y"]


async def test_a_corrupted_read_changes_one_bit_on_the_way_and_nothing_that_is_stored(substrate: Embedded) -> None:
    faulted, _ = view(substrate, Fault("read", Kind.CORRUPT, most=1))
    await faulted.log.append("inbox.a", b"\x00" * 64)
    [entry] = await faulted.log.read("inbox.a")
    assert sum(byte.bit_count() for byte in entry.data) == 1
    assert [entry.data for entry in await faulted.log.read("inbox.a")] == [b"\x00" * 64]


async def test_a_node_that_is_unreachable_answers_late(substrate: Embedded) -> None:
    faulted, _ = view(substrate, Fault("node-1", Kind.UNREACHABLE, delay_s=0.2))

    async def answer(data: bytes) -> bytes:
        return data

    await faulted.wire.serve("control.node-1", answer)
    with pytest.raises(cells.errors.WireTimeout):
        await substrate.wire.request("control.node-1", b"x", 0.05)
    await asyncio.sleep(0.2)
    assert await substrate.wire.request("control.node-1", b"y", 1.0) == b"y"


def test_faults_are_read_from_a_command_line() -> None:
    faults = parsed("prepare:refuse:0.2, node-2:unreachable:10s,probe:refuse:1:25@node-3").faults
    assert faults == (
        Fault("prepare", Kind.REFUSE, 0.2), Fault("node-2", Kind.UNREACHABLE, delay_s=10.0),
        Fault("probe", Kind.REFUSE, 1.0, 25, node="node-3"),
    )  # fmt: skip
    assert parsed("default").faults == parsed(DEFAULT).faults


@pytest.mark.parametrize(
    "text",
    [
        "",
        "prepare",
        "prepare:explode",
        "prepare:refuse:x",
        "prepare:refuse:2",
        ":drop",
        "inbox:drop:1:2:3",
        ":unreachable",
    ],
)
def test_a_fault_that_cannot_be_read_is_refused_with_what_is_wanted(text: str) -> None:
    with pytest.raises(cells.ConfigError):
        parsed(text)


def test_a_fault_that_could_never_be_injected_is_refused() -> None:
    with pytest.raises(cells.ConfigError, match="no step 'handover' that could fail; there are .*handed_off") as caught:
        parsed("prepare:refuse:0.2,handover:lose_answer")
    assert caught.value.field == "step"
    for most in (-1, 0):
        with pytest.raises(cells.ConfigError, match=f"prepare:refuse is to be injected at most {most} times"):
            parsed(f"prepare:refuse:1:{most}")
    with pytest.raises(cells.ConfigError, match="no step 'node-2'"):
        Fault("node-2", Kind.DROP)


async def test_every_step_that_a_move_passes_is_known() -> None:
    passed = set[str]()

    class Notes(Faults):
        def at(self, step: str, node: str = "") -> None:
            passed.add(step)

    async with nodes("node-2") as (cluster, running):
        opened = type("Opened", (), {"log": cluster.log, "wire": cluster.wire})
        seen = faulty(opened, Notes(1), "node-1")  # type: ignore[arg-type]  # what a node uses of a substrate
        node = running["node-1"] = Node("node-1", seen.log, seen.wire, classes.get, rng=Random(1), wall=time.time)
        await node.start()
        counter = await cluster.on("node-1").spawn(Counter, "c")
        await counter.add(1)
        assert (await cluster.migrate(counter, to="node-2")).ok

    assert passed - STEPS == set()
    assert {"members", "created", "committed", "handed_off", "journal", "ask_prepare", "ask_copy"} <= passed


def test_the_job_with_faults_ends_with_zeros_and_tells_what_failed(tmp_path: Path) -> None:
    events, report = tmp_path / "events.csv", tmp_path / "report.json"
    head = "time_hour,carrier,flight,tailnum,origin,dest,dep_delay,arr_delay,air_time,distance\n"
    rows = [f"t{n},UA,{n},N{n % 40},EWR,D{n % 7},2,{n % 60 - 10},9,{100 + n % 900}\n" for n in range(1500)]
    events.write_text(head + "".join(rows))
    spec = "prepare:refuse:0.3,read:corrupt:0.1,handed_off:lose_answer:0.1,probe:refuse:0.1"
    mielin = str(Path(sys.executable).with_name("mielin"))
    options = ["--events", str(events), "--migrations", "20", "--faults", spec, "--json", str(report), "--sync", "lazy"]
    done = subprocess.run([mielin, "demo", *options], capture_output=True, text=True, timeout=CLOSE_S, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(report.read_text())
    assert (found["lost"], found["duplicated"], found["mismatched"], found["migrations"]["gave_up"]) == (0, 0, 0, 0)
    assert found["migrations"]["completed"] + found["migrations"]["rolled_back"] == 20
    assert found["failures"] or found["reasons"], found  # on a slow machine moves may be refused before they begin
    assert found["recoveries"] > 0 or not found["failures"], found
