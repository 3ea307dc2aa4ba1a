"""The `mielin` command.  Thin: parse, call, print.  Exit codes: 0 done, 1 failed, 2 usage, 3 refused, 4 rolled back, 5 unknown."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """The entry point."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal of few characters gets the others as \\xNN
    try:
        _run()
    except BrokenPipeError:  # whoever reads the output, as `head` does, has had enough
        from mielin_cells.cli.show import to_nowhere

        to_nowhere()
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("mielin: stopped", file=sys.stderr)  # what was sent may still take effect: docs/cli.md says so
        raise SystemExit(130) from None


def _run() -> None:
    """Heavy imports wait until a command runs, so that `--help` is quick."""
    from cyclopts import CycloptsError

    from mielin_cells.cli.app import app
    from mielin_cells.errors import CellError, UsageError

    try:
        app()
    except (CellError, CycloptsError) as error:
        from mielin_cells.cli.show import Printer
        from mielin_cells.deployment.codes import code_of

        found = (
            error if isinstance(error, CellError) else UsageError(f"{str(error).strip(' .,')}; see `mielin --help`.")
        )
        Printer("--json" in sys.argv[1:] and "demo" not in sys.argv[1:2]).fail(found)  # `demo --json` names a file
        raise SystemExit(code_of(found)) from None
