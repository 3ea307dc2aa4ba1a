"""Measuring a machine and the sensors of an app: what fails is named, what hangs stops nothing, and it costs next to nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import mielin_cells as cells
from mielin_cells.deployment.facts.machine import Disk, Machine
from mielin_cells.deployment.facts.measuring import Measuring
from mielin_cells.deployment.facts.probe import Probe
from mielin_cells.errors import ConfigError
from mielin_cells.policy.facts import Facts
from mielin_cells.policy.sensors import sensors
from mielin_cells.sensors import Sensor, sensor


def wait_until(condition: Callable[[], Any], limit_s: float = 10.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@contextmanager
def measuring(*read: Sensor, cost: float | None = None) -> Iterator[Measuring]:
    one = Measuring(lambda: read, every_s=0.02, cost_per_hour=cost)
    one.start()
    try:
        yield one
    finally:
        one.stop()


def quick(name: str, read: Callable[[], Any], timeout_s: float = 5.0) -> Sensor:
    return Sensor(name=name, read=read, every_s=0.01, timeout_s=timeout_s)


def test_the_machine_is_measured_and_what_it_does_not_have_is_absent() -> None:
    machine = Machine()
    facts = machine.read()
    assert facts.cpu is not None
    assert facts.memory is not None
    assert 0 <= facts.memory <= 100
    assert facts.memory_free_bytes
    assert facts.load is not None
    for name in ("agents", "waiting", "oldest_s", "slots", "cost_per_hour", "store_ms"):
        assert facts.get(name) is None
    disk = Disk(".").read()
    assert disk.disk is not None
    assert disk.disk_free_bytes


def test_a_machine_without_battery_and_thermometers_says_nothing_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    machine = Machine()
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)
    facts = machine.read()
    assert (facts.battery, facts.mains, facts.temperature_c) == (None, None, None)
    monkeypatch.delattr(psutil, "sensors_battery")
    monkeypatch.delattr(psutil, "sensors_temperatures")
    assert machine.read().temperature_c is None


def test_a_measure_costs_a_thousandth_of_a_core_at_most() -> None:
    """It measures once a second.  The quickest of ten rounds counts: what else the processors do makes others slower."""
    machine, rounds = Machine(), list[float]()
    for _ in range(10):
        before = time.thread_time()
        for _ in range(10):
            machine.read()
        rounds.append((time.thread_time() - before) / 10)
    assert min(rounds) < 0.001


def test_what_costs_more_is_read_less_often() -> None:
    calls = 0

    def busy() -> int:
        nonlocal calls
        calls += 1
        until = time.thread_time() + 0.002
        while time.thread_time() < until:
            pass
        return calls

    probe = Probe[int]("busy", busy, 0.001, 5.0)
    probe.start()
    wait_until(lambda: calls == 1)
    time.sleep(0.5)
    assert calls == 1  # its next one comes after 4 s
    probe.stop()


def test_sensors_are_facts_and_one_named_like_a_measured_fact_replaces_it() -> None:
    async def later() -> str:
        await asyncio.sleep(0)
        return "b"

    own = quick("fan", lambda: 3), quick("rack", later), quick("battery", lambda: 14), quick("nothing", lambda: None)
    with measuring(*own, cost=0.25) as one:
        wait_until(lambda: one.facts().sensors.keys() == {"fan", "rack"})
        wait_until(lambda: one.facts().cpu is not None and one.facts().disk is not None)
        facts = one.facts()
        assert facts.sensors == {"fan": 3, "rack": "b"}
        assert (facts.battery, facts.cost_per_hour, facts.failing) == (14.0, 0.25, {})


class Odd:
    def __repr__(self) -> str:
        raise KeyError("no")


def _exits() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (lambda: 1 / 0, "raised ZeroDivisionError"),
        (_exits, "raised SystemExit: 3"),
        (lambda: [1], "returned list [1]; wanted: a number"),
        (lambda: float("nan"), "wanted: a finite number"),
        (lambda: 10**400, "wanted: a finite number"),
        (Odd, "a Odd whose text cannot be read (KeyError)"),
        (lambda: dict[str, int]()["x"], "raised KeyError"),
    ],
)
def test_a_sensor_that_fails_is_named_and_the_others_go_on(read: Callable[[], Any], says: str) -> None:
    with measuring(quick("bad", read), quick("fan", lambda: 3)) as one:
        wait_until(lambda: one.facts().failing and one.facts().sensors)
        facts = one.facts()
        assert facts.sensors == {"fan": 3}
        assert says in facts.failing["bad"]


def test_a_measured_fact_that_its_sensor_cannot_give_is_absent() -> None:
    with measuring(quick("cpu", lambda: "much"), quick("mains", lambda: 1)) as one:
        wait_until(lambda: len(one.facts().failing) == 2 and one.facts().memory is not None)
        assert (one.facts().cpu, one.facts().mains) == (None, None)


def test_a_sensor_that_hangs_is_named_its_fact_goes_and_nothing_waits_for_it() -> None:
    goes, works = threading.Event(), 1

    def hangs() -> int:
        nonlocal works
        if works:
            works -= 1
            return 7
        goes.wait()
        return 8

    with measuring(quick("gpu", hangs, timeout_s=0.1), quick("fan", lambda: 3)) as one:
        wait_until(lambda: one.facts().failing.get("gpu") == "has not answered for 0.1 s")
        assert one.facts().sensors == {"fan": 3}
        goes.set()
        wait_until(lambda: one.facts().sensors.get("gpu") == 8)
        assert one.facts().failing == {}


def test_a_failure_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mielin_cells.facts")
    calls = 0

    def sometimes() -> int:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise OSError("no device")
        return calls

    with measuring(quick("fan", sometimes)):
        wait_until(lambda: "works again" in caplog.text)
    assert caplog.text.count("fan raised OSError: no device") == 1


def test_threads_end_when_measuring_stops() -> None:
    with measuring(quick("ends", lambda: 1)) as one:
        wait_until(lambda: one.facts().sensors)
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "facts-ends"])


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "2x"},
        {"name": "a b"},
        {"name": ""},
        {"every_s": 0},
        {"timeout_s": -1.0},
        {"every_s": True},
        {"read": 3},
    ],
)
def test_a_sensor_that_cannot_be_is_refused_where_it_is_declared(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Sensor(**{"name": "fan", "read": lambda: 1, **bad})


async def test_a_local_deployment_has_the_sensors_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mielin_cells.deployment.local.LOCAL_S", 0.01)

    @sensor("test_measuring_fan", every_s=0.01)
    def fan() -> int:
        return 3

    try:
        async with cells.local(settings=cells.Settings(reconcile_s=0.05)) as cluster, asyncio.timeout(60):
            while True:
                [info] = await cluster.nodes()
                told = cluster.members.table.members.get("node-1")  # type: ignore[attr-defined]
                facts = told.facts if told is not None else Facts()
                if info.facts.sensors.get("test_measuring_fan") == 3 and facts.cpu is not None:
                    break
                await cluster.members.read()  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
            assert facts.sensors == {"test_measuring_fan": 3}
    finally:
        del sensors["test_measuring_fan"]
