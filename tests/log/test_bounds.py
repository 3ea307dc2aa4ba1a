"""What an agent keeps of messages is bounded by bytes, counted in its size, and sealed without hashing all of it at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.agent_log import commit, out, taken
from support.letters import letter

import mielin_cells as cells
from mielin_cells.errors import AnswerExpired
from mielin_cells.log import ledger as module
from mielin_cells.log.digest import NamedDigests
from mielin_cells.log.fold import Fold
from mielin_cells.log.ledger import Ledger, Verdict
from mielin_cells.log.message import DROPPED, client_sender, decode_answer
from mielin_cells.settings import ANSWERS_BYTES_MAX
from mielin_cells.store.reader import load


def counted(ledger: Ledger) -> tuple[int, int, int]:
    """What the counters must say."""
    return (
        sum(len(answer) for peer in ledger.peers.values() for answer in peer.answers.values()),
        sum(len(one.args) for one in ledger.unreleased()),
        sum(len(one.args) for one in ledger.dead),
    )


def said(ledger: Ledger) -> tuple[int, int, int]:
    return ledger.answer_bytes, ledger.pending_bytes, ledger.letter_bytes


@pytest.mark.parametrize("sender", [client_sender, str], ids=["clients", "agents"])
def test_answers_of_the_quietest_are_dropped_and_nothing_runs_twice(sender: type[str]) -> None:
    ledger, size = Ledger(), 100_000
    for n in range(200):
        ledger.take(sender(f"s{n}"), 1, 1, 1, b"x" * size)
        ledger.take(sender("busy"), n + 1, n + 1, 1, b"y" * 1000)
    assert ledger.answer_bytes <= ANSWERS_BYTES_MAX
    assert said(ledger) == counted(ledger)
    kept = [n for n in range(200) if ledger.answer(sender(f"s{n}"), 1) == b"x" * size]
    assert kept == list(range(200 - len(kept), 200))
    assert len(kept) * size >= ANSWERS_BYTES_MAX // 2
    assert all(ledger.judge(sender(f"s{n}"), 1, 1) is Verdict.REPEAT for n in range(200))
    assert ledger.answer(sender("busy"), 200) == b"y" * 1000
    error = decode_answer(ledger.answer(sender("s0"), 1) or b"").error
    assert error is not None
    assert error[0] == AnswerExpired.__name__


def test_dead_letters_are_bounded_by_their_bytes_and_the_newest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LETTERS_BYTES_MAX", 100)
    ledger = Ledger()
    for n, size in enumerate((40, 40, 40, 500, 30, 30)):
        found = letter(n)
        ledger.bury(type(found)(n, "x", 1, "h", "c", 1, [], b"z" * size))
        assert ledger.letter_bytes <= 100 or len(ledger.dead) == 1
        assert said(ledger) == counted(ledger)
    assert [found.seq for found in ledger.dead] == [4, 5]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_counts_match_the_ledger_and_the_digest_depends_on_its_contents_alone(data: st.DataObject) -> None:
    """Whatever is taken, sent, released and forgotten; with digests kept up, taken at once, and of an image."""
    limit = data.draw(st.sampled_from((1, 3, 1000)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FLAT_MAX", limit)
        patch.setattr(module, "ANSWERS_BYTES_MAX", 3 * len(DROPPED))
        owner = Ledger()
        for _ in range(data.draw(st.integers(0, 25))):
            match data.draw(st.integers(0, 4)):
                case 0 | 1:
                    name = data.draw(st.sampled_from("abcd"))
                    sender = client_sender(name) if data.draw(st.booleans()) else name
                    peer = owner.peers.get(sender)
                    n = (peer.mark if peer else 0) + 1 if sender == name else data.draw(st.integers(1, 9))
                    if owner.judge(sender, n, 1) is Verdict.APPLY:
                        answer = data.draw(st.none() | st.binary(max_size=2 * len(DROPPED)))
                        owner.take(sender, n, data.draw(st.integers(0, n)), 1, answer)
                case 2:
                    to = data.draw(st.sampled_from("wxyz"))
                    owner.send(out(owner.next_number(to), to))
                case 3:
                    to = data.draw(st.sampled_from("wxyz"))
                    owner.release(to, data.draw(st.integers(0, owner.numbers.get(to, 0))))
                case _:
                    owner.forget([s for s, peer in owner.peers.items() if peer.is_client][:1])
            if data.draw(st.booleans()):
                owner.hash_some(1)
            if data.draw(st.booleans()):
                owner.digest()
        assert said(owner) == counted(owner)
        again = owner.copy()
        assert said(again) == counted(again)
        assert again.digest() == owner.digest()
        other = owner.copy()
        other.numbers["more"] = 1
        other.released["more"] = 1
        assert other.digest() != owner.digest()


def test_a_seal_of_many_senders_hashes_what_has_changed() -> None:
    """However many there are: counted in names that are hashed, not in time."""
    ledger, hashed = Ledger(), list[str]()
    for n in range(6 * module.FLAT_MAX):
        ledger.take(f"s{n}", 1, 1, 0, b"a")
    marks = ledger._marks
    assert marks is not None
    assert marks.behind <= module.FLAT_MAX + 1
    while ledger.hash_some(module.HASH_SLICE):
        pass
    ledger.digest()
    content = marks._content

    def noted(name: str) -> bytes | None:
        hashed.append(name)
        return content(name)

    marks._content = noted
    ledger.take("s7", 2, 2, 0, None)
    ledger.take("new", 1, 1, 0, None)
    ledger.digest()
    assert sorted(hashed) == ["new", "s7"]


@given(
    st.dictionaries(st.text(max_size=3), st.binary(max_size=3), max_size=12), st.lists(st.text(max_size=3), max_size=8)
)
def test_named_digests_are_of_the_contents_alone(content: dict[str, bytes], gone: list[str]) -> None:
    at_once = NamedDigests(content.get, content).root()
    shuffled = NamedDigests({**content, **dict.fromkeys(gone, b"?")}.get, [*gone, *reversed(content)])
    shuffled.root()
    shuffled._content = content.get
    for name in (*gone, *content):
        shuffled.changed(name)
        shuffled.some(1)
    assert shuffled.root() == at_once
    if content:
        name = next(iter(content))
        assert NamedDigests({**content, name: content[name] + b"!"}.get, content).root() != at_once
        assert NamedDigests(content.get, list(content)[1:]).root() != at_once


class Echo(cells.Agent):
    count: int = 0

    @cells.handler
    async def give(self, size: int) -> bytes:
        self.count += 1
        return b"g" * size

    @cells.handler
    async def later(self, size: int) -> None:
        cells.after(1000).hear(b"h" * size)

    @cells.handler
    async def hear(self, what: bytes) -> None:
        self.count += 1


async def test_answers_count_in_the_size_that_is_shown_and_moved(tmp_path: Path) -> None:
    async with cells.local(nodes=2, path=tmp_path / "store.db") as c:
        echo = await c.spawn(Echo, "e")
        before = (await c.show(echo)).bytes
        assert len(await echo.give(200_000)) == 200_000
        assert (await c.show(echo)).bytes >= before + 200_000
        assert (await c.migrate(echo)).ok
        fold = await load(c.log, "e")  # type: ignore[attr-defined]
        assert fold.size_bytes >= fold.state.size_bytes + 200_000


async def test_arguments_of_timers_are_bounded_together() -> None:
    async with cells.local() as c:
        echo = await c.spawn(Echo, "e")
        for _ in range(8):
            await echo.later(500_000)
        with pytest.raises(cells.UsageError, match="bytes of arguments"):
            await echo.later(500_000)


def test_a_reader_drops_what_its_owner_dropped() -> None:
    owner, reader = Ledger(), Fold("a").ledger
    for n in range(1, 60):
        owner.take(client_sender("s"), n, 1, 1, b"x" * 100_000)
        reader.apply(commit(taken(n, client_sender("s"), b"x" * 100_000, 1, 1)))
    assert reader.copy() == owner.copy()
    assert owner.answer_bytes < 60 * 100_000
