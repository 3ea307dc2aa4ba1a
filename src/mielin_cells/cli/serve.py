"""`mielin node`: one process, one node."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mielin_cells.cli.link import log_to_stderr
from mielin_cells.cli.show import Printer
from mielin_cells.deployment.codes import code_of
from mielin_cells.errors import CellError, ConfigError, InvalidAgentId
from mielin_cells.log.ids import AgentId

if TYPE_CHECKING:
    from mielin_cells.cli.app import Server, Streams
    from mielin_cells.node.node import Node
    from mielin_cells.substrate.ports import Substrate


def run(
    name: str, app: str, labels: list[str], stop_with_stdin: bool, server: Server, streams: Streams, package: str,
    config: Path | None, faults: str | None, wait: float | None,
) -> int:  # fmt: skip
    """The exit code: 0 after a clean stop, 1 if it was not clean or a newer process took the name, 2 for a bad app."""
    from mielin_cells.deployment import config as configs
    from mielin_cells.deployment import process

    log_to_stderr(logging.INFO)
    printer = Printer(server.json)
    try:
        options = process.Options(
            name=_name(name), app=app,
            address=replace(server.address(), replicas=streams.replicas, shards=streams.shards),
            wait_s=_wait(wait), labels=dict(_label(text) for text in labels), follows_stdin=stop_with_stdin, package=package,
            say=lambda event: printer.show(event, lambda: _text(event)), config=configs.find(config),
            faults=_faulty(faults) if faults is not None else None,
        )  # fmt: skip
        return process.run(options)
    except CellError as error:
        printer.fail(error)
        return code_of(error)


def _faulty(spec: str) -> Callable[[Node, Substrate], None]:
    """What makes a node fail as `spec` says.  Raises `ConfigError`."""
    from mielin_cells.testing.faults import faulty, parsed

    def harm(node: Node, substrate: Substrate) -> None:
        found = parsed(spec, seed=sum(node.name.encode()))
        view = faulty(substrate, found, node.name)
        node.home.log, node.home.wire = view.log, view.wire
        node.home.step = lambda step: found.step(step, node.name)

    parsed(spec)
    return harm


def _name(name: str) -> str:
    try:
        return str(AgentId(name))  # what makes a word of a subject
    except InvalidAgentId as error:
        wanted = "1 to 128 printable characters"
        raise ConfigError(f"--name {name!r} cannot be used; wanted: {wanted}.", field="name", range=wanted) from error


def _wait(seconds: float | None) -> float:
    if seconds is None:
        return math.inf
    if not 0 <= seconds <= 1e9:
        raise ConfigError(f"--wait {seconds:g} is out of range; wanted: 0 or more.", field="wait", range="0 or more")
    return seconds


def _label(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not (key and sign):
        raise ConfigError(f"--label {text!r} is not key=value.", field="label", range="key=value")
    return key, value


def _text(event: dict[str, Any]) -> str:
    match event["event"]:
        case "serving":
            classes = ", ".join(f"{name}:{version}" for name, version in event["classes"].items())
            count = f"{event['agents']} agents"
            return f"{event['node']} serves as incarnation {event['incarnation']}: {count}; classes {classes}"
        case "waiting":
            return f"{event['node']} waits for its server and goes on by itself when it is there: {event['reason']}"
        case "draining":
            return f"{event['node']} is drained: {event['agents']} agents are to go"
        case "stopping":
            return f"{event['node']} stops ({event['reason']}): turns end, commits land"
        case _:
            return f"{event['node']} has stopped; its agents stay claimable"
