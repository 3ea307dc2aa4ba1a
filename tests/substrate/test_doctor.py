"""`mielin doctor`: what it says of stores of every kind, and which traps it sees."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any, Literal

import pytest
from support.commands import run
from support.nats_servers import nats_server, opened, raw_client

from mielin_cells.deployment import local
from mielin_cells.deployment.connect import FOLDER, Address
from mielin_cells.errors import ConfigError, JetStreamDisabled, StoreCorrupt
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.health import WARNING, WRONG, Facts, StreamFacts, judged
from mielin_cells.substrate.jetstream import JetStream

GOOD: dict[str, Any] = {
    "storage": "file", "retention": "limits", "discard": "new", "max_age": 0, "max_msgs": -1, "max_bytes": -1,
    "max_msgs_per_subject": -1, "max_msg_size": -1, "num_replicas": 1, "allow_direct": True, "deny_delete": True,
    "republish": {"src": "a"}, "duplicate_window": 10**9,
}  # fmt: skip

DOWN = {"leader": "a", "replicas": [{"name": "b", "current": False, "offline": True}]}


def server(config: dict[str, Any] | None = None, state: dict[str, Any] | None = None, **over: Any) -> Facts:
    stream = StreamFacts("mielin-log-0", {**GOOD, **(config or {})}, state or {}, over.pop("cluster", None))
    base: dict[str, Any] = {"kind": "nats", "where": "here", "version": "2.15.1", "sync_s": 0.0, "payload_max": 1 << 20}
    return Facts(**{**base, "streams": [stream], **over})


# ---- what is said, pure --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (server(), "loses nothing that was acknowledged"),
        (
            server(sync_s=120.0),
            "at most the last 2 minutes of acknowledged work of this server: sync_interval is the default",
        ),
        (server(sync_s=10.0), "at most the last 10 seconds"),
        (server(sync_s=None), "sync_interval cannot be seen from here"),
        (server({"num_replicas": 3}, sync_s=120.0), "fewer than 2 of the 3 servers"),
        (server({"num_replicas": 3}, sync_s=0.0), "loses nothing"),
        (server({"storage": "memory"}), "loses everything"),
        (server({"persist_mode": "async"}), "persist_mode is async"),
        (Facts(kind="memory", where="here"), "loses everything"),
        (Facts(kind="sqlite", where="here", sync_s=0.0), "loses nothing"),
        (Facts(kind="sqlite", where="here", sync_s=30.0), "the end of the process loses nothing"),
        (Facts(kind="sqlite", where="here"), "cannot be seen from here"),
    ],
)
def test_the_loss_in_a_power_cut_is_described_in_one_sentence(facts: Facts, says: str) -> None:
    sentence = judged(facts).power_cut
    assert says in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_a_healthy_server_has_no_findings() -> None:
    assert judged(server()).findings == []
    assert judged(server()).is_well


@pytest.mark.parametrize(
    ("facts", "level", "says"),
    [
        (server({"retention": "interest"}), WRONG, "retention"),
        (server({"discard": "old"}), WRONG, "discard is old"),
        (server({"max_age": 5}), WRONG, "max_age"),
        (server({"max_msgs": 9}), WRONG, "max_msgs:"),
        (server({"max_msgs_per_subject": 9}), WRONG, "max_msgs_per_subject"),
        (server({"max_msg_size": 1000}), WRONG, "max_msg_size"),
        (server({"allow_direct": False}), WRONG, "allow_direct"),
        (server({"sealed": True}), WRONG, "sealed"),
        (server({"mirror": {"name": "x"}}), WRONG, "another stream"),
        (server({"republish": None}), WRONG, "republishes nothing"),
        (server({"storage": "memory"}), WRONG, "memory"),
        (server({"persist_mode": "async"}), WRONG, "async"),
        (server({"max_bytes": 1000}, {"bytes": 850}), WARNING, "85% full"),
        (server({"max_bytes": 1000}, {"bytes": 990}), WRONG, "99% full"),
        (server(account={"storage": 99, "limits": {"max_storage": 100}}), WRONG, "account's storage"),
        (server(state={"lost": {"msgs": [4, 5], "bytes": 9}}), WRONG, "lost 2 records"),
        (server({"deny_delete": False}), WARNING, "deny_delete"),
        (server({"deny_purge": True}), WARNING, "deny_purge"),
        (server({"allow_rollup_hdrs": True}), WARNING, "rollup"),
        (server({"allow_msg_ttl": True}), WARNING, "ttl"),
        (server({"duplicate_window": 10**12}), WARNING, "duplicate_window"),
        (server(version="2.11.9"), WRONG, "2.12.0 or newer"),
        (server(version="2.12.1"), WARNING, "2.14"),
        (server(payload_max=1000), WRONG, "max_payload"),
        (server(missing=["mielin-part-0"]), WRONG, "mielin-part-0"),
        (Facts(kind="nats", where="x", version="2.15.1", payload_max=1 << 20, missing=["a"]), WARNING, "no deployment"),
        (server(clock_s=-3.0), WARNING, "3.0 s behind"),
        (server(sync_s=120.0), WARNING, "sync_interval: always"),
        (server({"num_replicas": 3}, sync_s=120.0), WARNING, "together with a partition"),
        (server(in_cluster=True), WARNING, "one replica on a cluster"),
        (server({"num_replicas": 3}, in_cluster=True, cluster={"leader": ""}), WRONG, "no leader"),
        (server({"num_replicas": 2}, in_cluster=True, cluster={"leader": "a"}), WARNING, "even number"),
        (server({"num_replicas": 3}, in_cluster=True, cluster=DOWN), WARNING, "offline"),
        (Facts(kind="sqlite", where="x", troubles=["It is damaged."]), WRONG, "damaged"),
    ],
)  # fmt: skip
def test_a_trap_is_seen_and_named(facts: Facts, level: str, says: str) -> None:
    found = judged(facts)
    matching = [finding for finding in found.findings if says in finding.what]
    assert [finding.level for finding in matching] == [level]
    assert all(finding.what.endswith(".") for finding in found.findings)
    assert found.is_well == (level != WRONG)


# ---- a file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sync", "synchronous"), [("process", "normal"), ("power", "full")])
async def test_a_file_is_looked_at_while_it_is_open(
    tmp_path: Path, sync: Literal["process", "power"], synchronous: str
) -> None:
    store = await Embedded.open(tmp_path / "s.db", sync=sync)
    await store.log.append("a", b"1")
    found = judged(await local.inspect(tmp_path / "s.db"))
    assert found.sync == f"journal_mode wal, synchronous {synchronous}"
    assert found.is_well
    await store.close()
    assert judged(await local.inspect(tmp_path / "s.db")) == found


async def test_a_file_that_is_an_older_copy_is_wrong_and_the_command_says_so(tmp_path: Path) -> None:
    for n in range(2):
        store = await Embedded.open(tmp_path / "s.db")
        await store.log.append("a", b"1")
        await store.close()
        if n == 0:
            shutil.copy(tmp_path / "s.db", tmp_path / "copy.db")
    shutil.copy(tmp_path / "copy.db", tmp_path / "s.db")
    done = run(tmp_path, "doctor", "--path", "s.db")
    assert done.returncode == 1
    assert "wrong: It had acknowledged entry 2 and ends at 1" in done.stdout


async def test_a_file_that_is_not_a_store_is_refused_and_not_touched(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE t(a)")
    other.close()
    (tmp_path / "text.db").write_text("no database " * 100)
    with pytest.raises(ConfigError):
        await local.inspect(tmp_path / "other.db")
    with pytest.raises(StoreCorrupt):
        await local.inspect(tmp_path / "text.db")
    with pytest.raises(ConfigError):
        await local.inspect(tmp_path / "none.db")
    assert sorted(os.listdir(tmp_path)) == ["other.db", "text.db"]


# ---- real servers --------------------------------------------------------------------------------------------


async def test_a_server_that_nobody_set_up_may_lose_two_minutes_and_nothing_is_made_there(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "server") as there:
        found = judged(await JetStream.inspected(there.url))
        assert "at most the last 2 minutes" in found.power_cut
        assert "cannot be seen from here" in found.power_cut
        assert [finding.level for finding in found.findings] == [WARNING]
        assert (
            judged(await JetStream.inspected(there.url)).findings == found.findings
        )  # the first look made no deployment
        async with opened(there.url, shards=2):
            told = run(tmp_path, "doctor", "--json", "--connect", there.url)
        assert told.returncode == 0, told
        value = json.loads(told.stdout)
        assert (value["kind"], value["replicas"], value["storage"]) == ("nats", 1, "file")
        assert [finding["level"] for finding in value["findings"]] == [WARNING]


async def test_traps_that_somebody_has_set_are_seen_and_the_exit_code_says_so(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "server") as there, opened(there.url), raw_client(there.url) as client:
        api = client.jetstream()
        info = await api.stream_info("mielin-log-0")
        changed = {**(info.config.as_dict()), "discard": "old", "max_bytes": 1_000_000, "max_age": 10**12}
        answer = await client.request("$JS.API.STREAM.UPDATE.mielin-log-0", json.dumps(changed).encode())
        assert "error" not in json.loads(answer.data)
        await api.delete_stream("mielin-part-0")
        done = run(tmp_path, "doctor", "--connect", there.url)
        assert done.returncode == 1
        for says in ("discard is old", "max_age", "mielin-part-0"):
            assert any(line.startswith("wrong:") and says in line for line in done.stdout.splitlines()), done.stdout


async def test_a_server_that_lets_it_be_asked_says_its_sync_interval(tmp_path: Path) -> None:
    subject = "$SYS.REQ.SERVER.PING.JSZ"
    accounts = {
        "SYS": {"users": [{"user": "sys", "password": "secret"}], "exports": [{"service": subject}]},
        "APP": {
            "users": [{"user": "app", "password": "secret"}], "jetstream": "enabled",
            "imports": [{"service": {"account": "SYS", "subject": subject}}],
        },
    }  # fmt: skip
    settings: dict[str, Any] = {"accounts": accounts, "system_account": "SYS"}
    for sync, says in (("always", "loses nothing"), ("10s", "at most the last 10 seconds")):
        jetstream = {"sync_interval": sync}
        async with nats_server(tmp_path / sync, jetstream=jetstream, **settings) as there, opened(there.url_of("app")):
            found = judged(await JetStream.inspected(there.url_of("app")))
            assert says in found.power_cut
            assert found.sync.endswith("(says the server)")
            assert "secret" not in str(found)


async def test_a_server_without_jetstream_is_an_error_by_name(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "server", jetstream=None) as there:
        with pytest.raises(JetStreamDisabled):
            await JetStream.inspected(there.url)
        done = run(tmp_path, "doctor", "--connect", there.url)
        assert done.returncode == 1
        assert "has no JetStream" in done.stderr
    done = run(tmp_path, "doctor", "--connect", there.url)  # gone
    assert done.returncode == 1
    assert "does not answer" in done.stderr


async def test_the_command_believes_what_mielin_up_has_left_about_its_server(tmp_path: Path) -> None:
    assert run(tmp_path, "doctor").returncode == 1  # no server is named
    (tmp_path / FOLDER).mkdir()
    async with nats_server(tmp_path / "server") as there:
        for sync, says in (("power", "loses nothing"), ("process", "at most the last 2 minutes")):
            Address(there.url, sync=sync).write(tmp_path / FOLDER)
            done = run(tmp_path, "doctor")
            assert done.returncode == 0
            assert says in done.stdout.splitlines()[0]
            assert "mielin up" in done.stdout
