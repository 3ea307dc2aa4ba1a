"""The `mielin` command.  Thin: parse, call, print.  Exit codes: 0 done, 1 failed, 2 usage, 3 refused, 4 rolled back, 5 unknown."""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point.  Heavy imports wait until a command runs, so that `--help` is quick."""
    from mielin_cells.cli.app import app
    from mielin_cells.errors import CellError, ConfigError, MigrationRefused

    try:
        app()
    except CellError as error:
        print(f"mielin: {error.message}", file=sys.stderr)
        code = 2 if isinstance(error, ConfigError) else 3 if isinstance(error, MigrationRefused) else 1
        raise SystemExit(code) from None
    except KeyboardInterrupt:
        print("mielin: stopped", file=sys.stderr)
        raise SystemExit(130) from None
