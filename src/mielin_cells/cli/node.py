"""`mielin node`: one process, one node."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from mielin_cells import __version__
from mielin_cells.cli.command import finish
from mielin_cells.cli.options import ANY, HERE, App, Config, Metrics, Server, Streams
from mielin_cells.cli.show import Printer, counted
from mielin_cells.deployment import config as configs
from mielin_cells.deployment import process
from mielin_cells.errors import ConfigError, InvalidAgentId
from mielin_cells.log.ids import AgentId

if TYPE_CHECKING:
    from mielin_cells.node.node import Node
    from mielin_cells.substrate.ports import Substrate


def node(
    *,
    name: Annotated[str, Parameter(help="The node's name; a newer process of the same name replaces an older one.")],
    app: App,
    label: Annotated[list[str] | None, Parameter(help="key=value, shown to operators; may be repeated.")] = None,
    reserved: Annotated[
        bool,
        Parameter(
            help="Take only agents that are moved here by name, until `uncordon`: for the new nodes of a deploy."
        ),
    ] = False,
    fleet: Annotated[str, Parameter(help="For `mielin up`: who starts and stops this process.", show=False)] = "",
    stop_with_stdin: Annotated[bool, Parameter(help="Stop when standard input ends.")] = False,
    config: Config = None,
    wait: Annotated[
        float | None,
        Parameter(
            validator=Number(gte=0, lte=1e9),
            help="Seconds to wait for a server that does not answer (default: no limit).",
        ),
    ] = None,
    drain_file: Annotated[
        Path | None, Parameter(help="Drain and stop, as on SIGTERM, when this file is made or touched.")
    ] = None,
    ready_file: Annotated[
        Path | None, Parameter(help="A file that is there while the node serves, for readiness probes.")
    ] = None,
    metrics: Metrics = None,
    faults: Annotated[
        str | None, Parameter(help="For tests: step:kind[:probability][:most][@node], or `default`.")
    ] = None,
    streams: Streams = ANY,
    server: Server = HERE,
) -> int:
    """Exits with 0 after a clean stop, 1 if it was not clean or a newer process took the name, 2 for an app that cannot be used."""

    def work(printer: Printer) -> int:
        return process.run(
            process.Options(
                name=_check_name(name), app=app, labels=dict(map(_label, label or [])), reserved=reserved, fleet=fleet,
                follows_stdin=stop_with_stdin,
                address=streams.of(server.address()),
                config=_with_options(configs.find(config), drain_file, ready_file, metrics),
                faults=_injector(faults) if faults is not None else None,
                wait_s=math.inf if wait is None else wait, package=__version__,
                say=lambda event: printer.show(event, lambda: _text(event)),
            )
        )  # fmt: skip

    return finish(server.json, work, logging.INFO)


def _with_options(
    config: configs.Config, drain_file: Path | None, ready_file: Path | None, metrics: str | None
) -> configs.Config:
    """The configuration, with what the command line says instead.  Raises `ConfigError`."""
    node = config.node
    if drain_file is not None:
        node = replace(node, drain_file=str(drain_file))
    if ready_file is not None:
        node = replace(node, ready_file=str(ready_file))
    if metrics is not None:
        node = replace(node, metrics=metrics)
    return replace(config, node=node)


def _injector(spec: str) -> Callable[[Node, Substrate], None]:
    """What makes a node fail as `spec` says.  Raises `ConfigError`."""
    from mielin_cells.testing.faults import faulty, parsed

    def inject(node: Node, substrate: Substrate) -> None:
        faults = parsed(spec, seed=sum(node.name.encode()))
        view = faulty(substrate, faults, node.name)
        node.home.log, node.home.wire = view.log, view.wire
        node.home.step = lambda step: faults.step(step, node.name)

    parsed(spec)
    return inject


def _check_name(name: str) -> str:
    try:
        return str(AgentId(name))  # a node's name is a word of a subject, as an agent's id is
    except InvalidAgentId as error:
        wanted = "1 to 128 printable characters"
        raise ConfigError(f"--name {name!r} cannot be used; wanted: {wanted}.", field="name", range=wanted) from error


def _label(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not (key and sign):
        raise ConfigError(f"--label {text!r} is not key=value.", field="label", range="key=value")
    return key, value


def _text(event: dict[str, Any]) -> str:
    name = event["node"]
    match event["event"]:
        case "serving":
            classes = ", ".join(f"{cls}:{version}" for cls, version in event["classes"].items())
            where = f"; metrics at {event['metrics']}" if "metrics" in event else ""
            said = f"{name} serves as incarnation {event['incarnation']}: {counted(event['agents'], 'agent')}"
            return f"{said}; classes {classes}{where}"
        case "waiting":
            return f"{name} waits until its server answers: {event['reason']}"
        case "draining":
            return f"{name} drains: {counted(event['agents'], 'agent')} to move"
        case "stopping":
            return f"{name} stops ({event['reason']}): turns end, commits land"
        case _:
            return f"{name} has stopped; other nodes can claim its agents"
