"""Checkers of what messages ask for besides their calls: I27, I28."""

from __future__ import annotations

from collections import Counter

import msgspec

from mielin_cells.log.commit import EXPIRED, FULL, DeadLetter
from mielin_cells.log.message import Terms, decode_answer
from mielin_cells.log.records import Undone
from mielin_cells.testing.checkers.checker import Checker, Letter, Step
from mielin_cells.testing.checkers.messages import commit_of
from mielin_cells.testing.checkers.scene import STORE_WALL_S, Scene

CAUSES = {EXPIRED: "Expired", FULL: "InboxFull"}
"""By why a message was not run: the error that says so."""

TIMELY = "timely"
"""The handler of the workload that is called with a deadline."""


class InTime(Checker):
    """I27: a message expires only after its deadline by the store's time, and then it has not run and never does.

    One that has expired is a dead letter, and its asker gets `Expired`.  At rest no turn has begun after its message's deadline,
    except to go on with what the log already had of it.  Each message with a deadline whose fate its sender knows has run or expired,
    and not both.  The same holds of messages that a full inbox has dropped.
    """

    invariant = "I27"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._terms: dict[tuple[str, str, int], Terms] = {}
        self._expired: dict[str, dict[tuple[str, int], int]] = {}
        """By agent: sender and number that the workload gave the call, and the record that it has expired by."""

    def mail(self, letter: Letter) -> None:
        for message in letter.mail.messages:
            if message.terms is not None:
                self._terms[letter.mail.to, letter.mail.sender, message.n] = message.terms

    def record(self, step: Step) -> None:
        expired = self._expired.setdefault(step.agent, {})
        if isinstance(step.record, Undone):
            for call in [call for call, seq in expired.items() if seq > step.record.to]:
                del expired[call]
            return
        commit = commit_of(step)
        if commit is None:
            return
        letters = {(letter.sender, letter.n): letter for letter in commit.dead}
        for one in commit.inputs:
            if one.unrun not in CAUSES:
                continue
            what, terms = f"number {one.n} of {one.sender}", self._terms.get((step.agent, one.sender, one.n), Terms())
            now, cause = STORE_WALL_S + self.scene.history.now(), CAUSES[one.unrun]
            if one.unrun == EXPIRED and not 0 < terms.expires <= now:
                self.fails(f"{step.what} lets {what} expire {terms.expires - now:.3f} s before its deadline")
            if one.answer is not None and (decode_answer(one.answer).error or ("",))[0] != cause:
                self.fails(f"{step.what} does not run {what}, and answers something else than {cause}")
            letter = letters.get((one.sender, one.n))
            if letter is None or not letter.cause.startswith(cause):
                self.fails(f"{step.what} does not run {what}, and there is no dead letter with {cause}")
            if letter.handler == TIMELY:
                expired[_call_of(letter)] = step.seq

    def at_rest(self) -> None:
        for agent, state in self.scene.observed.items():
            heard, expired = set(state.heard), self._expired.get(agent, {})
            if state.late:
                self.fails(f"{agent} began turns after the deadlines of their messages: {state.late}")
            for call in self.scene.calls:
                key = call.sender, call.n
                if call.agent != agent or not call.timely:
                    continue
                if key in heard and (key in expired or call.timely == "expired"):
                    self.fails(f"{agent} has run {key}, which was not to run: it has expired, or was dropped")
                if call.timely == "stored" and key not in heard and key not in expired:
                    self.fails(f"{agent} has lost {key}, which has neither run nor expired")


class OnceByKey(Checker):
    """I28: of the calls under one key one runs, and all that are equal to it get its answer; others get `KeyConflict`.

    Where agents drop keyed calls in the run, a key may run again; each answer is still that of a run of this very call.
    """

    invariant = "I28"

    def at_rest(self) -> None:
        for agent, state in self.scene.observed.items():
            ran = state.once_ran
            often = {key: count for key, count in Counter(key for key, _ in ran).items() if count > 1}
            if often and self.scene.keeps_keys:
                self.fails(f"{agent} has run calls under one key more than once: {often}")
            for call in self.scene.calls:
                if call.agent != agent or call.keyed is None:
                    continue
                what = f"the call of {call.sender} under {call.key!r} with {call.body}"
                if call.keyed > 0 and ran[call.keyed - 1 : call.keyed] != [(call.key, call.body)]:
                    self.fails(f"{agent} has answered {what} by place {call.keyed} of {ran}")
                if call.keyed == 0 and call.key not in dict(ran):
                    self.fails(f"{agent} has lost {what}: none under the key has run")
                if call.keyed < 0 and (call.key, 1 - call.body) not in ran:
                    self.fails(f"{agent} has refused {what}, though no other call under the key has run")


def _call_of(letter: DeadLetter) -> tuple[str, int]:
    args = msgspec.msgpack.decode(letter.args)
    return args["sender"], args["n"]
