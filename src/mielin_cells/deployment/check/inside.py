"""The sandbox's own process: imports the app, and loads what it is given.  It knows no deployment and has no credentials.

Started as `python -m mielin_cells.deployment.check.inside FD APP [CONFIG]`; trials come by standard input, verdicts leave by FD.
While states are loaded, upgrades can open no connections, start no processes and change no files.  That keeps honest code from
acting on the world by mistake; it does not hold code that wants to get out.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from mielin_cells.agents.reference import classes
from mielin_cells.agents.spec import Spec, spec_of
from mielin_cells.agents.trials.state import try_state
from mielin_cells.deployment import process  # what a node has imported before its app, this process has imported, too
from mielin_cells.deployment.app import load_app
from mielin_cells.deployment.check.frames import (
    LENGTH_BYTES,
    Loaded,
    Ready,
    Refused,
    Told,
    Trial,
    Verdict,
    decode_trial,
    frame,
)
from mielin_cells.deployment.config import find
from mielin_cells.errors import BadArguments, CellError, NoSuchHandler, UnknownClass, described
from mielin_cells.log.state import StoredState

NODE = process.Options

DENIED = ("socket.connect", "socket.bind", "socket.sendto", "subprocess.Popen", "os.", "shutil.", "signal.pthread_kill")
"""Audit events that loading a state has no need of, by their beginnings."""

ALLOWED = ("os.listdir", "os.scandir", "os.walk", "os.add_dll_directory")

WHYS_MAX = 5
"""Reasons about the calls of one agent."""


def main() -> None:
    out, app, *config = sys.argv[1:]
    answers = os.fdopen(int(out), "wb")
    faulthandler.register(signal.SIGUSR1, all_threads=False)  # says where it hangs
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    trials: queue.SimpleQueue[Trial] = queue.SimpleQueue()

    def tell(value: Told) -> None:
        answers.write(frame(value))
        answers.flush()

    source = os.fdopen(os.dup(0), "rb")
    sys.stdin.close()  # `exit()` closes it, and would wait for the thread that reads
    sys.stdin = open(os.devnull)  # noqa: SIM115 - for as long as the process lives
    threading.Thread(target=_read, args=(source, trials), daemon=True).start()
    tell(Ready())
    try:
        load_app(app, find(Path(config[0]) if config else None))
    except CellError as error:
        tell(Refused(error.message))
        os._exit(0)
    specs = {name: spec_of(cls) for name, cls in classes.items()}
    tell(Loaded({name: spec.version for name, spec in sorted(specs.items())}))
    free = psutil.virtual_memory().available
    resource.setrlimit(resource.RLIMIT_DATA, (free, free))  # an upgrade that takes all memory harms nobody else
    sys.addaudithook(_guard)
    while True:
        tell(_try(specs, trials.get()))


def _read(source: BinaryIO, trials: queue.SimpleQueue[Trial]) -> None:
    """Ends the process with its standard input, also while an upgrade never ends."""
    while len(head := source.read(LENGTH_BYTES)) == LENGTH_BYTES:
        trials.put(decode_trial(source.read(int.from_bytes(head, "big"))))
    os._exit(0)


def _guard(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and not _writes(args):
        return
    if event == "open" or (event.startswith(DENIED) and event not in ALLOWED):
        raise PermissionError(f"an upgrade may not do this ({event}): it runs again on each node that takes the agent")


def _writes(args: tuple[Any, ...]) -> bool:
    mode, flags = args[1], args[2]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _try(specs: dict[str, Spec], trial: Trial) -> Verdict:
    spec = specs.get(trial.cls)
    if spec is None:
        return Verdict(trial.agent, UnknownClass.__name__, f"the app has no class {trial.cls!r}")
    code = why = ""
    try:
        try_state(spec, StoredState.decode_small(trial.state), trial.version, trial.agent)
    except CellError as error:
        code, why = error.code, error.message
    except BaseException as error:  # noqa: BLE001 - a user's upgrade may raise anything, and the check goes on
        code, why = type(error).__name__, f"its upgrade raised {described(error)}"
    return Verdict(trial.agent, code, why, _call_troubles(spec, trial))


def _call_troubles(spec: Spec, trial: Trial) -> list[str]:
    found = dict[str, None]()
    for call in trial.calls:
        try:
            handler = spec.handler(call.handler)
            if call.args is not None:
                handler.decode_args(call.args)
        except NoSuchHandler:
            found[f"a {call.what} calls {spec.name}.{call.handler}, which the app has not"] = None
        except BadArguments as error:
            found[f"a {call.what} does not fit: {error.message}"] = None
        except Exception as error:  # noqa: BLE001 - a user's type may raise anything when it is decoded
            found[f"a {call.what} of {spec.name}.{call.handler} does not load: {described(error)}"] = None
    return list(found)[:WHYS_MAX]


if __name__ == "__main__":
    main()
