"""How a command runs: connect, do the work, print, and say by the exit code how it went."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, cast, get_type_hints

from mielin_cells.cli.options import HERE, Server
from mielin_cells.cli.show import Printer
from mielin_cells.client.operator import Operator
from mielin_cells.deployment.codes import REFUSED, code_of
from mielin_cells.deployment.connect import connected
from mielin_cells.errors import CellError, NoSuchAgent, NoSuchMigration, UsageError
from mielin_cells.redaction import scrubbed

P = ParamSpec("P")
LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class Command(Protocol[P]):
    """A command as cyclopts calls it, with the options of `Server`; `work` is what it does with an open client."""

    work: Callable[Concatenate[Operator, Printer, P], Coroutine[Any, Any, int]]

    def __call__(self, *args: Any, **options: Any) -> int: ...


def command(work: Callable[Concatenate[Operator, Printer, P], Coroutine[Any, Any, int]]) -> Command[P]:
    """The command that connects and then does `work`, which takes an operator, a printer, and the command's parameters."""

    def run(*args: Any, server: Server = HERE, **options: Any) -> int:
        return operate(server, lambda operator, printer: work(operator, printer, *args, **options))

    hints = get_type_hints(work, include_extras=True)
    own = list(inspect.signature(work).parameters.values())[2:]
    parameters = [parameter.replace(annotation=hints[parameter.name]) for parameter in own]
    parameters.append(inspect.Parameter("server", inspect.Parameter.KEYWORD_ONLY, default=HERE, annotation=Server))
    vars(run).update(__signature__=inspect.Signature(parameters), work=work)
    return cast("Command[P]", run)


def operate(server: Server, work: Callable[[Operator, Printer], Coroutine[Any, Any, int]]) -> int:
    """The exit code of `work`, which is given an operator of the deployment."""

    async def connect(printer: Printer) -> int:
        async with connected(server.address(), makes=False) as client:
            operator = Operator(client)
            try:
                return await work(operator, printer)
            except (NoSuchAgent, NoSuchMigration) as error:
                raise await add_nearest(operator, error) from error

    return finish(server.json, lambda printer: asyncio.run(connect(printer)), logging.ERROR)


def finish(as_json: bool, work: Callable[[Printer], int], level: int = logging.CRITICAL) -> int:
    """The exit code of `work`.  An error of this package is printed as one sentence, or as JSON."""
    log_to_stderr(level)
    printer = Printer(as_json)
    try:
        return work(printer)
    except CellError as error:
        printer.fail(error)
        return code_of(error)


async def add_nearest(operator: Operator, error: CellError) -> CellError:
    """The error, with the names that exist and are like the one that does not."""
    wanted = str(error.facts.get("agent") or error.facts.get("migration") or "")
    with contextlib.suppress(CellError):
        near = await operator.nearest(wanted)
        if near and wanted not in near:
            names = " or ".join(repr(name) for name in near)
            return type(error)(f"{error.message} Did you mean {names}?", **error.facts)
    return error


def confirm(question: str, as_json: bool) -> int | None:
    """Asks the person at the terminal; the exit code if the answer is no.  A script cannot be asked, and has decided already."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return None
    Printer(as_json).fail(UsageError("Not confirmed; nothing was done."))
    return REFUSED


class _Formatter(logging.Formatter):
    """Shows addresses, also those in tracebacks, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


def log_to_stderr(level: int) -> None:
    """Shows what other packages log from WARNING on, and what this one logs from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(LOG_FORMAT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("mielin_cells").setLevel(level)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # its errors are raised, too, and translated there
