"""What is stored and what is damaged: every record comes back as it was, and no damage passes or raises anything unnamed."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.agent_log import (
    accepted,
    after,
    asked,
    claimed,
    cleared,
    commit,
    committed,
    created,
    failed,
    handed_off,
    head,
    out,
    paused,
    resumed,
    returned,
    snapshot,
    stepped,
    suspended,
    taken,
    terminated,
    undone,
)

from mielin_cells.errors import (
    DigestMismatch,
    RecordInvalid,
    RecordTruncated,
    TrailingData,
    UnknownRecord,
    UnsupportedFormat,
)
from mielin_cells.log.codec import framed, unframed
from mielin_cells.log.commit import DeadLetter
from mielin_cells.log.delta import BufferDelta, StateDelta, TableDelta
from mielin_cells.log.fold import Fold
from mielin_cells.log.message import (
    Answer,
    Mail,
    Message,
    Replies,
    client_sender,
    decode_answer,
    decode_mail,
    decode_replies,
    encode_answer,
    encode_mail,
    encode_replies,
)
from mielin_cells.log.records import (
    AnyRecord,
    PartRef,
    Record,
    Spilled,
    StandbySet,
    decode_record,
    encode_record,
    made_owner,
    named_owner,
)

FOLD = after(committed)
STATE = StateDelta(
    plain={"visits": b"\x01"},
    tables={"guests": TableDelta({b"k": b"v"}, [b"old"])},
    buffers={"map": BufferDelta(7, {0: b"page"}, 3)},
    removed=["gone"],
)
LETTER = DeadLetter(4, "visitor", 2, "hello", "OSError: x", 5, ["guide.hello"], b"\x90")
FULL = commit(
    taken(1, answer=b"\xc0"), taken(9, client_sender("s"), b"a", 3, 1), outs=(out(1), out(2, ask=True)), state=STATE,
    cursor=2**40, held=[3, 5], released={"guide": 0}, dead=[LETTER], forgot=[client_sender("s")], digest=bytes(32),
)  # fmt: skip
RECORDS: list[AnyRecord] = [
    created(Fold("museum/1")),
    committed(FOLD),
    committed(FOLD, FULL),
    asked(FOLD),
    stepped(FOLD),
    snapshot(after(lambda f: committed(f, FULL), handed_off, accepted, failed)),
    suspended(FOLD),
    paused(FOLD),
    resumed(after(paused)),
    failed(FOLD),
    terminated(FOLD),
    cleared(FOLD, LETTER.key, (0, client_sender("s"), 2)),
    handed_off(FOLD),
    handed_off(FOLD, seal=FULL),
    accepted(after(handed_off)),
    returned(after(handed_off)),
    undone(FOLD),
    undone(after(asked)),
    claimed(FOLD),
    StandbySet(**head(FOLD), copies=2),
    Spilled(**head(FOLD), part="0a", parts=[PartRef(1, 2, bytes(32))]),
]
MAIL = Mail(
    "a", "Museum", client_sender("s"), 77, 3, "reply.x", [Message(3, "hello", b"\x90", True), Message(4, "x", b"")]
)
REPLIES = [Replies("a", "b", {1: encode_answer(Answer(b"\xc0")), 2: b""})]
Decode = Callable[[bytes], object]


def record_of(data: bytes) -> AnyRecord:
    return decode_record(data, "here")


def mail_of(data: bytes) -> Mail:
    return decode_mail(data, "here")


STORED: list[tuple[bytes, Decode]] = [(encode_record(r), record_of) for r in RECORDS] + [(encode_mail(MAIL), mail_of)]
KINDS = [type(r).__name__ for r in RECORDS] + ["Mail"]
stored = pytest.mark.parametrize(("data", "decode"), STORED, ids=KINDS)
PAYLOADS = [msgspec.msgpack.encode(r) for r in RECORDS]


def test_every_kind_of_record_is_here() -> None:
    assert {type(r) for r in RECORDS} == set(Record.__subclasses__())


@pytest.mark.parametrize("record", RECORDS, ids=KINDS[:-1])
def test_a_record_comes_back_as_it_was(record: AnyRecord) -> None:
    assert record_of(encode_record(record)) == record


def test_mail_replies_and_answers_come_back_as_they_were() -> None:
    assert mail_of(encode_mail(MAIL)) == MAIL
    assert decode_replies(encode_replies(REPLIES)) == REPLIES
    for answer in (Answer(b"\xc0"), Answer(None, ("AskTimeout", "late", {"agent": "a", "n": 1, "names": ["x"]}))):
        assert decode_answer(encode_answer(answer)) == answer


def test_the_records_that_change_the_owner_name_it() -> None:
    """These are indexed by owner in the store: what is missing here, nobody finds."""
    named = {type(record).__name__: made_owner(record) for record in RECORDS}
    changes = {name: owner for name, owner in named.items() if owner is not None}
    assert changes.keys() == {"Created", "HandedOff", "Returned", "Claimed", "Terminated"}
    assert changes["Terminated"] == ""
    for record in RECORDS:
        assert made_owner(record) in (None, named_owner(record))


# ---- damage ----


@stored
def test_a_flipped_bit_in_any_byte_is_found_and_named(data: bytes, decode: Decode) -> None:
    for at in range(len(data)):
        for bit in range(8):
            changed = data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]
            with pytest.raises(RecordInvalid) as caught:
                decode(changed)
            assert type(caught.value) is not RecordInvalid, f"byte {at}, bit {bit} has no name of its own"
            assert caught.value.subject == "here"


@stored
def test_truncation_at_every_length_is_named(data: bytes, decode: Decode) -> None:
    for length in range(len(data)):
        with pytest.raises(RecordTruncated):
            decode(data[:length])


@stored
def test_trailing_bytes_are_named(data: bytes, decode: Decode) -> None:
    for more in (b"\0", b"\xc0", data):
        with pytest.raises(TrailingData):
            decode(data + more)


@stored
@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_format_is_named_with_both_versions(data: bytes, decode: Decode, version: int) -> None:
    with pytest.raises(UnsupportedFormat) as caught:
        decode(data[:2] + bytes((version,)) + data[3:])
    assert (caught.value.have, caught.value.need) == (version, 1)


@stored
def test_a_payload_under_another_digest_is_found(data: bytes, decode: Decode) -> None:
    other = framed(b"other")
    with pytest.raises(RecordInvalid):
        decode(data[:7] + other[7:39] + data[39:])


def test_a_record_of_an_unknown_kind_is_named_with_its_kind() -> None:
    for tag in ("Undreamt", ""):
        fields = msgspec.msgpack.decode(PAYLOADS[1])
        with pytest.raises(UnknownRecord) as caught:
            record_of(framed(msgspec.msgpack.encode([tag, *fields[1:]])))
        assert caught.value.tag == tag


@pytest.mark.parametrize(
    "payload", [b"", b"\x90", b"\xc0", b"\x91\x01", b"\x91\xa8Accepted", b"\xc1", b"\x91\xa2\xff\xff"]
)
def test_a_framed_payload_that_is_no_record_is_refused(payload: bytes) -> None:
    for decode in (record_of, mail_of):
        with pytest.raises(RecordInvalid):
            decode(framed(payload))


def test_each_field_of_the_wrong_type_is_refused() -> None:
    for payload in PAYLOADS:
        fields = msgspec.msgpack.decode(payload)
        for at in range(len(fields)):
            with pytest.raises(RecordInvalid):
                record_of(framed(msgspec.msgpack.encode([*fields[:at], {1: []}, *fields[at + 1 :]])))


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    deep = b"\x91" * depth + b"\xc0"
    last_field = PAYLOADS[-3][:-1]  # up to the migration or cause, which ends the record
    for payload in (deep, b"\x92\xa8Accepted" + deep, last_field + deep, b"\xdc\x00\x09" + PAYLOADS[5][1:] + deep):
        for decode in (record_of, mail_of):
            with pytest.raises(RecordInvalid):
                decode(framed(payload))
    for payload in (deep, b"\x91\x95\xa1a\xa1b\x01\xc4\x00" + deep):
        with pytest.raises(RecordInvalid):
            decode_replies(payload)
    with pytest.raises(RecordInvalid):
        decode_answer(b"\x93\xc0\xc0" + deep)


@pytest.mark.parametrize(
    "payload", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_a_declared_size_that_is_not_there_is_refused(payload: bytes) -> None:
    for decode in (record_of, mail_of):
        with pytest.raises(RecordInvalid):
            decode(framed(payload))
    with pytest.raises(RecordInvalid):
        decode_replies(payload)


# ---- garbage ----

GARBAGE = st.binary(max_size=200)


@given(GARBAGE | GARBAGE.map(framed) | GARBAGE.map(lambda b: b"mc\x01" + b))
def test_garbage_is_refused(data: bytes) -> None:
    for decode in (record_of, mail_of):
        with pytest.raises(RecordInvalid):
            decode(data)


@given(st.sampled_from(PAYLOADS), st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_a_record_written_wrong_by_a_peer_is_read_or_refused(payload: bytes, at: int, junk: bytes) -> None:
    """A changed payload under a digest that fits: another writer's bug, not a fault of the store."""
    at %= len(payload)
    try:
        record = record_of(framed(payload[:at] + junk + payload[at + len(junk) :]))
    except RecordInvalid:
        return
    assert isinstance(record, Record)


