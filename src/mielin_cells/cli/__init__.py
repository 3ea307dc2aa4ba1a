"""The `mielin` command.  Thin: parse, call, print.  Exit codes: `mielin_cells.deployment.codes`."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """The entry point."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a character that the terminal lacks is written as \\xNN
    try:
        code = _run()
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        from mielin_cells.cli.show import drop_output

        drop_output()
        code = 1
    except KeyboardInterrupt:
        from mielin_cells.deployment.codes import INTERRUPTED

        print(
            "mielin: interrupted", file=sys.stderr
        )  # a request that was sent may still take effect: docs/cli.md says so
        code = INTERRUPTED
    raise SystemExit(code)


def _run() -> int:
    """The exit code.  Heavy imports wait until a command runs, so that `--help` is quick."""
    from cyclopts import CycloptsError, MissingArgumentError, ValidationError

    from mielin_cells.cli.app import app
    from mielin_cells.errors import CellError, ConfigError, UsageError

    try:
        return app() or 0
    except (CellError, CycloptsError) as error:
        from mielin_cells.cli.show import Printer
        from mielin_cells.deployment.codes import code_of

        if isinstance(error, ValidationError):
            field = error.argument.name.lstrip("-") if error.argument is not None else ""
            refusal: CellError = ConfigError(str(error), field=field, range=error.exception_message)
        elif isinstance(error, CycloptsError):
            what = str(error).strip(" .,")
            if isinstance(error, MissingArgumentError) and error.argument is not None:
                name = error.argument.name
                what = f"{name} needs a value" if name in sys.argv else f"{name} is missing"
            refusal = UsageError(f"{what}; see `{' '.join(('mielin', *(error.command_chain or ())))} --help`.")
        else:
            refusal = error
        words = sys.argv[1:]
        Printer("--json" in words and "demo" not in words[:1]).fail(refusal)  # `demo --json` names a file
        return code_of(refusal)
