"""What is given to a cluster, a class or a setting and cannot be meant: refused at once, by name and range."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import mielin_cells as cells
from mielin_cells import errors
from mielin_cells.agents.spec import spec_of
from mielin_cells.log.delta import born
from mielin_cells.migration import RecoveryConfig


class Jar(cells.Agent):
    size: int = 1
    labels: set[str] = set()
    notes: dict[str, int] = {}
    pages: cells.Table[str, int] = cells.Table()

    @cells.handler
    async def read(self) -> int:
        return self.size


class Vessel(cells.Agent, abc.ABC):
    @cells.handler
    @abc.abstractmethod
    async def fill(self) -> None: ...


ODD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "Agent itself": (lambda c: c.spawn(cells.Agent, "j"), "is not an agent class; define `class Name"),
    "a name for a class": (lambda c: c.spawn("Jar", "j"), "'Jar' is not an agent class"),
    "another class": (lambda c: c.spawn(int, "j"), "is not an agent class"),
    "a reference for a class": (lambda c: c.spawn(c.get(Jar, "j"), "j"), "is not an agent class"),
    "an abstract class": (lambda c: c.spawn(Vessel, "j"), "Vessel is abstract: fill is not defined"),
    "an id that is a number": (lambda c: c.spawn(Jar, 5), "An agent id is text, not int"),
    "state without names": (lambda c: c.spawn(Jar, "j", 5), "given by name, as field=value"),
    "on a number": (lambda c: c.on(5).spawn(Jar, "j"), "5 can be the name of no node"),
    "get of another class": (lambda c: c.get(int, "j"), "is not an agent class"),
    "get of a number": (lambda c: c.get(Jar, 5), "An agent id is text, not int"),
    "get of an abstract class": (lambda c: c.get(Vessel, "j"), "No agent can be of Vessel"),
    "migrate of a number": (lambda c: c.migrate(5), "An agent id is text, not int"),
    "migrate of a class": (lambda c: c.migrate(Jar), "An agent id is text, not type"),
    "migrate to a number": (lambda c: c.migrate("k", to=5), "5 can be the name of no node"),
    "migrate with odd wishes": (lambda c: c.migrate("k", recovery={"max_retries": "x"}), "max_retries = 'x'"),
    "claim to nothing": (lambda c: c.claim("k", to=""), "'' can be the name of no node"),
    "copies that are text": (lambda c: c.standby("k", copies="5"), "'5' copies of an agent are out of range"),
    "copies below 0": (lambda c: c.standby("k", copies=-1), "-1 copies of an agent are out of range"),
    "drain with a text": (lambda c: c.drain("node-1", deadline_s="x"), "deadline_s = 'x' cannot be"),
    "cordon of a number": (lambda c: c.cordon(5), "5 can be the name of no node"),
}


@pytest.mark.parametrize("odd", ODD)
async def test_wrong_arguments_of_cluster_calls_are_refused_with_a_sentence(odd: str) -> None:
    call, says = ODD[odd]
    async with cells.local() as cluster:
        await cluster.spawn(Jar, "k")
        with pytest.raises(cells.UsageError, match=says):
            await call(cluster)
        assert [info.id for info in await cluster.agents()] == ["k"]


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"recovery": 5}, "recovery is a dict of RecoveryConfig's fields, and not 5"),
    ({"polcy": None}, "there is no option 'polcy'; there are version, name, recovery, policy, standby"),
    ({"policy": {}}, "policy is a cells.Policy"),
    ({"standby": "1"}, "standby = '1' is not a whole number"),
]


@pytest.mark.parametrize(("options", "says"), OPTIONS)
def test_an_option_of_a_class_that_cannot_be_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(cells.UsageError, match=says):
        type("Wrong", (cells.Agent,), {}, **options)


def test_a_base_of_the_authors_may_take_options_of_its_own() -> None:
    class Tagged:
        tag = ""

        def __init_subclass__(cls, *, tag: str = "", **rest: Any) -> None:
            super().__init_subclass__(**rest)
            cls.tag = tag

    class Crate(cells.Agent, Tagged, tag="red", version=2): ...

    assert (Crate.tag, spec_of(Crate).version) == ("red", 2)


OPENED: list[tuple[dict[str, Any], str]] = [
    ({"settings": {"tries": 5}}, "settings must be a cells.Settings"),
    ({"recovery": {"max_retries": 3}}, "recovery must be a RecoveryConfig"),
    ({"recovery": RecoveryConfig(max_retries="3")}, "max_retries = '3' is out of range"),  # type: ignore[arg-type]
    ({"progress": 5}, "progress must be callable with each event; 5 is not"),
    ({"path": 5}, "path is 5; wanted: the store's file"),
    ({"nodes": "2"}, "nodes = '2' is out of range"),
    ({"nodes": True}, "nodes = True is out of range"),
    ({"nodes": 1.0}, "nodes = 1.0 is out of range"),
    ({"sync": "x"}, "sync is 'x'"),
]


@pytest.mark.parametrize(("given", "says"), OPENED)
async def test_wrong_arguments_for_opening_a_cluster_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(cells.UsageError, match=says):
        async with cells.local(**given):
            raise AssertionError("it was opened")


RETRIES: list[tuple[dict[str, Any], str, str]] = [
    ({"first_s": "1"}, "first_s", "0 to 1e\\+09 seconds"),
    ({"first_s": float("nan")}, "first_s", "0 to 1e\\+09 seconds"),
    ({"max_s": None}, "max_s", "0 to 1e\\+09 seconds"),
    ({"max_s": True}, "max_s", "0 to 1e\\+09 seconds"),
    ({"tries": "3"}, "tries", "a whole number from 1"),
    ({"tries": 0}, "tries", "a whole number from 1"),
    ({"on": OSError}, "on", "a tuple of exception classes"),
]


@pytest.mark.parametrize(("given", "field", "wanted"), RETRIES)
def test_a_retry_that_cannot_be_names_the_field_and_its_range(given: dict[str, Any], field: str, wanted: str) -> None:
    with pytest.raises(cells.ConfigError, match=rf"Retry\({field}=.*{wanted}") as refused:
        cells.Retry(**given)
    assert refused.value.field == field


# ---- a spawn of what exists ------------------------------------------------------------------------------------


async def test_a_spawn_of_an_existing_agent_with_other_state_says_that_it_is_not_used() -> None:
    async with cells.local() as cluster:
        jar = await cluster.spawn(Jar, "j", size=5, labels={"a", "b"})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await cluster.spawn(Jar, "j")  # says nothing of the state
            await cluster.spawn(Jar, "j", size=5, labels={"b", "a"})
            await cluster.on("node-1").spawn(Jar, "j", labels={"a", "b"}, size=5)
        for again in (
            cluster.spawn(Jar, "j", size=6),
            cluster.on("node-1").spawn(Jar, "j", pages=cells.Table({"x": 1})),
        ):
            with pytest.warns(
                cells.errors.AlreadySpawned, match=r"'j' exists already, .*given now \((size|pages)\) is not used"
            ):
                assert await again == jar
        assert await jar.read() == 5


async def test_the_initial_state_of_an_agent_is_remembered_after_a_snapshot() -> None:
    async with cells.local(settings=cells.Settings(snapshot_records=2)) as cluster:
        jar = await cluster.spawn(Jar, "j", size=5)
        for _ in range(8):
            await jar.read()
        with pytest.warns(cells.errors.AlreadySpawned):
            await cluster.spawn(Jar, "j", size=6)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await cluster.spawn(Jar, "j", size=5)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"labels": {"a", "b", "c"}}, {"labels": {"c", "b", "a"}}, True),
        ({"notes": {"a": 1, "b": 2}}, {"notes": {"b": 2, "a": 1}}, True),
        ({"pages": {"a": 1, "b": 2}}, {"pages": {"b": 2, "a": 1}}, True),
        ({"size": 12}, {"size": 21}, False),
        ({"notes": {"a": 1, "b": 2}}, {"notes": {"a": 2, "b": 1}}, False),
        ({"pages": {"a": 1}}, {"pages": {"a": 2}}, False),
        ({"labels": {"a"}}, {}, False),
    ],
)
def test_the_digest_of_an_initial_state_sees_values_and_no_order(one: Any, other: Any, same: bool) -> None:
    spec = spec_of(Jar)
    assert (born(spec.initial(**one)) == born(spec.initial(**other))) is same


# ---- names that look like errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith(("Error", "Failed", "Refused"))])
def test_every_public_error_name_can_be_caught(name: str) -> None:
    assert issubclass(getattr(errors, name), Exception)
    assert getattr(cells, name, None) in (None, getattr(errors, name))


async def test_errors_of_an_order_to_move_are_migration_errors() -> None:
    async with cells.local() as cluster:
        await cluster.spawn(Jar, "j")
        for call in (
            lambda: cluster.migrate("j", to="node-1"),
            lambda: cluster.abort("j"),
            lambda: cluster.rollback("m-0"),
        ):
            with pytest.raises(cells.MigrationError):
                await call()


async def test_a_report_of_a_move_that_failed_can_be_raised() -> None:
    async with cells.local(nodes=2, recovery=RecoveryConfig(max_retries=0)) as cluster:
        jar = await cluster.spawn(Jar, "j")
        report = await cluster.migrate(jar)
        assert report.check() is report

        class Stubborn(cells.Agent):
            async def on_depart(self) -> None:
                raise ValueError("I stay")

        await cluster.on("node-1").spawn(Stubborn, "s")
        failed = await cluster.migrate("s")
        with pytest.raises(cells.MigrationFailed, match="'s' was not moved from node-1 .*I stay.*It is safe") as raised:
            failed.check()
        assert (raised.value.agent, raised.value.migration) == ("s", failed.migration)
        assert isinstance(raised.value, cells.MigrationError)
