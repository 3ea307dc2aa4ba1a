"""A deployment on a server: how its address is found, and `cells.connect`."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mielin_cells.client.opening import Opening, check_opening
from mielin_cells.errors import ConfigError, NotConnected, StoreUnreachable
from mielin_cells.redaction import redacted
from mielin_cells.settings import Settings

if TYPE_CHECKING:
    from mielin_cells.client.client import Client
    from mielin_cells.substrate.health import Facts
    from mielin_cells.substrate.jetstream import JetStream

FOLDER = ".mielin"
"""Where `mielin up` keeps data, credential and address, in the directory that it is started in."""

ADDRESS_FILE = "address.json"
URL_VARIABLE = "MIELIN_URL"
DEPLOYMENT_VARIABLE = "MIELIN_DEPLOYMENT"

LOCKS_VARIABLE = "MIELIN_LOCKS"
"""Of a node's process: descriptors by which whoever started it holds a lock until both have ended."""

DEPLOYMENT = "mielin"
"""The deployment's name where nobody gives one."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a deployment's server is, and what it takes to be let in.  `creds` and `tls_ca` are files."""

    url: str
    creds: str | None = None
    tls_ca: str | None = None
    named_by: str = "the argument"
    sync: str = "process"
    """What an acknowledged append survives there, if that is known: "power", or "process"."""
    deployment: str = DEPLOYMENT
    shards: int | None = None
    replicas: int | None = None
    """What a new deployment is made with, and one that is there must have; None: the default, or what it has."""

    @property
    def shown(self) -> str:
        """The URL without the password that it may hold."""
        return redacted(self.url)

    def __repr__(self) -> str:
        return f"<Address {self.shown}, deployment {self.deployment}, named by {self.named_by}>"

    @property
    def met(self) -> Address:
        """The same, once it was opened: an operator may change what the deployment has."""
        return replace(self, shards=None, replicas=None)

    def write(self, folder: Path) -> None:
        """Leaves the address for later commands in the same directory.  The URL may hold a password: nobody else reads it."""
        plain = {name: getattr(self, name) for name in ("url", "creds", "tls_ca", "sync", "deployment")}
        fresh = folder / f"{ADDRESS_FILE}.new"
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(json.dumps(plain) + "\n")
        fresh.replace(folder / ADDRESS_FILE)


def find_address(
    url: str | None = None,
    creds: str | os.PathLike[str] | None = None,
    tls_ca: str | os.PathLike[str] | None = None,
    deployment: str | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Address:
    """The argument's address, or `MIELIN_URL`, or what `mielin up` left in this directory; likewise the deployment's name.

    Raises `NotConnected` if nothing names one, `ConfigError` if what does cannot be used.
    """
    environment = os.environ if environment is None else environment
    for option, file in (("creds", creds), ("tls_ca", tls_ca)):
        if file is not None and not Path(file).is_file():
            raise ConfigError(f"{option} = {os.fspath(file)}: there is no such file.", field=option, range="a file")
    let_in = os.fspath(creds) if creds else None
    trusted = os.fspath(tls_ca) if tls_ca else None
    name = deployment if deployment is not None else environment.get(DEPLOYMENT_VARIABLE) or None
    named = DEPLOYMENT if name is None else name
    if url is not None:
        return Address(_checked(url, "the argument"), let_in, trusted, deployment=named)
    if environment.get(URL_VARIABLE):
        given = _checked(environment[URL_VARIABLE], URL_VARIABLE)
        return Address(given, let_in, trusted, URL_VARIABLE, deployment=named)
    path = (directory or Path.cwd()) / FOLDER / ADDRESS_FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        left = Address(
            found["url"], found["creds"], found["tls_ca"], str(path), found["sync"], found.get("deployment", DEPLOYMENT)
        )
    except FileNotFoundError:
        raise NotConnected(
            f"No server is named: run `mielin up` in this directory, give --connect URL, or set {URL_VARIABLE}."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); remove it and run `mielin up` again, or give --connect URL.",
            field="url", range="an address written by mielin up",
        ) from error  # fmt: skip
    return replace(
        left,
        creds=let_in or left.creds,
        tls_ca=trusted or left.tls_ca,
        deployment=left.deployment if name is None else name,
    )


