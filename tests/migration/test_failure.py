"""Classification: every error of ours, every refusal, deadline and end of a move has its type, and none is `Unknown` by oversight."""

from __future__ import annotations

import asyncio
import builtins

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mielin_cells import errors
from mielin_cells.errors import CellError, MigrationRefused, PermissionDenied, described
from mielin_cells.migration import source as m
from mielin_cells.migration.admission import (
    AgentRequirements,
    Facts,
    NodeCapabilities,
    Offer,
    check_compatibility,
    refusals,
)
from mielin_cells.migration.failure import (
    CODES,
    ERRNOS,
    SEVERITY,
    Coded,
    MigrationErrorType,
    Refused,
    SentBack,
    classify,
    is_settled,
)
from mielin_cells.migration.refusal import Refusal, RefusalKind, as_refusal, kinds, refusal
from mielin_cells.migration.source import Limits, Source

TRANSIENT = MigrationErrorType.NETWORK_TRANSIENT
PERMANENT = MigrationErrorType.NETWORK_PERMANENT
RESOURCES = MigrationErrorType.INSUFFICIENT_RESOURCES
INCOMPATIBLE = MigrationErrorType.INCOMPATIBLE_TARGET
CORRUPTION = MigrationErrorType.STATE_CORRUPTION
TIMEOUT = MigrationErrorType.TIMEOUT
UNREACHABLE = MigrationErrorType.TARGET_UNREACHABLE
UNKNOWN = MigrationErrorType.UNKNOWN

OURS = [name for name in errors.__all__ if name not in ("CellError", "InternalError", "MigrationError")]


@pytest.mark.parametrize("name", OURS)
def test_no_error_of_ours_is_unknown(name: str) -> None:
    kind = classify(getattr(errors, name)("It happened."))

    assert kind is not UNKNOWN
    assert classify(Coded(name)) is kind


@pytest.mark.parametrize("name", sorted(CODES))
def test_the_table_names_what_exists(name: str) -> None:
    ends_and_modules = {
        "Cancelled", "SourceLost", "TargetUnreachable", "Timeout", "CancelledError", "IncompleteReadError",
        "SSLCertVerificationError", "gaierror",
    }  # fmt: skip

    assert name in ends_and_modules or hasattr(errors, name) or hasattr(builtins, name)


