"""The simulator: clean on production code, repeatable, and alive: with a guard taken away it finds the harm.

The guards are taken away from outside, by wrapping what production code or the world offers; nothing in the code knows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from mielin_cells.core.ledger import Ledger, Verdict
from mielin_cells.core.message import Mail, Message
from mielin_cells.core.records import StepMade
from mielin_cells.node.inbox import Arrival, Inbox
from mielin_cells.node.intake import Intake
from mielin_cells.node.turn import Turn
from mielin_cells.substrate.ports import Outcome
from mielin_cells.testing import simulate as command
from mielin_cells.testing.simulate import simulate
from mielin_cells.testing.view import View

CLEAN_SEEDS = range(1, 21)


def found_in(seeds: range) -> list[str]:
    """The violations of the first seed that has any."""
    for seed in seeds:
        result = simulate(seed)
        if result.violations:
            return result.violations
    return []


def test_production_code_keeps_every_invariant() -> None:
    results = [simulate(seed) for seed in CLEAN_SEEDS]
    assert [r.violations for r in results if r.violations] == []
    campaign = command.Campaign("1")
    for result in results:
        campaign.add(result)
    assert campaign.counts["migrations completed"] > 10, "the simulator must reach what it checks"
    assert campaign.counts["migrations rolled_back"] > 5
    assert campaign.faults["crash"] > 5
    assert campaign.faults["append_late"] > 5


def test_a_seed_tells_the_same_story_again_whatever_the_hash_seed() -> None:
    digests = [simulate(seed).digest for seed in range(1, 6)]
    assert len(set(digests)) == 5
    code = "from mielin_cells.testing.simulate import simulate; print(*[simulate(s).digest for s in range(1, 6)])"
    for hash_seed in ("1", "2"):
        again = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert again.stdout.split() == digests


# ---- guards taken away -------------------------------------------------------------------------------------------


def unconditional_append(patch: pytest.MonkeyPatch) -> None:
    """Whoever appends is stored, whatever it expected."""
    append = View.append

    async def anyhow(self: View, subject: str, data: bytes, expect: int | None = None) -> Outcome:
        return await append(self, subject, data, None)

    patch.setattr(View, "append", anyhow)


def cursor_outside_the_commit(patch: pytest.MonkeyPatch) -> None:
    """The cursor is kept apart, at once, and an owner begins to read from there."""
    apart: dict[tuple[int, str], int] = {}
    worlds: list[object] = []  # kept, so that no two of them have one `id`
    read, done = Inbox.read, Inbox.done

    def key(inbox: Inbox) -> tuple[int, str]:
        if not worlds or worlds[-1] is not inbox._home.settings:
            worlds.append(inbox._home.settings)
        return id(inbox._home.settings), inbox._fold.agent

    def done_apart(self: Inbox, arrival: Arrival, *args: object) -> None:
        apart[key(self)] = max(apart.get(key(self), 0), arrival.seq)
        done(self, arrival, *args)  # type: ignore[arg-type]

    async def read_apart(self: Inbox) -> None:
        self._fold.ledger.cursor = max(self._fold.ledger.cursor, apart.get(key(self), 0))
        await read(self)

    patch.setattr(Inbox, "done", done_apart)
    patch.setattr(Inbox, "read", read_apart)


def outputs_before_commit(patch: pytest.MonkeyPatch) -> None:
    """What a turn tells leaves when the turn ends."""
    send = Intake._send

    def send_at_once(self: Intake, turn: Turn) -> None:
        host = self._host
        before = len(host.batch.outs)
        send(self, turn)
        for out in host.batch.outs[before:]:
            host.outbox.push(out)

    patch.setattr(Intake, "_send", send_at_once)


def answers_before_commit(patch: pytest.MonkeyPatch) -> None:
    """A caller is answered when its turn ends."""
    take = Intake._take

    def take_and_answer(self: Intake, mail: Mail, message: Message, turn: Turn | None, answer: bytes | None) -> None:
        take(self, mail, message, turn, answer)
        if answer is not None:
            host = self._host
            host.home.begin(host._let_out({(mail.reply_to, mail.sender): {message.n: answer}}))

    patch.setattr(Intake, "_take", take_and_answer)


def dedupe_off(patch: pytest.MonkeyPatch) -> None:
    """A message that has taken effect takes effect again."""
    judge = Ledger.judge

    def judged(self: Ledger, sender: str, n: int, start: int) -> Verdict:
        verdict = judge(self, sender, n, start)
        return Verdict.APPLY if verdict in (Verdict.REPEAT, Verdict.CLOSED) else verdict

    patch.setattr(Ledger, "judge", judged)


def steps_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A turn that runs again calls again."""
    patch.setattr(Turn, "recorded", property(lambda self: (), lambda self, made: None), raising=True)


def steps_unrecorded(patch: pytest.MonkeyPatch) -> None:
    """A turn stops between steps before the outcome is in the log."""
    record = Turn._record_step

    async def unless_stopped(self: Turn, made: StepMade) -> None:
        if not self._host.intake.is_stopping:
            await record(self, made)

    patch.setattr(Turn, "_record_step", unless_stopped)


SEEDS_UNTIL_CAUGHT: dict[Callable[[pytest.MonkeyPatch], None], int] = {
    unconditional_append: 10,
    cursor_outside_the_commit: 200,  # a process has to die between two instants
    outputs_before_commit: 5,
    answers_before_commit: 3,
    dedupe_off: 5,
    steps_forgotten: 10,
    steps_unrecorded: 300,  # the move has to come between two steps
}


FROM: dict[Callable[[pytest.MonkeyPatch], None], int] = {steps_unrecorded: 280}
"""Seeds before it find nothing; they are spared here."""


@pytest.mark.parametrize("guard", SEEDS_UNTIL_CAUGHT, ids=lambda guard: str(guard.__name__))
def test_removed_guard_is_caught(guard: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    guard(monkeypatch)
    assert found_in(range(FROM.get(guard, 1), 1 + SEEDS_UNTIL_CAUGHT[guard]))


def test_the_command_says_how_to_replay_a_violation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["simulate", "--seeds", "2", "--start", "3"])
    assert command.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("sim: 2 seeds from 3, 0 with violations; ")
    dedupe_off(monkeypatch)
    assert command.main() == 1
    out = capsys.readouterr().out
    assert "replay: python -m mielin_cells.testing.simulate --only " in out