@given(GARBAGE)
def test_garbage_on_the_wire_is_refused_or_is_replies(data: bytes) -> None:
    """Replies have no frame: the wire is checked by its transport.  Whatever comes, nothing but `RecordInvalid` is raised."""
    try:
        replies = decode_replies(data)
    except RecordInvalid:
        return
    assert all(isinstance(reply, Replies) for reply in replies)


@pytest.mark.parametrize("at", range(len(encode_replies(REPLIES))))
def test_truncated_or_changed_replies_raise_nothing_else(at: int) -> None:
    data = encode_replies(REPLIES)
    with pytest.raises(RecordInvalid):
        decode_replies(data[:at])
    for bit in range(8):
        test_garbage_on_the_wire_is_refused_or_is_replies.hypothesis.inner_test(  # type: ignore[attr-defined]
            data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]
        )


@given(GARBAGE)
def test_a_garbled_answer_is_refused_or_an_answer(data: bytes) -> None:
    try:
        answer = decode_answer(data)
    except RecordInvalid:
        return
    assert isinstance(answer, Answer)


@given(GARBAGE)
def test_frames_hold_any_payload(payload: bytes) -> None:
    assert unframed(framed(payload), "here") == payload


def test_a_frame_says_which_damage_it_has() -> None:
    data = framed(b"payload")
    for changed, error in (
        (b"xx" + data[2:], DigestMismatch), (data[:-1], RecordTruncated), (data + b"x", TrailingData),
        (data[:-1] + b"x", DigestMismatch), (b"", RecordTruncated),
    ):  # fmt: skip
        with pytest.raises(error):
            unframed(changed, "here")