class NewerError(errors.StoreBusy):
    """Of a later version."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError("slow"), TIMEOUT),
        (asyncio.CancelledError(), TIMEOUT),
        (ConnectionResetError("reset"), TRANSIENT),
        (ConnectionRefusedError("refused"), UNREACHABLE),
        (PermissionError("no"), PERMANENT),
        (errors.AuthFailed("no"), PERMANENT),
        (errors.PermissionDenied("no"), PERMANENT),
        (errors.DigestMismatch("other"), CORRUPTION),
        (errors.StoreFull("full"), RESOURCES),
        (MemoryError(), RESOURCES),
        (errors.UnknownClass("which"), INCOMPATIBLE),
        (errors.StateTooNew("newer"), INCOMPATIBLE),
        (errors.NoResponder("nobody"), UNREACHABLE),
        (errors.NodeStopping("bye"), UNREACHABLE),
        (NewerError("busy"), TRANSIENT),
        (KeyError("bug"), UNKNOWN),
        (errors.InternalError("bug"), UNKNOWN),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.value,
)
def test_an_exception_is_classified_by_its_class_and_its_bases(error: BaseException, kind: MigrationErrorType) -> None:
    assert classify(error) is kind


@pytest.mark.parametrize("number", ERRNOS)
def test_a_full_disk_is_a_lack_of_resources(number: int) -> None:
    assert classify(OSError(number, "no room")) is RESOURCES


def test_a_denied_permission_that_shows_as_a_timeout_is_permanent() -> None:
    timeout = errors.WireTimeout("no answer")
    timeout.__cause__ = PermissionDenied("the server forbids the subject")

    assert classify(timeout) is PERMANENT


def test_of_several_failures_the_one_that_no_retry_helps_counts() -> None:
    group = BaseExceptionGroup("two", [TimeoutError(), ExceptionGroup("in", [errors.AuthFailed("no"), OSError()])])

    assert classify(group) is PERMANENT
    assert set(SEVERITY) == set(MigrationErrorType)


def test_causes_that_go_in_circles_are_followed_only_so_far() -> None:
    one, other = TimeoutError(), ConnectionError()
    one.__cause__, other.__cause__ = other, one

    assert classify(one) is TIMEOUT


# ---- refusals: the sentences themselves are made by admission and validation ----------------------------------


OFFER = Offer(cls="Counter", version=2, state_bytes=100)
NODE = Facts(name="node-2", version=2)


@pytest.mark.parametrize(
    ("offer", "node", "kind"),
    [
        (OFFER, Facts(name="node-2", version=2, is_stopping=True), UNREACHABLE),
        (OFFER, Facts(name="node-2", version=2, is_hosting=True), TRANSIENT),
        (OFFER, Facts(name="node-2", version=2, verifies="m-1"), TRANSIENT),
        (OFFER, Facts(name="node-2", version=None), INCOMPATIBLE),
        (OFFER, Facts(name="node-2", version=2, class_error="broken"), INCOMPATIBLE),
        (OFFER, Facts(name="node-2", version=1), INCOMPATIBLE),
        (OFFER, Facts(name="node-2", version=3), INCOMPATIBLE),
        (Offer(cls="Counter", version=0, state_bytes=1), NODE, INCOMPATIBLE),
        (Offer(cls="Counter", version=2, state_bytes=-1), NODE, INCOMPATIBLE),
        (
            Offer(cls="Counter", version=2, state_bytes=1, architectures=("x86_64",)),
            Facts(name="node-2", version=2, architecture="aarch64"),
            INCOMPATIBLE,
        ),
        (OFFER, Facts(name="node-2", version=2, state_bytes_max=10), INCOMPATIBLE),
        (OFFER, Facts(name="node-2", version=2, memory_bytes=10), RESOURCES),
        (OFFER, Facts(name="node-2", version=2, storage_bytes=10), RESOURCES),
        (OFFER, Facts(name="node-2", version=1, memory_bytes=10, is_stopping=True), INCOMPATIBLE),
    ],
)
def test_a_refusal_is_classified_by_its_kind(offer: Offer, node: Facts, kind: MigrationErrorType) -> None:
    reasons = refusals(offer, node)

    assert reasons
    assert classify(Refused(reasons)) is kind
    assert classify(MigrationRefused("Refused.", reasons=[], kinds=kinds(reasons))) is kind


@pytest.mark.parametrize(
    ("agent", "kind"),
    [
        (AgentRequirements(architectures=("riscv64",)), INCOMPATIBLE),
        (AgentRequirements(required_memory=9 << 30), RESOURCES),
        (AgentRequirements(required_storage=101 << 30), RESOURCES),
        (AgentRequirements(state_size=2 << 30), INCOMPATIBLE),
        (AgentRequirements(features=("threads",)), INCOMPATIBLE),
        (AgentRequirements(version="1.0.0"), INCOMPATIBLE),
        (AgentRequirements(version="new"), INCOMPATIBLE),
    ],
)
def test_a_compatibility_reason_is_classified_too(agent: AgentRequirements, kind: MigrationErrorType) -> None:
    reasons = check_compatibility(agent, NodeCapabilities()).refusals

    assert len(reasons) == 1
    assert classify(Refused(reasons)) is kind


def test_a_refusal_without_a_known_reason_is_retried_elsewhere() -> None:
    for refused in (Refused(()), Refused((as_refusal("injected at prepare: refuse"),)), MigrationRefused("injected")):
        assert classify(refused) is RESOURCES


# ---- ends of moves: codes and reasons come out of the source's machine -----------------------------------------


def end_after(*events: m.Event) -> m.End:
    machine, found = Source("m-1", Limits(2, 10, 10)), None
    for event in events:
        machine, effects = machine.on(event)
        found = next((effect for effect in effects if isinstance(effect, m.End)), found)
    assert found is not None
    return found


COPYING: tuple[m.Event, ...] = (m.Begin(), m.Prepared())
PAUSED: tuple[m.Event, ...] = (*COPYING, m.Copied(0, 0))
VERIFYING: tuple[m.Event, ...] = (*PAUSED, m.Quiet(), m.HandedOver())


def sent_back(error: BaseException) -> tuple[m.Event, ...]:
    return (*VERIFYING, m.SeenReturned(described(error), type(error).__name__))


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ((m.Begin(), m.Refused((refusal(RefusalKind.STOPPING, node="node-2"),))), UNREACHABLE),
        ((m.Begin(), m.Refused((as_refusal("node-2 is stopping"),))), RESOURCES),
        ((m.Begin(), m.Broken("TargetUnreachable", "no answer")), UNREACHABLE),
        ((*COPYING, m.Deadline()), TIMEOUT),
        ((*COPYING, m.Broken("DigestMismatch", "other bytes")), CORRUPTION),
        ((*COPYING, m.Copied(99, 99), m.Copied(99, 99)), TIMEOUT),
        ((*PAUSED, m.Deadline()), TIMEOUT),
        ((*PAUSED, m.Broken("HandlerFailed", "on_depart raised")), PERMANENT),
        ((*PAUSED, m.Quiet(), m.Doubtful(), m.ClaimedBack()), TIMEOUT),
        ((*VERIFYING, m.ClaimedBack()), TIMEOUT),
        (sent_back(errors.DigestMismatch("other")), CORRUPTION),
        (sent_back(errors.StateUnloadable("bad")), INCOMPATIBLE),
        (sent_back(RuntimeError("healthy() answered False")), INCOMPATIBLE),
        (sent_back(MigrationRefused("injected at probe: refuse")), INCOMPATIBLE),
        (sent_back(TimeoutError("injected at probe")), TIMEOUT),
        (sent_back(errors.AuthFailed("no")), PERMANENT),
        (sent_back(errors.StoreBusy("busy")), TRANSIENT),
        (sent_back(ValueError()), INCOMPATIBLE),
    ],
)
def test_the_end_of_a_move_is_classified_by_code_and_reason(
    events: tuple[m.Event, ...], kind: MigrationErrorType
) -> None:
    end = end_after(*events)

    assert end.outcome == "rolled_back"
    assert classify(end.happened) is kind
    assert not is_settled(end.code)


def test_a_decision_is_not_a_failure() -> None:
    assert is_settled(end_after(*COPYING, m.Cancel()).code)
    assert is_settled(end_after(*COPYING, m.SeenClaimed("node-3")).code)
    assert is_settled(end_after(*VERIFYING, m.SeenClaimed("node-3")).code)


def test_a_cause_alone_is_classified_as_in_the_end() -> None:
    assert classify(SentBack("DigestMismatch")) is CORRUPTION
    assert classify(SentBack("")) is INCOMPATIBLE


@given(code=st.text(), reason=st.text())
def test_classification_is_total(code: str, reason: str) -> None:
    for happened in (
        Coded(code, reason),
        SentBack(reason),
        Refused((Refusal(code, {"text": reason}),)),
        CellError(reason),
        Coded("Returned", reason),
    ):
        assert isinstance(classify(happened), MigrationErrorType)
