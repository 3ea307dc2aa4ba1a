"""What arrived is compared with what the source said, and nothing is taken for granted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mielin_cells.migration import Manifest, StateVerifier, VerificationResult

VERIFIER = StateVerifier()


def test_the_same_state_of_an_agent_that_answers_passes() -> None:
    result = VERIFIER.verify(Manifest.of(b"state"), b"state", agent_responsive=True)

    assert result == VerificationResult(passed=True, checksum_valid=True, size_valid=True, agent_responsive=True)


@pytest.mark.parametrize(
    ("state", "responsive", "flags", "words"),
    [
        (b"stale", True, (False, True, True), ["checksum"]),
        (b"state\x00", True, (False, False, True), ["6 bytes arrived of 5", "checksum"]),
        (b"state", False, (True, True, False), ["does not answer"]),
        (b"", False, (False, False, False), ["0 bytes", "checksum", "does not answer"]),
    ],
)
def test_every_reason_against_an_arrived_state_is_reported(
    state: bytes, responsive: bool, flags: tuple[bool, bool, bool], words: list[str]
) -> None:
    result = VERIFIER.verify(Manifest.of(b"state"), state, agent_responsive=responsive)

    assert not result.passed
    assert (result.checksum_valid, result.size_valid, result.agent_responsive) == flags
    assert all(word in part for word, part in zip(words, result.details.split("; "), strict=True))


@given(state=st.binary(min_size=1, max_size=200), data=st.data())
def test_one_changed_bit_never_passes(state: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(state) * 8 - 1))
    changed = bytearray(state)
    changed[place // 8] ^= 1 << place % 8

    assert not VERIFIER.verify(Manifest.of(state), bytes(changed), agent_responsive=True).passed


def test_a_delta_on_another_base_does_not_pass_even_with_the_right_result() -> None:
    base, after = Manifest.of(b"base"), Manifest.of(b"after")

    assert VERIFIER.verify_delta(base, after, b"base", b"after", agent_responsive=True).passed
    replayed = VERIFIER.verify_delta(base, after, b"newer", b"after", agent_responsive=True)
    assert (replayed.passed, replayed.details) == (False, "the delta was made for another base")
    assert not VERIFIER.verify_delta(base, after, b"base", b"torn", agent_responsive=True).passed
