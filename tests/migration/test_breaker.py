"""Circuits, cooling and limits of targets; and the queue of what is due."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mielin_cells.migration import MigrationErrorType, RecoveryConfig, breaker
from mielin_cells.migration.breaker import BreakerConfig, Circuit, Targets
from mielin_cells.migration.due import STALE_MIN, DueQueue

TIMEOUT = MigrationErrorType.TIMEOUT
UNREACHABLE = MigrationErrorType.TARGET_UNREACHABLE


def opened(now: float = 0.0) -> Targets:
    targets = Targets()
    for _ in range(5):
        targets.failed("node-2", now, TIMEOUT)
    return targets


def test_a_circuit_opens_after_failures_that_come_together() -> None:
    targets = Targets()
    for second in range(4):
        targets.failed("node-2", second, TIMEOUT)
    assert targets.circuit("node-2", 4) is Circuit.CLOSED

    targets.failed("node-2", 4, TIMEOUT)

    assert targets.circuit("node-2", 4) is Circuit.OPEN
    assert not targets.begin("node-2", 4)
    assert targets.admits("node-3", 4)


def test_a_node_that_is_full_again_and_again_cools_off_for_longer_each_time() -> None:
    targets, waits = Targets(), list[float]()
    now = 0.0
    for _ in range(4):  # each time as soon as it may be asked again
        targets.failed("node-2", now, MigrationErrorType.INSUFFICIENT_RESOURCES)
        waits.append(targets.free_at("node-2", now) - now)
        now += waits[-1]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1] > 2 * waits[0]) == (10, True)
    assert targets.circuit("node-2", now) is Circuit.CLOSED  # a node that says no works


@given(st.lists(st.tuples(st.sampled_from(("begin", "end", "fail", "release", "succeed", "ask")),
                          st.sampled_from(("node-1", "node-2", "node-3")),
                          st.sampled_from((None, *MigrationErrorType)), st.floats(0, 100)), max_size=60))  # fmt: skip
def test_no_order_of_calls_makes_it_raise_or_lose_a_node(
    calls: list[tuple[str, str, MigrationErrorType | None, float]],
) -> None:
    targets, now = Targets(), 0.0
    for what, node, error, pause in calls:
        now += pause
        match what:
            case "begin":
                admits = targets.admits(node, now)
                assert targets.begin(node, now) is admits
            case "end":
                targets.end(node, now, error)
            case "fail":
                targets.failed(node, now, error or TIMEOUT)
            case "release":
                targets.release(node)
            case "succeed":
                targets.succeeded(node)
            case _:
                assert targets.running(node) >= 0
                assert now <= targets.free_at(node, now) <= now + BreakerConfig().open_max_secs
        assert all(targets.admits(name, now) or name in targets.unfit(now) for name in ("node-1", "node-2"))


def test_failures_are_forgotten_with_time() -> None:
    targets = Targets()

    for minute in range(50):
        targets.failed("node-2", 120.0 * minute, TIMEOUT)

    assert targets.circuit("node-2", 120.0 * 50) is Circuit.CLOSED


def test_an_open_circuit_lets_single_trials_through_when_its_time_is_over() -> None:
    targets = opened()
    assert not targets.admits("node-2", 19.9)
    assert targets.circuit("node-2", 20) is Circuit.HALF_OPEN

    assert targets.begin("node-2", 20)

    assert not targets.begin("node-2", 20)
    assert "node-2" in targets.unfit(20)


def test_a_trial_that_succeeds_closes_the_circuit() -> None:
    targets = opened()
    assert targets.begin("node-2", 20)

    targets.end("node-2", 21, None)

    assert targets.circuit("node-2", 21) is Circuit.CLOSED
    assert targets.unfit(21) == frozenset()


def test_a_trial_that_fails_opens_it_for_twice_as_long_up_to_the_cap() -> None:
    targets = opened()
    now, waits = 20.0, []
    for _ in range(7):
        assert targets.begin("node-2", now)
        targets.end("node-2", now, TIMEOUT)
        waits.append(targets.free_at("node-2", now) - now)
        now += waits[-1]

    assert waits == [40, 80, 160, 300, 300, 300, 300]


def test_a_trial_without_a_result_gives_its_place_back() -> None:
    targets = opened()
    assert targets.begin("node-2", 20)

    targets.release("node-2")

    assert targets.circuit("node-2", 20) is Circuit.HALF_OPEN
    assert targets.begin("node-2", 20)


def test_one_node_gets_only_so_many_attempts_at_a_time() -> None:
    targets = Targets(BreakerConfig(running_max=2))
    assert targets.begin("node-2", 0)
    assert targets.begin("node-2", 0)

    assert not targets.begin("node-2", 0)

    assert targets.unfit(0) == {"node-2"}
    targets.end("node-2", 1, None)
    assert targets.begin("node-2", 1)


def test_a_node_without_room_cools_off_but_its_circuit_stays_closed() -> None:
    targets = Targets()
    for _ in range(20):
        targets.failed("node-2", 0, MigrationErrorType.INSUFFICIENT_RESOURCES)

    assert targets.circuit("node-2", 0) is Circuit.CLOSED
    assert targets.unfit(9.9) == {"node-2"}
    assert targets.unfit(10) == frozenset()


def test_cooling_doubles_with_failures() -> None:
    targets = Targets()
    targets.failed("node-2", 0, UNREACHABLE)
    targets.failed("node-2", 0, UNREACHABLE)

    assert targets.is_cooling("node-2", 19.9)
    assert not targets.is_cooling("node-2", 20)


def test_failures_of_the_agent_do_not_count_against_a_node() -> None:
    targets = Targets()
    for kind in (
        MigrationErrorType.INCOMPATIBLE_TARGET,
        MigrationErrorType.UNKNOWN,
        MigrationErrorType.STATE_CORRUPTION,
    ):
        for _ in range(10):
            targets.failed("node-2", 0, kind)

    assert targets.unfit(0) == frozenset()


def test_times_follow_the_delays_of_recovery() -> None:
    config = BreakerConfig.of(RecoveryConfig(initial_retry_delay_secs=0.25, max_retry_delay_secs=2))

    assert (config.cooling_secs, config.open_secs, config.open_max_secs) == (0.25, 0.5, 2)


def test_only_so_many_nodes_are_remembered_and_the_sick_ones_longest() -> None:
    targets = opened()
    for number in range(breaker.TARGETS_MAX + 5):
        assert targets.begin(f"n{number}", 0)
        targets.end(f"n{number}", 0, None)

    assert targets.circuit("node-2", 0) is Circuit.OPEN
    assert len(targets) <= breaker.TARGETS_MAX


def test_a_clock_that_jumps_far_ahead_breaks_nothing() -> None:
    targets = opened()

    targets.failed("node-2", 1e9, TIMEOUT)

    assert targets.circuit("node-2", 1e9) is Circuit.OPEN


# ---- the queue -------------------------------------------------------------------------------------------------


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "drop", "ready"]), st.sampled_from("abcdef"), st.integers(0, 9)), max_size=200
    )
)
def test_the_queue_agrees_with_a_plain_dictionary(steps: list[tuple[str, str, int]]) -> None:
    queue, model = DueQueue(), dict[str, int]()

    for what, key, time in steps:
        match what:
            case "put":
                queue.put(key, time)
                model[key] = time
            case "drop":
                queue.drop(key)
                model.pop(key, None)
            case _:
                due = queue.ready(time)
                assert sorted(due) == sorted(k for k, t in model.items() if t <= time)
                assert [model[k] for k in due] == sorted(model[k] for k in due)
                assert queue.ready(time, 2) == due[:2]
        assert len(queue) == len(model)
        assert queue.next() == min(model.values(), default=None)
        assert queue.at(key) == model.get(key)
        assert (key in queue) == (key in model)


class Counted(float):
    """A time that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: float) -> bool:
        Counted.compared += 1
        return float(self) < float(other)

    def __le__(self, other: float) -> bool:
        Counted.compared += 1
        return float(self) <= float(other)

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return isinstance(other, float) and float(self) == float(other)

    __hash__ = float.__hash__


def test_finding_what_is_due_reads_only_a_little_of_what_waits() -> None:
    queue, waiting, due = DueQueue(), 2**15, 10
    for number in range(waiting):
        queue.put(f"a{number}", Counted((number * 7919) % waiting))
    Counted.compared = 0

    assert len(queue.ready(due - 1)) == due

    assert 0 < Counted.compared < due * 15 * 10


def test_times_that_change_leave_little_behind() -> None:
    queue = DueQueue()

    for round_ in range(10_000):
        queue.put(f"a{round_ % 10}", round_)

    assert queue.heap_size <= 2 * 10 + STALE_MIN
