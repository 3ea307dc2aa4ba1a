"""The crate's policy as a value."""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec
import pytest
from support.nodes import deployment

import mielin_cells as cells
from mielin_cells import Policy
from mielin_cells.client.client import Client
from mielin_cells.log.codec import pack
from mielin_cells.log.policy import DEFAULT
from mielin_cells.membership.announcement import Announcement
from mielin_cells.store.reader import load

ARM = Policy(preferred_architectures=("aarch64", "riscv64"))


class Buoy(cells.Agent, policy=ARM):
    count: int = 0

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count


def test_the_default_asks_for_nothing() -> None:
    policy = Policy()

    assert policy.preferred_architectures == ()
    assert not policy.decides
    assert policy == DEFAULT


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"preferred_architectures": ("",)}, "preferred_architectures"),
        # What would be written, and then strand the agent because nobody can read it.
        ({"preferred_architectures": "x86_64"}, "preferred_architectures"),
        ({"preferred_architectures": (1,)}, "preferred_architectures"),
        ({"preferred_architectures": None}, "preferred_architectures"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(given: dict[str, object], field: str) -> None:
    with pytest.raises(cells.ConfigError) as caught:
        Policy(**given)  # type: ignore[arg-type]  # wrong on purpose

    assert caught.value.field == field


def test_a_policy_without_triggers_has_the_bytes_that_it_had_before_there_were_any() -> None:
    """They are part of what a handover seals, and nodes of two versions hand over to each other."""
    assert pack(Policy()) == pack({"preferred_architectures": ()})
    assert pack(Policy(migration=None)) == pack(Policy())
    assert msgspec.convert({"preferred_architectures": []}, Policy) == Policy()
    with pytest.raises(cells.ConfigError, match="is no MigrationPolicy"):
        Policy(migration={})  # type: ignore[arg-type]  # wrong on purpose


def test_architectures_may_be_a_list() -> None:
    assert Policy(preferred_architectures=["x86_64"]) == Policy(preferred_architectures=("x86_64",))  # type: ignore[arg-type]  # of those who check no types


def test_a_class_has_a_policy_or_none() -> None:
    with pytest.raises(cells.UsageError, match="is a cells.Policy"):
        type("Raft", (cells.Agent,), {}, policy={"preferred_architectures": ["x86_64"]})


def test_it_travels_in_both_formats() -> None:
    policy = Policy(preferred_architectures=("aarch64", "x86_64"))

    assert msgspec.json.decode(msgspec.json.encode(policy), type=Policy) == policy
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(policy), type=Policy) == policy


def test_no_architecture_means_any() -> None:
    assert Policy().allows_architecture("riscv64")
    assert Policy(preferred_architectures=("x86_64",)).allows_architecture("x86_64")
    assert not Policy(preferred_architectures=("x86_64",)).allows_architecture("riscv64")


async def test_an_agent_is_moved_only_to_an_architecture_that_its_policy_wants() -> None:
    async with deployment() as made:
        client = made.client
        for name, architecture in (("node-1", "aarch64"), ("node-2", "x86_64"), ("node-3", "riscv64")):
            await made.start(name, about=Announcement(architecture=architecture))
        await client.on("node-1").spawn(Buoy, "p")
        assert (await client.show("p")).policy == ARM
        with pytest.raises(cells.MigrationRefused, match="x86_64"):
            await client.migrate("p", to="node-2")
        assert (await client.migrate("p", to="node-3")).ok
        assert (await load(client.log, "p")).policy == ARM


class Barge(cells.Agent, policy=Policy(preferred_architectures=("riscv64", platform.machine()))):
    count: int = 0

    @cells.handler
    async def add(self) -> int:
        self.count += 1
        return self.count


async def test_a_policy_is_in_snapshots_and_a_class_that_changes_its_mind_does_not_change_agents(
    tmp_path: Path,
) -> None:
    settings = cells.Settings(snapshot_records=4, retention_s=0)
    before = Barge.__mielin_policy__
    try:
        async with cells.local(path=tmp_path / "store.db", settings=settings) as cluster:
            probe = await cluster.spawn(Barge, "p")
            for _ in range(20):
                await probe.add()
        Barge.__mielin_policy__ = Policy()
        async with cells.local(path=tmp_path / "store.db", settings=settings) as cluster:
            assert await cluster.get(Barge, "p").add() == 21
            assert (await cluster.show("p")).policy == before
            assert isinstance(cluster, Client)
            fold = await load(cluster.log, "p")
            assert fold.snap > 0
            assert fold.policy == before
    finally:
        Barge.__mielin_policy__ = before
