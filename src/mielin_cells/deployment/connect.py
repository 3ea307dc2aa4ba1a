"""A deployment on a server: how its address is found, and `cells.connect`."""

from __future__ import annotations

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
DOMAIN_VARIABLE = "MIELIN_DOMAIN"

LOCKS_VARIABLE = "MIELIN_LOCKS"
"""For a node's process: descriptors of locks, which its parent holds until both processes have ended."""

DEPLOYMENT = "mielin"
"""The name of a deployment that is given none."""

WRITTEN = ("url", "creds", "tls_ca", "sync", "deployment", "domain")
"""The fields of an address that `mielin up` leaves for later commands."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a deployment's server is, and the files `creds` and `tls_ca` that it may ask for."""

    url: str
    creds: str | None = None
    tls_ca: str | None = None
    named_by: str = "the argument"
    sync: str = "process"
    """What an acknowledged append survives: "power", or "process" if more is not known."""
    deployment: str = DEPLOYMENT
    domain: str | None = None
    """The JetStream domain of the servers that have the deployment; None: that of the server at `url`."""
    shards: int | None = None
    replicas: int | None = None
    """What a new deployment is made with and an existing one must have; None: the default, or what it has."""
    placement_tags: tuple[str, ...] = ()
    """Likewise; (): any servers, or what it has."""

    @property
    def shown(self) -> str:
        """The URL without the password that it may hold."""
        return redacted(self.url)

    def __repr__(self) -> str:
        return f"<Address {self.shown}, deployment {self.deployment}, named by {self.named_by}>"

    @property
    def existing(self) -> Address:
        """The same, for a deployment that exists, whose copies an operator may change.

        Open it with `makes=False`: it would be made with the default number of shards.
        """
        return replace(self, shards=None, replicas=None, placement_tags=())

    @property
    def is_ours(self) -> bool:
        """`mielin up` started the server, and left the address here."""
        return self.named_by.endswith(ADDRESS_FILE)

    @property
    def access(self) -> dict[str, Any]:
        return {"creds": self.creds, "tls_ca": self.tls_ca, "deployment": self.deployment, "domain": self.domain}

    def write(self, folder: Path) -> None:
        """Leaves the address for later commands in this directory.  Only the owner can read it: the URL may hold a password."""
        plain = {name: getattr(self, name) for name in WRITTEN}
        fresh = folder / f"{ADDRESS_FILE}.new"
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(json.dumps(plain) + "\n")
        fresh.replace(folder / ADDRESS_FILE)


def find_address(
    url: str | None = None,
    creds: str | os.PathLike[str] | None = None,
    tls_ca: str | os.PathLike[str] | None = None,
    deployment: str | None = None,
    domain: str | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Address:
    """The address in the argument, or in `MIELIN_URL`, or the one that `mielin up` left here; likewise the deployment's name
    and the JetStream domain.

    Raises `NotConnected` if nothing names a server, `ConfigError` if what names one cannot be used.
    """
    environment = os.environ if environment is None else environment
    for option, file in (("creds", creds), ("tls_ca", tls_ca)):
        if file is not None and not Path(file).is_file():
            raise ConfigError(f"{option} = {os.fspath(file)}: the file does not exist.", field=option, range="a file")
    name = deployment if deployment is not None else environment.get(DEPLOYMENT_VARIABLE) or None
    area = domain if domain is not None else environment.get(DOMAIN_VARIABLE) or None
    if url is not None:
        address = Address(_check(url, "the argument"))
    elif environment.get(URL_VARIABLE):
        address = Address(_check(environment[URL_VARIABLE], URL_VARIABLE), named_by=URL_VARIABLE)
    else:
        address = _read((directory or Path.cwd()) / FOLDER / ADDRESS_FILE)
    return replace(
        address, creds=os.fspath(creds) if creds else address.creds, tls_ca=os.fspath(tls_ca) if tls_ca else address.tls_ca,
        deployment=address.deployment if name is None else name, domain=address.domain if area is None else area,
    )  # fmt: skip


def _check(url: Any, where: str) -> str:
    from mielin_cells.substrate.jetstream.address import check_url

    return check_url(str(url), where)


def _read(path: Path) -> Address:
    try:
        facts: dict[str, Any] = {"deployment": DEPLOYMENT, "domain": None, **json.loads(path.read_text())}
        return Address(**{name: facts[name] for name in WRITTEN}, named_by=str(path))
    except FileNotFoundError:
        raise NotConnected(
            f"No server is named: run `mielin up` in this directory, give --connect URL, or set {URL_VARIABLE}."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); remove it and run `mielin up` again, or give --connect URL.",
            field="url", range="an address written by mielin up",
        ) from error  # fmt: skip


