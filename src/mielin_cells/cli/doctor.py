"""`mielin doctor`: what a power cut would lose, and which settings of the store lose or stop what agents need."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mielin_cells.cli.link import log_to_stderr
from mielin_cells.cli.show import Printer, record
from mielin_cells.deployment.codes import DONE, FAILED, code_of
from mielin_cells.errors import CellError, ConfigError
from mielin_cells.substrate.health import Health, judged

if TYPE_CHECKING:
    from mielin_cells.cli.app import Server


def run(path: Path | None, server: Server, fix: bool, replicas: int | None, shards: int | None) -> int:
    """The exit code: 0 if nothing is wrong (there may be warnings), 1 if something is, or if the store cannot be looked at."""
    from mielin_cells.deployment import connect, local

    log_to_stderr(logging.CRITICAL)
    printer = Printer(server.json)
    try:
        _check(path, fix, replicas, shards)
        if path is not None:
            facts = asyncio.run(local.inspected(path))
        else:
            address = server.address()
            if fix:
                changed = asyncio.run(connect.replicated(replace(address, replicas=replicas)))
                told = {name: {"from": before, "to": after} for name, (before, after) in changed.items()}
                printer.show({"event": "fixed", "replicas": told}, lambda: _fixed(changed))
            facts = asyncio.run(connect.inspected(address))
    except CellError as error:
        printer.fail(error)
        return code_of(error)
    found = judged(facts)
    printer.show(found, lambda: _text(found))
    return DONE if found.is_well else FAILED


def _check(path: Path | None, fix: bool, replicas: int | None, shards: int | None) -> None:
    """Raises `ConfigError` for what cannot be changed, or not so."""
    if shards is not None:
        raise ConfigError(
            "The number of shards is fixed when a deployment is made, since it says in which stream each agent is; make another "
            "deployment with --deployment and --shards.", field="shards", range="of a new deployment",
        )  # fmt: skip
    if fix and path is not None:
        raise ConfigError(
            "--fix changes a server's streams; a file has nothing to change.", field="fix", range="without --path"
        )
    if replicas is not None and not fix:
        raise ConfigError(
            "--replicas goes with --fix, which changes their number.", field="replicas", range="with --fix"
        )


def _fixed(changed: dict[str, tuple[int, int]]) -> str:
    if not changed:
        return "nothing was changed: the replicas are what they can be\n"
    lines = [f"{name}: {before} -> {after} replicas" for name, (before, after) in changed.items()]
    return "\n".join([*lines, "new copies are filled now; `mielin doctor` tells of those that are behind", ""])


def _text(found: Health) -> str:
    names = ["where", "kind", "version"]
    names += ["deployment", "servers", "shards", "replicas"] if found.kind == "nats" else ["replicas"]
    plain = {name: getattr(found, name) for name in (*names, "storage", "sync")}
    lines = [found.power_cut, "", record(plain)]
    lines += ["", *(f"{finding.level}: {finding.what}" for finding in found.findings)] if found.findings else []
    return "\n".join(lines)
