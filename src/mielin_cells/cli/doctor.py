"""`mielin doctor`: what a power cut would lose, and which settings of the store lose or stop what agents need."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mielin_cells.cli.codes import DONE, FAILED, code_of
from mielin_cells.cli.link import log_to_stderr
from mielin_cells.cli.show import Printer, record
from mielin_cells.core.health import Health, judged
from mielin_cells.errors import CellError

if TYPE_CHECKING:
    from mielin_cells.cli.app import Server


def run(path: Path | None, server: Server) -> int:
    """The exit code: 0 if nothing is wrong (there may be warnings), 1 if something is, or if the store cannot be looked at."""
    from mielin_cells.node import local, remote

    log_to_stderr(logging.CRITICAL)
    printer = Printer(server.json)
    try:
        if path is not None:
            facts = asyncio.run(local.inspected(path))
        else:
            facts = asyncio.run(remote.inspected(remote.find_address(server.connect, server.creds, server.tls_ca)))
    except CellError as error:
        printer.fail(error)
        return code_of(error)
    found = judged(facts)
    printer.show(found, lambda: _text(found))
    return DONE if found.is_well else FAILED


def _text(found: Health) -> str:
    plain = {name: getattr(found, name) for name in ("where", "kind", "version", "replicas", "storage", "sync")}
    lines = [found.power_cut, "", record(plain)]
    lines += ["", *(f"{finding.level}: {finding.what}" for finding in found.findings)] if found.findings else []
    return "\n".join(lines)
