"""References and their handlers as values: what `hasattr`, `dir`, `copy`, `pickle`, `repr` and their like make of them."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import mielin_cells as cells
from mielin_cells.agents.reference import make_ref


class Parrot(cells.Agent):
    words: list[str] = []
    age: int = 3

    @cells.handler
    async def teach(self, word: str, times: int = 1) -> int:
        """Learns a word."""
        self.words.extend([word] * times)
        return len(self.words)

    @cells.handler
    async def twin(self) -> Parrot:
        return self

    @property
    def loudness(self) -> int:
        return self.age * 2


def test_to_hasattr_and_getattr_a_reference_has_handlers_and_no_state() -> None:
    ref = make_ref(Parrot, "p")
    assert [hasattr(ref, name) for name in ("teach", "age", "words", "loudness", "nothing")] == [True, *[False] * 4]
    assert getattr(ref, "age", "unknown") == "unknown"
    with pytest.raises(AttributeError, match="<Parrot 'p'> is a reference: ask the agent for 'age'"):
        _ = ref.age
    with pytest.raises(cells.UsageError):
        ref.age = 4
    with pytest.raises(cells.errors.IsReference) as raised:
        _ = ref.age
    error = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 - our own bytes
    assert isinstance(error, AttributeError)
    assert "ask the agent for 'age'" in str(error)


async def test_a_hook_of_a_reference_is_not_run_here_and_neither_is_a_handler_assigned() -> None:
    ref: Any = make_ref(Parrot, "p")
    for hook in ("on_start", "on_arrive", "on_depart", "on_stop", "healthy"):
        assert not hasattr(ref, hook)
        assert hook not in dir(ref)
        with pytest.raises(cells.errors.IsReference, match=f"{hook} is a hook, which only the agent's node calls"):
            getattr(ref, hook)
    with pytest.raises(cells.UsageError, match="teach is a handler of <Parrot 'p'>, and cannot be assigned"):
        ref.teach = len
    with pytest.raises(cells.errors.IsReference):
        del ref.age


class Ancestor(cells.Agent):
    ran: list[str] = []

    async def on_start(self) -> None:
        self.ran.append("parent")

    @cells.handler
    async def had(self) -> list[str]:
        return self.ran


class Heiress(Ancestor):
    async def on_start(self) -> None:
        await super().on_start()
        self.ran.append("child")


class LateHeiress(Heiress): ...


async def test_hooks_are_inherited_and_call_the_next_like_methods() -> None:
    async with cells.local() as cluster:
        assert await (await cluster.spawn(Heiress, "c")).had() == ["parent", "child"]
        assert await (await cluster.spawn(LateHeiress, "g")).had() == ["parent", "child"]


def test_dir_and_getmembers_of_a_reference_show_what_it_has() -> None:
    ref = make_ref(Parrot, "p")
    assert {"teach", "twin"} <= set(dir(ref))
    assert not {"age", "words"} & set(dir(ref))
    assert not [name for name in dir(ref) if "mielin" in name]
    assert "teach" in dict(inspect.getmembers(ref))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda ref: copy.deepcopy([ref])[0]])
async def test_a_copy_of_a_reference_is_that_reference_and_keeps_its_cluster(again: Callable[[Any], Any]) -> None:
    async with cells.local() as first:
        parrot = await first.spawn(Parrot, "p")
        async with cells.local():  # another one is current here
            assert again(parrot) == parrot
            assert await again(parrot).teach("a") == await parrot.teach("b") - 1
            assert await again(parrot.teach)("c") == 3


def test_references_and_their_handlers_pickle() -> None:
    ref = make_ref(Parrot, "p")
    assert pickle.loads(pickle.dumps(ref)) == ref  # noqa: S301 - our own bytes
    bound = pickle.loads(pickle.dumps(ref.teach.options(timeout=2, id="x")))  # noqa: S301
    assert bound == ref.teach.options(timeout=2, id="x")
    assert bound != ref.teach


def test_references_and_handlers_are_hashable_true_and_equal_by_what_they_name() -> None:
    ref, same, other = make_ref(Parrot, "p"), make_ref(Parrot, "p"), make_ref(Parrot, "q")
    assert len({ref, same, other}) == 2
    assert len({ref.teach, same.teach, other.teach, ref.twin}) == 3
    assert ref.teach == same.teach != ref.twin
    assert ref.teach != "teach"
    assert [bool(ref), bool(ref.teach)] == [True, True]
    assert isinstance(ref, Parrot)
    assert f"{ref} {ref.teach} {ref.teach!r}" == "<Parrot 'p'> <Parrot 'p'>.teach <Parrot 'p'>.teach"


def test_tools_see_a_handler_as_the_function_that_it_is() -> None:
    bound, found = make_ref(Parrot, "p").teach, Parrot.teach
    assert str(inspect.signature(bound)) == "(word: 'str', times: 'int' = 1) -> 'int'"
    assert str(inspect.signature(found)) == "(self, word: 'str', times: 'int' = 1) -> 'int'"
    assert (bound.__name__, found.__name__) == ("teach", "teach")  # type: ignore[attr-defined]
    assert bound.__qualname__ == found.__qualname__ == "Parrot.teach"  # type: ignore[attr-defined]
    assert inspect.getdoc(found) == "Learns a word."
    assert bound.__self__ == make_ref(Parrot, "p")
    assert callable(bound)
    assert repr(found) == "<handler Parrot.teach>"
    with pytest.raises(AttributeError, match=r"has no 'ask'; it is a handler: call it"):
        _ = bound.ask  # type: ignore[attr-defined]


async def test_a_handler_called_on_its_class_asks_a_reference() -> None:
    async with cells.local() as cluster:
        parrot = await cluster.spawn(Parrot, "p")
        assert await Parrot.teach(parrot, "a", times=2) == 2


# ---- whose cluster ---------------------------------------------------------------------------------------------


class Post(cells.Agent):
    letters: int = 0

    @cells.handler
    async def put(self) -> int:
        self.letters += 1
        return self.letters


held: dict[str, Any] = {}


class Courier(cells.Agent):
    post: Post

    @cells.handler
    async def to_held(self) -> int:
        return int(await held["post"].put())

    @cells.handler
    async def tell_held(self) -> None:
        await held["post"].put.tell()

    @cells.handler
    async def to_given(self, post: Post) -> int:
        return await post.put()

    @cells.handler
    async def to_kept(self) -> int:
        return await self.post.put()

    @cells.handler
    async def to_found(self) -> int:
        return await cells.this().cluster.get(Post, "post").put()


async def test_a_reference_uses_the_cluster_that_gave_it_also_in_a_turn_of_another() -> None:
    async with cells.local() as here, cells.local() as there:
        mine, other = await here.spawn(Post, "post"), await there.spawn(Post, "post")
        courier = await here.spawn(Courier, "courier", post=other)  # as state it names an agent, wherever it runs
        held["post"] = other
        assert await courier.to_held() == 1
        await courier.tell_held()
        assert await other.put() == 3
        assert await courier.to_given(other) == 1  # so does an argument
        assert await courier.to_kept() == 2
        assert await courier.to_found() == 3
        held["post"] = mine
        assert await courier.to_held() == 4
        assert (await mine.put(), await other.put()) == (5, 4)


async def test_outside_of_turns_each_of_two_open_clusters_is_asked_by_its_own_references() -> None:
    async with cells.local() as here, cells.local() as there:
        mine, other = await here.spawn(Post, "post"), await there.spawn(Post, "post")
        await mine.put()
        assert (await mine.put(), await other.put()) == (2, 1)


# ---- the turn that a reference is used in ----------------------------------------------------------------------


class Leaky(cells.Agent):
    @cells.handler
    async def keep(self, post: Post) -> None:
        held.update(turn=cells.this(), call=post.put(), post=post)

    @cells.handler
    async def use(self, what: str) -> None:
        if what == "turn":
            held["turn"].migrate()
        elif what == "caller":
            await held["turn"].caller.tell(held["post"], "put", (), {}, None)
        else:
            await held["call"]


@pytest.mark.parametrize("what", ["turn", "caller", "call"])
async def test_a_turn_is_of_no_use_to_another_turn(what: str) -> None:
    async with cells.local() as cluster:
        post = await cluster.spawn(Post, "post")
        one, two = await cluster.spawn(Leaky, "one"), await cluster.spawn(Leaky, "two")
        await one.keep(post)
        with pytest.raises(cells.NotInTurn, match="turn of agent 'one'"):
            await two.use(what)
        held["call"].close()
        assert await post.put() == 1
