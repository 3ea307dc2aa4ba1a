"""`mielin doctor`: what a power cut would lose, and which settings of the store lose or block what agents need."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mielin_cells.cli.command import finish
from mielin_cells.cli.options import ANY, HERE, Server, Streams
from mielin_cells.cli.show import Printer, record
from mielin_cells.deployment import connect, local
from mielin_cells.deployment.codes import DONE, FAILED
from mielin_cells.errors import ConfigError
from mielin_cells.substrate.health import Facts, Health, judged


def doctor(
    *,
    path: Annotated[Path | None, Parameter(help="Look at this SQLite file, and at no server.")] = None,
    fix: Annotated[
        bool,
        Parameter(
            help="First change the streams' replicas to --replicas, or to the default, and make a bad index of owners anew."
        ),
    ] = False,
    streams: Streams = ANY,
    server: Server = HERE,
) -> int:
    """Exits with 1 if something is wrong, and with 0 if there are only warnings."""

    def work(printer: Printer) -> int:
        _check(path, fix, streams)
        if path is not None:
            facts = asyncio.run(local.inspect(path))
        else:
            facts = asyncio.run(_inspect(printer, server, fix, streams.replicas))
        health = judged(facts)
        printer.show(health, lambda: _text(health))
        return DONE if health.is_well else FAILED

    return finish(server.json, work)


async def _inspect(printer: Printer, server: Server, fix: bool, replicas: int | None) -> Facts:
    address = server.address()
    if fix:
        changed = await connect.set_replicas(replace(address, replicas=replicas))
        value = {name: {"from": before, "to": after} for name, (before, after) in changed.items()}
        printer.show({"event": "fixed", "replicas": value}, lambda: _changes(changed))
    return await connect.inspect(address)


def _check(path: Path | None, fix: bool, streams: Streams) -> None:
    """Raises `ConfigError` for options that do not go together."""
    if streams.shards is not None:
        raise ConfigError(
            "The number of shards is fixed when a deployment is made, since it decides in which stream each agent is; make another "
            "deployment with --deployment and --shards.", field="shards", range="of a new deployment",
        )  # fmt: skip
    if fix and path is not None:
        raise ConfigError(
            "--fix changes a server's streams; a file has none. Leave --path out.", field="fix", range="without --path"
        )
    if streams.placement_tag:
        raise ConfigError(
            "Where a deployment's streams are is chosen when it is made; make another deployment with --deployment and "
            "--placement-tag.", field="placement_tags", range="of a new deployment",
        )  # fmt: skip
    if streams.replicas is not None and not fix:
        raise ConfigError("--replicas needs --fix, which changes their number.", field="replicas", range="with --fix")


def _changes(changed: dict[str, tuple[int, int]]) -> str:
    if not changed:
        return "nothing was changed: the number of replicas is right, and the index of owners is whole\n"
    lines = [
        f"{name}: {f'{before} -> {after} replicas' if before != after else 'made anew'}"
        for name, (before, after) in changed.items()
    ]
    return "\n".join([*lines, "the server fills new copies now; `mielin doctor` shows those that are behind", ""])


def _text(health: Health) -> str:
    names = ["where", "kind", "version"]
    names += ["deployment", "servers", "shards", "replicas"] if health.kind == "nats" else ["replicas"]
    lines = [health.power_cut, "", record({name: getattr(health, name) for name in (*names, "storage", "sync")})]
    lines += ["", *(f"{finding.level}: {finding.what}" for finding in health.findings)] if health.findings else []
    return "\n".join(lines)
