"""External waits in the simulator's mix: what accounts wait for, and the checker of what stands (I38)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import NamedTuple

import mielin_cells as cells
from mielin_cells.agents.values.wire import plain
from mielin_cells.errors import WaitRejected, WaitTimeout
from mielin_cells.log.inboxes.cancels import CANCELLED
from mielin_cells.log.message import decode_answer
from mielin_cells.log.waits.kept import Stood
from mielin_cells.log.waits.tokens import WaitName, wait_of
from mielin_cells.testing.checkers.checker import Checker, Step
from mielin_cells.testing.checkers.messages import commit_of
from mielin_cells.testing.checkers.scene import Scene

WORLDS = 0.35
"""The share of the worlds in which accounts wait for a word from outside."""

_mailers: dict[asyncio.AbstractEventLoop, Callable[[str], None]] = {}
"""One for each simulated world: what is done with a token that is given out."""


async def mail(token: str) -> None:
    """Gives a token out, inside the call of a step."""
    _mailers[asyncio.get_running_loop()](token)


class Applicant(cells.Agent, name="SimApplicant"):
    """What an account waits for.  A word is known by the sender and number of the call that asked for it."""

    words: list[tuple[str, str]] = []  # noqa: RUF012 - a mutable default is copied for each agent

    def _heard(self, sender: str, n: int) -> int:
        raise NotImplementedError

    @cells.handler
    async def apply(self, sender: str, n: int, deadline_s: float) -> int:
        """Stands still until there is a word.  What is waited for beside it makes the turn one of branches, or not."""
        wait = cells.external("word", int, deadline=deadline_s or None)
        await cells.step("mail", mail, await wait.open())
        try:
            word = f"value {await wait}"
        except WaitRejected as error:
            word = f"rejected {error.reason}"
        except WaitTimeout:
            word = "timeout"
        self.words.append((f"{sender} {n}", word))
        return self._heard(sender, n)

    @cells.handler
    async def petition(self, sender: str, n: int, deadline_s: float) -> int:
        """Goes on meanwhile."""
        opens = cells.external("favour", then=self.granted, otherwise=self.denied, deadline=deadline_s or None)
        await cells.step("mail", mail, await opens(f"{sender} {n}"))
        return self._heard(sender, n)

    @cells.handler
    async def granted(self, value: int, who: str) -> None:
        self.words.append((who, f"value {value}"))

    @cells.handler
    async def denied(self, why: str, who: str) -> None:
        self.words.append((who, "timeout" if why.startswith("Nobody") else f"rejected {why}"))

    @cells.handler
    async def said(self) -> list[tuple[str, str]]:
        return self.words


class Plea(NamedTuple):
    """A call of an account that waits for a word."""

    rest_s: float
    agent: str
    kind: str
    deadline_s: float
    patience_s: float
    """After which its caller gives it up; 0: it is told, and nobody waits for it."""


def pleas(seed: int, name: str, agents: list[str]) -> list[Plea]:
    """What one client has the accounts wait for; nothing in most worlds."""
    if not agents or Random(f"waits {seed}").random() > WORLDS:
        return []
    rng, patience = Random(f"waits {seed} {name}"), Random(f"waits given up {seed} {name}")
    return [
        Plea(
            rng.choice((0.0, 0.05, 0.5, 2.0)) * rng.random(), rng.choice(agents), rng.choice(("apply", "apply", "petition")),
            rng.choice((0.0, 0.3, 2.0)), patience.choice((0.0, 0.0, 0.1, 0.6, 2.0)),
        )
        for _ in range(rng.randint(2, 6))
    ]  # fmt: skip


def text_of(outcome: bytes) -> str:
    answer = decode_answer(outcome)
    if answer.error is None:
        return f"value {plain(answer.result or b'')}"
    code, _, facts = answer.error
    return "timeout" if code == "WaitTimeout" else f"rejected {facts.get('reason')}"


class WaitsStand(Checker):
    """I38: the first recorded outcome of a wait stands.

    A log holds one outcome for a wait, also over undos.  Whoever resolved a wait was told that outcome, and that it was his
    only if it says what he said.  At rest each account has had one word for each call that waited, the one that its log
    holds, and none for a call that was cancelled.
    """

    invariant = "I38"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._stood: dict[tuple[str, bytes], str] = {}
        self._cancelled: set[tuple[str, str, int]] = set()

    @staticmethod
    def mails_by(mailer: Callable[[str], None]) -> None:
        _mailers[asyncio.get_running_loop()] = mailer

    @staticmethod
    def close() -> None:
        _mailers.pop(asyncio.get_running_loop(), None)

    def record(self, step: Step) -> None:
        commit = commit_of(step)
        for one in commit.inputs if commit is not None else ():
            if one.unrun == CANCELLED:
                self._cancelled.add((step.agent, one.sender, one.n))
        for change in commit.changes if commit is not None else ():
            if isinstance(change, Stood):
                stands = text_of(change.outcome)
                before = self._stood.setdefault((step.agent, change.key), stands)
                if before != stands:
                    self.fails(f"{step.what} gives a wait the outcome {stands!r}, and it had {before!r}")

    def is_given_up(self, wait: WaitName) -> bool:
        """True if the call whose turn waited was cancelled: whatever was said of the wait, the account has had no word."""
        return (wait.agent, wait.sender, wait.n) in self._cancelled

    def _wanted(self) -> list[tuple[str, str]]:
        """Agents and the words that they are to have."""
        waits = [wait_of(token) for token in self.scene.tokens_given]
        given_up = {(wait.agent, wait.key) for wait in waits if self.is_given_up(wait)}
        return [(agent, text) for (agent, key), text in self._stood.items() if (agent, key) not in given_up]

    def behind(self) -> bool:
        """True if an account has not handled all the words that its log holds."""
        want = Counter(agent for agent, _ in self._wanted())
        observed = self.scene.observed
        return any(len(observed[agent].words) < count for agent, count in want.items() if agent in observed)

    def at_rest(self) -> None:
        for told in self.scene.told:
            stands = self._stood.get((told.agent, told.key))
            if told.stands and told.stands != stands:
                self.fails(f"{told.agent}: somebody was told that {told.stands!r} stands; the log has {stands!r}")
            if told.accepted and told.said != stands:
                self.fails(
                    f"{told.agent}: somebody said {told.said!r}, and was told that it stands; the log has {stands!r}"
                )
        self.scene.counts["waits with an outcome"] += len(self._stood)
        for text in self._stood.values():
            self.scene.counts[f"waits: {text.partition(' ')[0]}"] += 1
        wanted = self._wanted()
        self.scene.counts["waits with an outcome, given up"] += len(self._stood) - len(wanted)
        for agent, state in self.scene.observed.items():
            if state.book is not None:
                continue
            twice = [who for who, count in Counter(who for who, _ in state.words).items() if count > 1]
            if twice:
                self.fails(f"{agent} has had a word for {twice} more than once")
            had = Counter(word for _, word in state.words)
            want = Counter(text for one, text in wanted if one == agent)
            if had != want:
                self.fails(f"{agent} has had the words {had}; its log has {want}")
