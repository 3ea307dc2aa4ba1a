"""Running one command against a deployment: connect, work, print, and say by the exit code how it went."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from mielin_cells.cli.show import Printer
from mielin_cells.client.operator import Operator
from mielin_cells.deployment.codes import code_of
from mielin_cells.deployment.connect import connected
from mielin_cells.errors import CellError, NoSuchAgent, NoSuchMigration, UsageError
from mielin_cells.redaction import scrubbed

if TYPE_CHECKING:
    from mielin_cells.cli.app import Server

LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def operate(server: Server, work: Callable[[Operator, Printer], Coroutine[Any, Any, int]]) -> int:
    """The exit code.  Errors of this package are printed as one sentence, or with `--json` as an object."""
    log_to_stderr(logging.ERROR)
    printer = Printer(server.json)

    async def there() -> int:
        async with connected(server.address(), makes=False) as client:
            operator = Operator(client)
            try:
                return await work(operator, printer)
            except (NoSuchAgent, NoSuchMigration) as error:
                raise await _with_nearest(operator, error) from error

    try:
        return asyncio.run(there())
    except CellError as error:
        printer.fail(error)
        return code_of(error)


async def _with_nearest(operator: Operator, error: CellError) -> CellError:
    """The error, with what is there of a name like the one that is not."""
    wanted = str(error.facts.get("agent") or error.facts.get("migration") or "")
    with contextlib.suppress(CellError):
        near = await operator.nearest(wanted)
        if wanted in near:  # it is there, and has nothing of that kind
            return error
        if near:
            said = " or ".join(repr(name) for name in near)
            return type(error)(f"{error.message} Did you mean {said}?", **error.facts)
    return error


class _Formatter(logging.Formatter):
    """Addresses, also in tracebacks, are shown without what lets one in."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


def log_to_stderr(level: int) -> None:
    """Other packages' warnings always; ours from `level`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(LOG_FORMAT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("mielin_cells").setLevel(level)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # what it logs is raised, too, and translated there


def tell_of_store() -> None:
    """For what goes on: that the store does not answer, or lacks something, is told and not only waited out."""
    logging.getLogger("mielin_cells.jetstream").setLevel(logging.WARNING)


def readable(words: tuple[str, ...]) -> list[str]:
    """The words, if they are text.  Raises `UsageError` for bytes that are no UTF-8."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{word!r} is not text in UTF-8.") from None
    return list(words)
