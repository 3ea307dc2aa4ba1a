"""Options that several commands share, as cyclopts reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import ArgumentCollection, Group, Parameter
from cyclopts.validators import Number

from mielin_cells.agents.handler import LABEL_CHARS_MAX
from mielin_cells.deployment.connect import Address, find_address
from mielin_cells.log.inboxes.lines import Priority

CONNECTION = Group("Connection", sort_key=9)
NODES_MAX = 64
"""Processes on one machine; larger fleets are the business of tools that run fleets."""


def choose_one() -> Group:
    """Options of which a command takes at most one."""
    return Group(validator=_check_one)


def _check_one(arguments: ArgumentCollection) -> None:
    names = [argument.name for argument in arguments.filter_by(value_set=True)]
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} exclude each other; give one of them.")


def _check_text(_: object, words: str | tuple[str, ...]) -> None:
    for word in (words,) if isinstance(words, str) else words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ValueError("It is not text in UTF-8.") from None


def _check_key(_: object, key: str | None) -> None:
    if key is not None and (not 0 < len(key) <= LABEL_CHARS_MAX or not key.isprintable()):
        raise ValueError(f"A key has 1 to {LABEL_CHARS_MAX} printable characters.")


@Parameter(name="*")
@dataclass(frozen=True)
class Server:
    """Where the deployment is."""

    connect: Annotated[
        str | None,
        Parameter(group=CONNECTION, help="The server's URL (default: MIELIN_URL, or what `mielin up` left here)."),
    ] = None
    creds: Annotated[Path | None, Parameter(group=CONNECTION, help="A NATS credentials file.")] = None
    tls_ca: Annotated[Path | None, Parameter(group=CONNECTION, help="The certificates to trust.")] = None
    deployment: Annotated[
        str | None, Parameter(group=CONNECTION, help="The deployment's name (default: MIELIN_DEPLOYMENT, or mielin).")
    ] = None
    domain: Annotated[
        str | None,
        Parameter(
            group=CONNECTION,
            help="The JetStream domain of the deployment, if the URL is that of a leaf server (default: MIELIN_DOMAIN).",
        ),
    ] = None
    json: Annotated[bool, Parameter(help="Print JSON, one value a line.")] = False

    def address(self) -> Address:
        """Raises `NotConnected` or `ConfigError`."""
        return find_address(self.connect, self.creds, self.tls_ca, self.deployment, self.domain)


@Parameter(name="*")
@dataclass(frozen=True)
class Streams:
    """How a new deployment is made.  A deployment that was made otherwise refuses them."""

    replicas: Annotated[
        int | None, Parameter(group=CONNECTION, help="Copies of each stream (default: 3 on a cluster, else 1).")
    ] = None
    shards: Annotated[
        int | None,
        Parameter(
            group=CONNECTION, help="Streams that agents are spread over (default: 4 with `--sync always`, else 1)."
        ),
    ] = None

    placement_tag: Annotated[
        tuple[str, ...],
        Parameter(group=CONNECTION, help="Only servers with this tag keep the streams; may be given several times."),
    ] = ()

    def of(self, address: Address) -> Address:
        """The address, for a deployment that is made or must be like this."""
        return replace(address, replicas=self.replicas, shards=self.shards, placement_tags=self.placement_tag)


HERE = Server()
ANY = Streams()

App = Annotated[str, Parameter(help="The agents' classes: a .py file or a module.")]
Agent = Annotated[str, Parameter(help="The agent's id.")]
Node = Annotated[str, Parameter(help="The node's name.")]
Handler = Annotated[str, Parameter(help="The handler's name.")]
Config = Annotated[Path | None, Parameter(help="The nodes' settings (default: mielin.toml here, if there is one).")]
NatsServer = Annotated[
    Path | None, Parameter(help="The server program (default: the bundled one, or the one on PATH).")
]
Sync = Annotated[
    Literal["always", "lazy"], Parameter(help="`lazy` is faster and may lose the last writes at a power cut.")
]
Metrics = Annotated[
    str | None,
    Parameter(help="Serve metrics for Prometheus there, as 127.0.0.1:9464 (default: no metrics are served)."),
]
Watch = Annotated[bool, Parameter(help="Repeat the list whenever it changes, until Ctrl-C.")]
Yes = Annotated[bool, Parameter(help="Do not ask for confirmation.")]
Words = Annotated[
    str,
    Parameter(
        validator=_check_text,
        help="Values, in order or as name=value: JSON if that fits the declared type, else text.",
    ),
]
Fields = Annotated[
    str, Parameter(validator=_check_text, help="field=value of the initial state: JSON if that fits, else text.")
]
Reason = Annotated[str, Parameter(help="A reason, kept in the agent's log.")]
Deadline = Annotated[
    float | None,
    Parameter(
        validator=Number(gt=0, lte=1e9), help="Seconds within which its turn must begin; after that it never runs."
    ),
]
Key = Annotated[
    str | None, Parameter(validator=_check_key, help="Calls under one key run once; later ones get the same answer.")
]
Timeout = Annotated[
    float | None, Parameter(validator=Number(gt=0, lte=1e9), help="Seconds to wait for the answer (default: 30).")
]
Urgency = Annotated[Priority, Parameter(help="Of the messages that wait, those of a higher priority are taken first.")]
