"""`mielin.toml`: settings of nodes, of recovery, and of recovery by agent class.

    [settings]
    pause_s = 2.0
    [recovery]
    max_retries = 5
    [recovery.classes.Chat]
    recovery_timeout_secs = 60

Everything is checked when the file is read; what is wrong is named with file, line, field and range.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mielin_cells.errors import ConfigError
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.settings import Settings

FILE = "mielin.toml"


@dataclass(frozen=True, slots=True)
class Config:
    settings: Settings = field(default_factory=Settings)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    classes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Changes to the recovery configuration, by agent class."""


def find(path: Path | None, directory: Path | None = None) -> Config:
    """The file's, or that of `mielin.toml` in the directory, or the defaults.  Raises `ConfigError`."""
    if path is not None:
        return read(path)
    default = (directory or Path.cwd()) / FILE
    return read(default) if default.is_file() else Config()


def read(path: Path) -> Config:
    """Raises `ConfigError` with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{path} cannot be read: {why}.", field="config", range="a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}.", field="config", range="TOML") from error
    place = _Place(path, text)
    for name in tables:
        if name not in ("settings", "recovery"):
            raise place.refusal((), name, "there is no such table; wanted: [settings] and [recovery]")
    recovery = dict(place.table(tables, ("recovery",)))
    classes = recovery.pop("classes", {})
    if not isinstance(classes, dict):
        raise place.refusal(("recovery",), "classes", "wanted: a table for each agent class")
    settings = place.convert(Settings, place.table(tables, ("settings",)), ("settings",))
    config = place.convert(RecoveryConfig, recovery, ("recovery",))
    for name in classes:
        changes = place.table(classes, (name,), ("recovery", "classes", name))
        place.convert(RecoveryConfig, {**asdict(config), **changes}, ("recovery", "classes", name), set(changes))
    return Config(settings, config, classes)


class _Place:
    """A file, and where in it a field is."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()

    def line_of(self, table: tuple[str, ...], name: str) -> int:
        """The line of a field of a table; of the table, if the field is not found in it; else 1."""
        key = re.compile(rf"\s*[\"']?{re.escape(name)}[\"']?\s*(=|\])")
        head = re.compile(
            r"\s*\[\s*" + r"\s*\.\s*".join(rf"[\"']?{re.escape(word)}[\"']?" for word in table) + r"\s*\]"
        )
        line, inside = 1, not table
        for number, text in enumerate(self._lines, 1):
            if text.lstrip().startswith("["):
                inside = bool(table) and head.match(text) is not None
                if inside or re.match(rf"\s*\[\s*[\"']?{re.escape(name)}[\"']?\s*[\].]", text):
                    line = number
            elif inside and key.match(text):
                return number
        return line

    def refusal(self, table: tuple[str, ...], name: str, why: str, wanted: str = "") -> ConfigError:
        where = f"{self._path}, line {self.line_of(table, name)}: {'.'.join((*table, name))}"
        return ConfigError(f"{where}: {why}.", field=name, range=wanted or why, file=str(self._path))

    def table(self, tables: dict[str, Any], path: tuple[str, ...], shown: tuple[str, ...] = ()) -> dict[str, Any]:
        values = tables.get(path[-1], {})
        if not isinstance(values, dict):
            raise self.refusal((shown or path)[:-1], path[-1], "wanted: a table")
        return values

    def convert(
        self, cls: type[Any], given: dict[str, Any], table: tuple[str, ...], own: set[str] | None = None
    ) -> Any:
        names = [item.name for item in fields(cls)]
        for name in given:
            if name not in names:
                raise self.refusal(table, name, f"there is no such setting; there are {', '.join(names)}")
        try:
            value = cls(**given)
            if isinstance(value, RecoveryConfig):
                value.validate()
        except ConfigError as error:
            name = str(error.facts["field"])
            at = name if own is None or name in own else next(iter(own), name)
            raise self.refusal(table, at, error.message.rstrip("."), str(error.facts.get("range", ""))) from error
        return value
