"""The app of a node: a file or a module that defines agent classes."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
from pathlib import Path

from mielin_cells.agents.reference import classes
from mielin_cells.agents.spec import spec_of
from mielin_cells.deployment.config import Config
from mielin_cells.errors import ConfigError, FieldRefused, never
from mielin_cells.migration.recovery import of_class


def load_app(app: str, config: Config) -> None:
    """Imports a file or a module, so that its agent classes are known.

    Raises `ConfigError` with the line that failed, or with the class whose recovery settings do not fit this node's.
    """
    path = folder = Path(app)
    try:
        if app.endswith(".py"):
            if not path.is_file():
                raise ConfigError(f"--app {app}: the file does not exist.", field="app", range="a .py file or a module")
            _search_in(folder := path.resolve().parent)
            _run_file(path)
        else:
            _search_in(folder := Path.cwd())
            importlib.import_module(app)
        for name, cls in list(classes.items()):
            spec_of(cls)
            of_class(cls, config.recovery, config.classes.get(name))
    except ConfigError:
        raise
    except FieldRefused as error:
        raise ConfigError(
            f"--app {app}: {error.message}", field="app", range="agent classes that can be stored"
        ) from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything when it is imported
        raise ConfigError(
            f"--app {app} cannot be imported: {_failed_line(error)}{type(error).__name__}: {error}.{_shadow_hint(folder, str(error))}",
            field="app", range="a .py file or a module",
        ) from error  # fmt: skip
    if not classes:
        raise ConfigError(
            f"--app {app} defines no agent class: derive one from mielin_cells.Agent.{_shadow_hint(folder, app)}",
            field="app",
            range="agent classes",
        )


def _search_in(folder: Path) -> None:
    """Puts the app's folder before installed packages, and after Python's own modules, which everybody needs."""
    for ours in ("psutil", "mielin_cells.substrate.jetstream"):
        importlib.import_module(ours)  # now, so that later a neighbour of the same name is not taken for it
    installed = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    at = next((i for i, place in enumerate(sys.path) if place in installed), len(sys.path))
    sys.path.insert(at, str(folder))


def _shadow_hint(folder: Path, text: str) -> str:
    """A hint, if `text` names a module of Python's own and the folder has a file of that name."""
    words = set(re.findall(r"\w+", text))
    files = [
        file for name in sorted(words & sys.stdlib_module_names)
        for file in (folder / f"{name}.py", folder / name / "__init__.py") if file.is_file()
    ]  # fmt: skip
    return "".join(
        f" {file} has the name of one of Python's own modules, which is used instead; rename it." for file in files
    )


def _run_file(path: Path) -> None:
    is_free = path.stem.isidentifier() and path.stem not in sys.modules and path.stem not in sys.stdlib_module_names
    name = path.stem if is_free else f"mielin_app_{os.getpid()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise never(f"a .py file has no loader: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations are resolved through it
    spec.loader.exec_module(module)


def _failed_line(error: BaseException) -> str:
    """The user's line that failed: the last one outside this package, the standard library and installed packages."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {(error.text or '').strip()}: "
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    others = ("<frozen", str(Path(__file__).resolve().parents[1]), *(sysconfig.get_path(kind) for kind in kinds))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(others)]
    return f"{frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}: " if frames else ""
