"""A store that mielin-cells 0.1 made is refused, unchanged, with one sentence that says how to go on."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from support.commands import run
from support.nats_servers import list_streams, raw_client, refused

import mielin_cells as cells
from mielin_cells.errors import StoreIncompatible
from mielin_cells.substrate.embedded import Embedded
from mielin_cells.substrate.jetstream import JetStream
from mielin_cells.substrate.jetstream.server import Server

SAYS = "has format 1, which mielin-cells 0.1 wrote; this version reads format 4. Nothing was changed."


def old_file(path: Path) -> None:
    """The statements with which 0.1 made a file, and one entry in it."""
    with sqlite3.connect(path) as old:
        old.execute("PRAGMA journal_mode = WAL")
        old.execute("CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID")
        old.execute("CREATE TABLE entries(seq INTEGER PRIMARY KEY, subject TEXT NOT NULL, data BLOB NOT NULL)")
        old.execute("CREATE INDEX entries_by_subject ON entries(subject)")
        old.execute("PRAGMA application_id = 1835230572")
        old.executemany("INSERT INTO meta VALUES (?, ?)", (("format", 1), ("deployment", "ab" * 16), ("seq", 0)))
        old.execute("INSERT INTO entries VALUES (1, 'log.a', x'00')")
    old.close()


async def old_streams(url: str, deployment: str, *names: str) -> None:
    """The configuration with which 0.1 made a deployment's streams."""
    async with raw_client(url) as old:
        for name in names:
            kind, shard = name.split("-")
            subjects = f"{deployment}.{kind}.{shard}.>"
            config: dict[str, Any] = {
                "name": f"{deployment}-{name}", "subjects": [subjects], "storage": "file", "retention": "limits", "discard": "new",
                "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msg_size": -1, "num_replicas": 1,
                "allow_direct": True, "deny_delete": True, "duplicate_window": 1_000_000_000,
                "metadata": {"mielin.shards": "1", "mielin.format": "1"},
            }  # fmt: skip
            if kind == "log":
                config["republish"] = {"src": subjects, "dest": f"{deployment}.live.{shard}.>"}
            answer = await old.request(
                f"$JS.API.STREAM.CREATE.{deployment}-{name}", json.dumps(config).encode(), timeout=5
            )
            assert "error" not in json.loads(answer.data)


def check(error: cells.CellError, store: str, elsewhere: str) -> None:
    assert error.message == f"{store} {SAYS} Name {elsewhere}, or go on with mielin-cells 0.1."
    assert error.facts == {"store": store, "have": 1, "need": 4}


async def test_a_file_of_the_version_before_is_refused_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    old_file(path)
    before = path.read_bytes()

    with pytest.raises(StoreIncompatible) as opened:
        await Embedded.open(path)
    with pytest.raises(StoreIncompatible) as looked_at:
        await Embedded.inspected(path)
    with pytest.raises(cells.errors.StoreIncompatible):
        async with cells.local(path=path):
            pass

    check(opened.value, f"The store {str(path)!r}", "another file")
    check(looked_at.value, f"The store {str(path)!r}", "another file")
    assert path.read_bytes() == before


@pytest.mark.parametrize("there", [("part-0", "log-0"), ("part-0",)], ids=["whole", "half made"])
async def test_streams_of_the_version_before_are_refused_and_not_changed(
    there: tuple[str, ...], tmp_path: Path
) -> None:
    server = await Server.start(tmp_path)
    try:
        await old_streams(server.url, "old", *there)
        store = f"The stream old-{there[-1]}"
        refusal = await refused(JetStream.open(server.url, deployment="old"), StoreIncompatible)
        check(refusal, store, "another deployment (--deployment)")
        if len(there) > 1:
            check(
                await refused(JetStream.replicated(server.url, deployment="old", replicas=1), StoreIncompatible),
                store, "another deployment (--deployment)",
            )  # fmt: skip
        check(
            await refused(JetStream.inspected(server.url, deployment="old"), StoreIncompatible),
            store, "another deployment (--deployment)",
        )  # fmt: skip
        async with raw_client(server.url) as other:
            kept = {info.config.name: info.config.metadata or {} for info in await list_streams(other)}
        assert {name: metadata["mielin.format"] for name, metadata in kept.items()} == {f"old-{n}": "1" for n in there}
        async with cells.connect(server.url, deployment="new") as cluster:
            assert await cluster.nodes() == []
    finally:
        await server.stop()


async def test_commands_refuse_a_store_of_the_version_before_as_a_mistake_of_use(tmp_path: Path) -> None:
    old_file(tmp_path / "old.db")
    server = await Server.start(tmp_path / "server")
    try:
        await old_streams(server.url, "old", "part-0", "log-0")
        at = ("--connect", server.url, "--deployment", "old")
        (tmp_path / "app.py").write_text("import mielin_cells as cells\n\n\nclass Nothing(cells.Agent):\n    pass\n")
        for command in (
            ("doctor", "--path", str(tmp_path / "old.db")), ("doctor", *at), ("nodes", *at),
            ("node", "--name", "n", "--app", str(tmp_path / "app.py"), *at),
            ("up", "--app", str(tmp_path / "app.py"), "--dir", str(tmp_path / "d"), *at),
        ):  # fmt: skip
            done = run(tmp_path, *command)
            assert done.returncode == 2, command
            assert (done.stdout, done.stderr.count("\n")) == ("", 1), command
            assert SAYS in done.stderr, command
    finally:
        await server.stop()
