"""Errors that a handler declares: who asks gets that very class, with what it held."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import enum
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mielin_cells as cells
from mielin_cells.agents.values.raises import _unpacked, pack
from mielin_cells.client.client import Client
from mielin_cells.client.operator import Operator
from mielin_cells.store.reader import load


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Item:
    name: str
    colour: Colour = Colour.RED


class ShopError(Exception):
    pass


class SoldOut(ShopError):
    """Its `args` are not what its `__init__` takes."""

    def __init__(self, item: Item, left: int = 0) -> None:
        super().__init__(f"{item.name} is sold out")
        self.item = item
        self.left = left


class Plain(Exception):
    pass


@dataclass
class Late(Exception):
    by: datetime.timedelta
    codes: list[Colour]


class Closed(cells.UsageError):
    pass


ERRORS: dict[str, Exception] = {
    "init": SoldOut(Item("tea"), left=3),
    "plain": Plain("tea", 1, (2, [None, {1, 2}]), {"a": b"b"}, 2**70, decimal.Decimal("1.10"), uuid.UUID(int=7)),
    "empty": Plain(),
    "dataclass": Late(datetime.timedelta(seconds=5), [Colour.RED]),
    "ours": Closed("The shop is closed.", until=[1, 2], by=("x", 1.5)),
    "built in": KeyError("tea"),
    "OSError": FileNotFoundError(2, "No such file", "a.txt"),
    "time": Plain(datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.date(2026, 1, 2), datetime.time(1, 2)),
}


class TicketStall(cells.Agent):
    stock: int = 5

    @cells.handler(raises=(ShopError, Plain, Late, Closed, KeyError, OSError))
    async def buy(self, how: str, wait: bool = False) -> int:
        self.stock -= 1
        if wait:
            await asyncio.sleep(0)
        if how == "noted":
            error = Plain("tea")
            error.add_note("ask for milk")
            raise error from ValueError("no leaves")
        if how == "lock":
            raise Plain(threading.Lock())
        if how == "large":
            raise Plain("x" * 600_000)
        raise ERRORS[how]

    @cells.handler
    async def look(self) -> int:
        return self.stock


class StallBuyer(cells.Agent):
    bought: int = 0

    @cells.handler
    async def buy(self, shop: TicketStall, how: str) -> str:
        self.bought += 1
        try:
            await shop.buy(how)
        except SoldOut as error:
            return f"{error.item.name} {error.left}"
        except (Plain, Late, Closed, KeyError, OSError) as error:
            return type(error).__name__
        return "bought"

    @cells.handler
    async def pass_on(self, shop: TicketStall, how: str) -> None:
        await shop.buy(how)


def content(error: BaseException) -> tuple[Any, ...]:
    return type(error), error.args, vars(error), str(error), repr(error)


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "after a wait"])
@pytest.mark.parametrize("how", ERRORS)
async def test_a_declared_error_arrives_as_it_was_raised(
    how: str, wait: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mielin_cells")
    async with cells.local() as cluster:
        shop = await cluster.spawn(TicketStall, "s")
        with pytest.raises(type(ERRORS[how])) as raised:
            await shop.buy(how, wait)
        assert raised.value is not ERRORS[how]
        assert content(raised.value) == content(ERRORS[how])
        assert await shop.look() == 5
        assert (await cluster.show(shop)).dead == 0
    assert "raised" not in caplog.text, "it is an answer like any"


async def test_attributes_of_os_errors_beside_their_arguments_arrive_too() -> None:
    async with cells.local() as cluster:
        shop = await cluster.spawn(TicketStall, "s")
        with pytest.raises(FileNotFoundError) as raised:
            await shop.buy("OSError")
        assert (raised.value.errno, raised.value.filename) == (2, "a.txt")


async def test_notes_arrive_and_the_cause_is_one() -> None:
    async with cells.local() as cluster:
        shop = await cluster.spawn(TicketStall, "s")
        with pytest.raises(Plain) as raised:
            await shop.buy("noted")
        assert raised.value.__notes__ == ["ask for milk", "caused by ValueError: no leaves"]


@pytest.mark.parametrize(
    ("how", "why"), [("lock", "argument 1: a lock cannot be sent"), ("large", "bytes cannot be sent")]
)
async def test_a_declared_error_with_what_cannot_be_sent_is_told_as_a_failure_that_says_so(how: str, why: str) -> None:
    async with cells.local() as cluster:
        shop = await cluster.spawn(TicketStall, "s")
        with pytest.raises(cells.HandlerFailed, match=why) as raised:
            await shop.buy(how)
        assert raised.value.kind == "Plain"
        assert await shop.look() == 5


@pytest.mark.parametrize("how", ERRORS)
async def test_a_handler_that_asks_gets_the_class_and_what_it_does_not_declare_is_a_failure(how: str) -> None:
    async with cells.local(nodes=2) as cluster:
        shop, buyer = await cluster.spawn(TicketStall, "s"), await cluster.on("node-2").spawn(StallBuyer, "b")
        said = await buyer.buy(shop, how)
        assert said == ("tea 3" if how == "init" else type(ERRORS[how]).__name__)
        with pytest.raises(cells.HandlerFailed, match=type(ERRORS[how]).__name__):
            await buyer.pass_on(shop, how)


async def test_a_stored_error_is_the_answer_also_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with cells.local(path=path) as cluster:
        assert isinstance(cluster, Client)
        shop = await cluster.spawn(TicketStall, "s")
        with pytest.raises(SoldOut):
            await shop.buy("init")
        sender = cluster.session("s").sender
    async with cells.local(path=path) as cluster:
        assert isinstance(cluster, Client)
        stored = (await load(cluster.log, "s")).ledger.answer(sender, 1)
        assert stored is not None
        from mielin_cells.agents.spec import spec_of
        from mielin_cells.log.message import decode_answer

        again = spec_of(TicketStall).handlers["buy"].error_of(decode_answer(stored))
        assert content(again) == content(ERRORS["init"])


async def test_a_declared_error_of_a_tell_is_a_dead_letter_at_once() -> None:
    async with cells.local() as cluster:
        assert isinstance(cluster, Client)
        shop = await cluster.spawn(TicketStall, "s")
        await shop.buy.tell("init")
        assert await shop.look() == 5
        (letter,) = (await load(cluster.log, "s")).ledger.dead
        assert (letter.tries, letter.cause) == (1, "SoldOut: tea is sold out")


async def test_a_caller_without_the_error_class_gets_its_name_and_text() -> None:
    async with cells.local() as cluster:
        assert isinstance(cluster, Client)
        await cluster.spawn(TicketStall, "s")
        with pytest.raises(cells.HandlerFailed, match="SoldOut: tea is sold out") as raised:
            await Operator(cluster).ask("s", "buy", ["init"])
        assert (raised.value.kind, raised.value.cause) == ("SoldOut", "SoldOut: tea is sold out")


# ---- what cannot be declared -------------------------------------------------------------------------------------


class New(Exception):
    def __new__(cls, text: str) -> New:
        return super().__new__(cls, text)


class Slotted(Exception):
    __slots__ = ("item",)


class OwnOSError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, path)


class Locked(Exception):
    def __init__(self, lock: threading.Event) -> None:
        super().__init__("locked")
        self.lock = lock


SOLD_OUT = type("SoldOut", (Exception,), {})


@pytest.mark.parametrize(
    ("raises", "why"),
    [
        (SoldOut, "is no tuple"),
        ([SoldOut], "is no tuple"),
        (("SoldOut",), "no class of `Exception`s"),
        ((int,), "no class of `Exception`s"),
        ((KeyboardInterrupt,), "no class of `Exception`s"),
        ((asyncio.CancelledError,), "no class of `Exception`s"),
        ((StopIteration,), "cannot leave an `async def`"),
        ((ExceptionGroup,), "holds other exceptions"),
        ((UnicodeDecodeError,), "what its arguments do not say"),
        ((msgspec.ValidationError, New), "has a `__new__`"),
        ((Slotted,), "`__slots__`"),
        ((OwnOSError,), "derive it from Exception"),
        ((SoldOut, SOLD_OUT), "two classes SoldOut"),
    ],
    ids=str,
)
def test_a_class_that_cannot_be_made_again_is_refused_where_it_is_declared(raises: Any, why: str) -> None:
    with pytest.raises(cells.FieldRefused, match=why):

        class BadDeclared(cells.Agent):
            @cells.handler(raises=raises)
            async def go(self) -> None: ...


async def test_a_parameter_that_cannot_be_sent_is_refused_when_the_class_is_first_used() -> None:
    class KeeperOfNotes(cells.Agent):
        @cells.handler(raises=(Locked,))
        async def go(self) -> None: ...

    async with cells.local() as cluster:
        with pytest.raises(cells.FieldRefused, match=r"KeeperOfNotes\.go -> Locked\(lock\)"):
            await cluster.spawn(KeeperOfNotes, "k")


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.decimals() | st.uuids()
    | st.dates() | st.times() | st.datetimes() | st.datetimes(timezones=st.just(datetime.UTC)) | st.timedeltas() | st.complex_numbers()
)  # fmt: skip
keys = st.text() | st.integers() | st.tuples(st.integers(), st.text())
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner) | st.sets(keys)
    | st.frozensets(keys),
    max_leaves=20,
)  # fmt: skip


def shown(value: object) -> str:
    """Equal for equal values, also of sets, whose order is any, and of NaN, which is unequal to itself."""
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}{sorted(map(shown, value))}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}{[shown(part) for part in value]}"
    if isinstance(value, dict):
        return f"dict{[(shown(key), shown(part)) for key, part in value.items()]}"
    return repr(value)


@given(values)
def test_plain_values_come_back_as_they_were(value: object) -> None:
    again = _unpacked(msgspec.msgpack.decode(msgspec.msgpack.encode(pack(value))), {})
    assert type(again) is type(value)
    assert shown(again) == shown(value)
