"""What is refused when a class is defined, because it would surprise later; and decorators around handlers."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mielin_cells as cells
from mielin_cells.agents.reference import classes


def doubled(fn: Any) -> Any:
    """Without `functools.wraps`: the function that it makes has a name of its own."""

    async def wrapper(self: Any, n: int) -> int:
        return 2 * int(await fn(self, n))

    return wrapper


def traced(fn: Any) -> Any:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await fn(*args, **kwargs)

    return wrapper


class Adder(cells.Agent):
    count: int = 0

    @cells.handler
    @doubled
    async def add(self, n: int) -> int:
        self.count += n
        return self.count

    @cells.handler
    @traced
    async def take(self, n: int, *, twice: bool = False) -> int:
        """Takes away."""
        self.count -= 2 * n if twice else n
        return self.count

    minus = take


async def test_a_decorator_below_handler_works_whatever_name_it_gives() -> None:
    async with cells.local() as cluster:
        adder = await cluster.spawn(Adder, "a")
        assert await adder.add(4) == 8
        assert await adder.take(1, twice=True) == 2
        assert await adder.minus(1) == 1
        await adder.add.tell(1)
        assert await adder.take(0) == 2
    assert Adder.take.__doc__ == "Takes away."


class Urn(cells.Agent):
    count: int = 0

    @cells.handler
    async def add(self, n: int) -> int:
        self.count += n
        return self.count

    @cells.handler
    async def both(self, n: int) -> list[int]:
        return [await self.add(n), await Urn.add(self, n)]


class Samovar(Urn):
    @cells.handler
    async def add(self, n: int) -> int:
        return await super().add(n) * 100


async def test_a_handler_is_overridden_and_called_like_a_method() -> None:
    async with cells.local() as cluster:
        derived: Urn = await cluster.spawn(Samovar, "d")
        assert await derived.add(1) == 100
        assert await Urn.add(derived, 1) == 200  # an ask: the agent runs what its own class has
        assert await derived.both(1) == [300, 4]


@pytest.mark.parametrize(
    ("around", "kind"),
    [(doubled, "decorator"), (traced, "decorator"), (staticmethod, "staticmethod"), (property, "property")],
)
def test_a_decorator_above_handler_is_refused(around: Callable[[Any], Any], kind: str) -> None:
    @cells.handler
    async def add(self: Any, n: int) -> int:
        return n

    with pytest.raises(cells.FieldRefused, match=rf"Wrong\.add is a handler behind a {kind}.*put @handler outermost"):
        type("Wrong", (cells.Agent,), {"add": around(add)})
    assert "Wrong" not in classes


def test_a_handler_of_another_class_under_another_name_is_refused() -> None:
    with pytest.raises(cells.FieldRefused, match=r"Wrong\.plus is the handler Urn\.add under another name"):
        type("Wrong", (cells.Agent,), {"plus": Urn.__dict__["add"]})


def test_a_handler_that_the_class_got_after_it_was_used_says_so() -> None:
    async def late(self: Any) -> None: ...

    class Open(cells.Agent): ...

    from mielin_cells.agents.spec import spec_of

    spec_of(Open)
    Open.late = cells.handler(late)  # type: ignore[attr-defined]
    with pytest.raises(cells.errors.NoSuchHandler, match="define handlers in the class"):
        spec_of(Open).handler("late")


async def a_method(self: Any) -> int:
    return 1


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (cells.handler(a_method), "a handler"),
        (a_method, "a method"),
        (property(lambda self: 1), "a property"),
        (len, "a method"),
    ],
)
def test_a_name_is_of_a_field_or_of_something_else(value: Any, kind: str) -> None:
    with pytest.raises(
        cells.FieldRefused, match=rf"Wrong\.a_method is declared as state, and is {kind} as well; rename one"
    ):
        type("Wrong", (cells.Agent,), {"__annotations__": {"a_method": int}, "a_method": value})
    with pytest.raises(cells.FieldRefused, match=r"Wrong\.kept is declared as state, and is a slot as well"):
        type("Wrong", (cells.Agent,), {"__annotations__": {"kept": int}, "__slots__": ("kept",)})


# ---- one name, two classes -------------------------------------------------------------------------------------


def test_two_classes_of_one_name_are_refused() -> None:
    def billing() -> type[cells.Agent]:
        class Passbook(cells.Agent): ...

        return Passbook

    def login() -> type[cells.Agent]:
        class Passbook(cells.Agent): ...

        return Passbook

    first = billing()
    with pytest.raises(cells.UsageError, match=r"billing.*Passbook and .*login.*Passbook.*name=\"\.\.\.\"") as refused:
        login()
    assert refused.value.name == "Passbook"
    assert classes["Passbook"] is first
    with pytest.raises(cells.UsageError, match="have the name 'Passbook' on the wire"):
        type("Ledger", (cells.Agent,), {}, name="Passbook")


def test_a_class_that_is_defined_again_or_in_a_later_version_takes_its_own_place() -> None:
    def cell(size: int) -> type[cells.Agent]:
        class Notebook(cells.Agent):
            pages: int = size

        return Notebook

    assert cell(1) is not (again := cell(2))
    assert classes["Notebook"] is again

    class NotebookV2(cells.Agent, name="Notebook", version=2): ...

    assert classes["Notebook"] is NotebookV2


def test_a_reloaded_module_replaces_its_classes_and_another_modules_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import mielin_cells as cells\nclass Ferry(cells.Agent): ...\n"
    for name in ("harbour_a", "harbour_b"):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("harbour_a")
    first = module.Ferry
    assert importlib.reload(module).Ferry is classes["Ferry"] is not first
    with pytest.raises(cells.UsageError, match=r"harbour_a\.Ferry and harbour_b\.Ferry"):
        importlib.import_module("harbour_b")
    for name in ("harbour_a", "harbour_b"):
        sys.modules.pop(name, None)


def test_a_derived_class_of_the_same_name_elsewhere_needs_another() -> None:
    with pytest.raises(cells.UsageError, match="Two agent classes have the name 'Urn'"):
        type("Urn", (Urn,), {"__module__": "elsewhere"})
    other: Any = type
    assert other("Urn", (Urn,), {"__module__": "elsewhere"}, name="elsewhere.Urn").__mro__[1] is Urn


def test_a_program_that_is_also_imported_is_named_in_the_error() -> None:
    type("Clerk", (cells.Agent,), {"__module__": "__main__"})
    with pytest.raises(cells.UsageError, match="The file that runs as the program is imported as app as well"):
        type("Clerk", (cells.Agent,), {"__module__": "app"})


# ---- timers ----------------------------------------------------------------------------------------------------


class Chum(cells.Agent):
    got: list[str] = []

    @cells.handler
    async def remind(self, what: str) -> None:
        self.got.append(what)

    @cells.handler
    async def read(self) -> list[str]:
        return self.got


class Planner(cells.Agent):
    friend: Chum

    @cells.handler
    async def remind(self, what: str) -> None:
        await self.friend.remind.tell(what)

    @cells.handler
    async def plan(self, wrong: str) -> None:
        odd: dict[str, Any] = {"friend's": self.friend.remind, "text": "remind", "class": Planner.remind}
        chosen: Any = odd.get(wrong, self.remind)
        later: Any = cells.after(0, chosen)
        later("tea")


async def test_a_timer_is_for_a_handler_of_the_agent_itself_and_others_are_refused_at_once() -> None:
    async with cells.local() as cluster:
        friend = await cluster.spawn(Chum, "f")
        planner = await cluster.spawn(Planner, "p", friend=friend)
        with pytest.raises(cells.UsageError, match=r"<Chum 'f'>\.remind, a handler of another agent.*tells <Chum 'f'>"):
            await planner.plan("friend's")
        for wrong in ("text", "class"):
            with pytest.raises(cells.UsageError, match="give a handler of the agent: after"):
                await planner.plan(wrong)
        await planner.plan("")
        while not await friend.read():
            pass
        assert await friend.read() == ["tea"]