def _checked(url: Any, where: str) -> str:
    from mielin_cells.substrate.jetstream.address import check_url

    check_url(str(url), where)
    return str(url)


def import_store() -> None:
    """What `open_substrate` needs is imported now, and not by what stands beside an app that comes first on the path later."""
    importlib.import_module("mielin_cells.substrate.jetstream")


async def open_substrate(address: Address, makes: bool = True) -> JetStream:
    """One connection; `makes` the deployment's streams if they are not there.

    Raises `StoreUnreachable` with what to do, and whatever else keeps the server from being used.
    """
    from mielin_cells.substrate.jetstream import JetStream

    try:
        return await JetStream.open(
            address.url, creds=address.creds, tls_ca=address.tls_ca, sync=address.sync, deployment=address.deployment,
            shards=address.shards, replicas=address.replicas, makes=makes,
        )  # fmt: skip
    except StoreUnreachable as error:
        if not address.named_by.endswith(ADDRESS_FILE):
            raise
        raise StoreUnreachable(
            f"The server of the last `mielin up` in this directory, {address.shown}, does not answer; "
            "run `mielin up` again, or give --connect URL.", **{**error.facts, "url": address.shown},
        ) from error  # fmt: skip


async def inspected(address: Address) -> Facts:
    """What the server says of itself, for `mielin doctor`.  Raises as `open_substrate`; makes nothing."""
    from mielin_cells.substrate.jetstream import JetStream

    is_ours = address.named_by.endswith(ADDRESS_FILE)
    return await JetStream.inspected(
        address.url, creds=address.creds, tls_ca=address.tls_ca, deployment=address.deployment,
        sync=address.sync if is_ours else "", named_by="`mielin up`, which started it" if is_ours else "",
    )  # fmt: skip


async def replicated(address: Address) -> dict[str, tuple[int, int]]:
    """Has the servers keep `address.replicas` copies; before and after, by stream that changed."""
    from mielin_cells.substrate.jetstream import JetStream

    return await JetStream.replicated(
        address.url,
        creds=address.creds,
        tls_ca=address.tls_ca,
        deployment=address.deployment,
        replicas=address.replicas,
    )


def connect(
    url: str | None = None,
    *,
    creds: str | os.PathLike[str] | None = None,
    tls_ca: str | os.PathLike[str] | None = None,
    deployment: str | None = None,
    replicas: int | None = None,
    shards: int | None = None,
    settings: Settings | None = None,
) -> Opening:
    """The deployment on the server at `url`, or at `MIELIN_URL`, or the one that `mielin up` runs in this directory.

    `creds` and `tls_ca` are files: a NATS credentials file, and the certificates to trust.  A server holds as many deployments as
    there are names.  `replicas` (copies of each stream; default 3 on a cluster, else 1) and `shards` (streams that agents are spread
    over; default 1) are for a new deployment; other ones than it has are refused.  Leaving the block closes the
    connection; agents live on at their nodes.  Raises `NotConnected`, `ConfigError`, `StoreUnreachable`, and
    what keeps the server from being used, by name.
    """
    check_opening(settings)

    def found() -> Address:
        return replace(find_address(url, creds, tls_ca, deployment), replicas=replicas, shards=shards)

    return Opening("cells.connect()", lambda: connected(found(), settings))


@asynccontextmanager
async def connected(address: Address, settings: Settings | None = None, makes: bool = True) -> AsyncIterator[Client]:
    """As `connect`, to an address that was found before."""
    from mielin_cells.client.client import Client

    substrate = await open_substrate(address, makes)
    client = Client(substrate.log, substrate.wire, settings=settings)
    try:
        await client.open()
        yield client
    finally:
        await client.close()
        await substrate.close()
