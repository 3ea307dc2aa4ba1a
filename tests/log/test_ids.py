"""Agent ids: what is taken, what is refused, and that a subject never holds more than one plain word of an id."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mielin_cells.errors import InvalidAgentId
from mielin_cells.log import ids
from mielin_cells.log.ids import AgentId, decoded, encoded

WORD = re.compile(r"[A-Za-z0-9_=-]+")
SUBJECTS: list[Callable[[str], str]] = [
    ids.log_subject, ids.inbox_subject, ids.part_prefix, ids.control_subject, ids.reply_subject,
]  # fmt: skip
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


@pytest.mark.parametrize(
    "text",
    [
        "", "a\rb", "a\nb", "\r\n", "\x00", "a\x00b", "x" * 4096, "x" * 129, "\t", "\x7f", "\x85", "\x9f", "\ud800",
        "museum\n",
    ],
)  # fmt: skip
def test_bad_ids_are_refused(text: str) -> None:
    with pytest.raises(InvalidAgentId) as caught:
        AgentId(text)
    assert len(str(caught.value)) < 300  # the sentence does not repeat 4 KiB


@pytest.mark.parametrize("thing", [None, 1, b"museum", ["a"]])
def test_an_id_that_is_not_text_is_refused(thing: object) -> None:
    with pytest.raises(InvalidAgentId):
        AgentId(thing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        ".", "*", ">", " ", "a b", "a.b.*", "log.>", "../", "../../etc/passwd", "$JS", "$JS.API.STREAM.DELETE.x",
        "_INBOX", "_INBOX.abc", "\U0001f41d", "ü", "=", "=2E", "a=b", "museum/1", "x" * 128, "\U0001f41d" * 128, "-",
    ],
)  # fmt: skip
def test_odd_ids_are_encoded_and_come_back(text: str) -> None:
    word = encoded(AgentId(text))
    assert WORD.fullmatch(word)
    assert decoded(word) == text
    assert ids.agent_of(ids.log_subject(text)) == text


def test_an_id_is_text_and_stays_itself() -> None:
    agent = AgentId("museum/1")
    assert agent == "museum/1"
    assert AgentId(agent) is agent
    assert not hasattr(agent, "__dict__")


@given(TEXT)
@example("=41")
def test_encoding_round_trips_in_allowed_characters_only(text: str) -> None:
    word = encoded(text)
    assert WORD.fullmatch(word)
    assert decoded(word) == text


@given(TEXT, TEXT)
@example("A", "=41")
@example("a.b", "a=2Eb")
@example("é", "e\u0301")
def test_different_texts_stay_different(one: str, other: str) -> None:
    assert (encoded(one) == encoded(other)) == (one == other)


@given(TEXT)
@example("a.b")
@example("x.>")
def test_a_subject_has_one_word_of_the_id_behind_its_prefix(text: str) -> None:
    for subject in SUBJECTS:
        words = subject(text).removesuffix(".").split(".")
        assert len(words) == 2
        assert WORD.fullmatch(words[1])
    assert not ids.part_subject(text, "0a").removeprefix(ids.part_prefix(text)).count(".")


@given(TEXT, TEXT)
def test_no_agents_parts_are_under_another_agents_prefix(one: str, other: str) -> None:
    assert ids.part_subject(one, "0a").startswith(ids.part_prefix(other)) == (one == other)


@given(st.text())
def test_every_text_is_an_id_that_round_trips_or_is_refused(text: str) -> None:
    try:
        agent = AgentId(text)
    except InvalidAgentId:
        return
    assert decoded(encoded(agent)) == text
