"""`mielin.toml`: settings of nodes, of recovery, and of recovery by agent class.

    [settings]
    pause_s = 2.0
    [recovery]
    max_retries = 5
    [recovery.classes.Chat]
    recovery_timeout_secs = 60
    [node]
    cost_per_hour = 0.12
    [node.labels]
    zone = "eu-1"
    [[policies]]
    match = { class = "Chat", tier = "gold" }
    require = ["node.labels.zone == 'eu-1'"]

Everything is checked when the file is read; what is wrong is named with file, line, field and range.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec

from mielin_cells.deployment.policies import read_policies
from mielin_cells.errors import ConfigError
from mielin_cells.metrics.place import WANTED, Place
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.policy.selectors import Selector
from mielin_cells.settings import Settings, check_ranges

FILE = "mielin.toml"


Cost: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]
MaybePath: TypeAlias = Annotated[Name | None, msgspec.Meta(description="a path")]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What a node says of itself.  Raises `ConfigError` naming the field and its range."""

    labels: dict[str, str] = field(default_factory=dict)
    """Shown to operators and seen by policies; those of the command line come on top."""
    cost_per_hour: Annotated[Cost | None, msgspec.Meta(description="a number, 0 to 1,000,000,000")] = None
    """In whatever money policies count in."""
    drain_file: MaybePath = None
    """When this file is made or touched, the node drains and stops, as on SIGTERM.  It may hold how many seconds there are."""
    ready_file: MaybePath = None
    """The node makes this file when it serves, and removes it when it begins to stop: for readiness probes."""
    metrics: Annotated[Name | None, msgspec.Meta(description=WANTED)] = None
    """The node serves its metrics there for Prometheus.  The nodes of one `mielin up` take this port and those that follow it."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.metrics is not None:
            Place(self.metrics)


@dataclass(frozen=True, slots=True)
class Config:
    settings: Settings = field(default_factory=Settings)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    classes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Changes to the recovery configuration, by agent class."""
    node: NodeConfig = field(default_factory=NodeConfig)
    policies: tuple[Selector, ...] = ()
    """Changes to the policies of agents, by their labels."""


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
        if name not in ("settings", "recovery", "node", "policies"):
            raise place.refusal(
                (), name, "there is no such table; wanted: [settings], [recovery], [node] and [[policies]]"
            )
    recovery = dict(place.table(tables, ("recovery",)))
    classes = recovery.pop("classes", {})
    if not isinstance(classes, dict):
        raise place.refusal(("recovery",), "classes", "wanted: a table for each agent class")
    settings = place.convert(Settings, place.table(tables, ("settings",)), ("settings",))
    config = place.convert(RecoveryConfig, recovery, ("recovery",))
    for name in classes:
        changes = place.table(classes, (name,), ("recovery", "classes", name))
        place.convert(RecoveryConfig, {**asdict(config), **changes}, ("recovery", "classes", name), set(changes))
    node = dict(place.table(tables, ("node",)))
    if "labels" in node:
        for label, value in place.table(node, ("labels",), ("node", "labels")).items():
            if not isinstance(value, str):
                raise place.refusal(("node", "labels"), label, f"{value!r} is no text", "a text")
    policies = read_policies(path, text, tables.get("policies", []))
    return Config(settings, config, classes, place.convert(NodeConfig, node, ("node",)), policies)


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