async def open_substrate(address: Address, makes: bool = True) -> JetStream:
    """One connection; `makes` the deployment's streams if they are missing.

    Raises `StoreUnreachable` with what to do, and whatever else keeps the server from being used.
    """
    from mielin_cells.substrate.jetstream import JetStream

    try:
        return await JetStream.open(
            address.url,
            **address.access,
            sync=address.sync,
            shards=address.shards,
            replicas=address.replicas,
            placement_tags=address.placement_tags,
            makes=makes,
        )
    except StoreUnreachable as error:
        if not address.is_ours:
            raise
        raise StoreUnreachable(
            f"The server of the last `mielin up` in this directory, {address.shown}, does not answer; "
            "run `mielin up` again, or give --connect URL.", **{**error.facts, "url": address.shown},
        ) from error  # fmt: skip


async def inspect(address: Address) -> Facts:
    """What the server says of itself, for `mielin doctor`.  Raises as `open_substrate`; creates nothing."""
    from mielin_cells.substrate.jetstream import JetStream

    sync, named_by = (address.sync, "`mielin up`, which started it") if address.is_ours else ("", "")
    return await JetStream.inspected(address.url, **address.access, sync=sync, named_by=named_by)


async def set_replicas(address: Address) -> dict[str, tuple[int, int]]:
    """Has the servers keep `address.replicas` copies; before and after, by stream that changed."""
    from mielin_cells.substrate.jetstream import JetStream

    return await JetStream.replicated(address.url, **address.access, replicas=address.replicas)


def connect(
    url: str | None = None,
    *,
    creds: str | os.PathLike[str] | None = None,
    tls_ca: str | os.PathLike[str] | None = None,
    deployment: str | None = None,
    domain: str | None = None,
    replicas: int | None = None,
    shards: int | None = None,
    placement_tags: tuple[str, ...] = (),
    settings: Settings | None = None,
) -> Opening:
    """The deployment on the server at `url`, or at `MIELIN_URL`, or the one that `mielin up` runs in this directory.

    `creds` and `tls_ca` are files: a NATS credentials file, and the certificates to trust.  A server holds several deployments if each
    has its own name.  `domain` is the JetStream domain that has the deployment, if `url` names a leaf server.  `replicas` (copies of
    each stream; default 3 on a cluster, else 1), `shards` (streams that agents are spread over; default 4 if `mielin up` started the
    server with `--sync always`, else 1) and `placement_tags` (only servers with all of these tags keep the streams) are for a new
    deployment; an existing one refuses values other than its own.

    Leaving the block closes the connection; agents live on at their nodes.  Raises `NotConnected`, `ConfigError`, `StoreUnreachable`,
    and whatever else keeps the server from being used.

        >>> async with cells.connect("nats://127.0.0.1:4222") as deployment:
        ...     shop = await deployment.spawn(Till, "shop")
        ...     await shop.sell(250)
        ...
        250
    """
    check_opening(settings)

    def find() -> Address:
        return replace(
            find_address(url, creds, tls_ca, deployment, domain),
            replicas=replicas,
            shards=shards,
            placement_tags=placement_tags,
        )

    return Opening("cells.connect()", lambda: connected(find(), settings))


@asynccontextmanager
async def connected(address: Address, settings: Settings | None = None, makes: bool = True) -> AsyncIterator[Client]:
    """A client of the deployment at the address."""
    from mielin_cells.client.client import Client

    substrate = await open_substrate(address, makes)
    client = Client(substrate.log, substrate.wire, settings=settings)
    try:
        await client.open()
        yield client
    finally:
        await client.close()
        await substrate.close()
