"""The `mielin` command.  Thin: parse, call, print.  Exit codes: 0 done, 1 failed, 2 usage, 3 refused, 4 rolled back, 5 unknown."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """The entry point."""
    try:
        _run()
    except BrokenPipeError:  # whoever reads the output, as `head` does, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("mielin: stopped", file=sys.stderr)
        raise SystemExit(130) from None


def _run() -> None:
    """Heavy imports wait until a command runs, so that `--help` is quick."""
    from mielin_cells.cli.app import app
    from mielin_cells.errors import CellError, ConfigError, MigrationRefused

    try:
        app()
    except CellError as error:
        from mielin_cells.cli.show import Printer

        Printer("--json" in sys.argv[1:] and "demo" not in sys.argv[1:2]).fail(error)  # `demo --json` names a file
        code = 2 if isinstance(error, ConfigError) else 3 if isinstance(error, MigrationRefused) else 1
        raise SystemExit(code) from None
