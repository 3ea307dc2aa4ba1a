"""`python -m soak --minutes N`: sessions, timers, agents and nodes come and go, and what is left of them must not grow.

One process, one store on a file, two nodes that stay and one after the other that visits.  Prints what was measured (in the first
round, in the middle of the run and at its end) as JSON; exits with 1 if anything does not end flat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from soak.sizes import ROUNDS_MIN
from soak.town import town


async def soaked(minutes: float) -> int:
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        async with town(Path(folder)) as found:
            rounds = 0
            while rounds < ROUNDS_MIN or time.monotonic() < end:
                await found.round()
                rounds += 1
            growing = found.series.growing()
            told = {"rounds": rounds, "agents ended": found.ended, "nodes that left": found.left, **found.series.told()}
    print(json.dumps(told, indent=1))
    for sentence in growing:
        print(sentence)
    return 1 if growing else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    logging.getLogger("mielin_cells").setLevel(logging.CRITICAL)
    return asyncio.run(soaked(parser.parse_args().minutes))


if __name__ == "__main__":
    sys.exit(main())
