"""The checkers of groups: what is told and asked reaches each member once, and an order is carried out or taken back (I40)."""

from __future__ import annotations

from typing import NamedTuple

from mielin_cells.log.lifecycle import AgentState, Phase
from mielin_cells.testing.checkers.checker import Checker, Letter, Step
from mielin_cells.testing.checkers.scene import Ordered, Scene
from mielin_cells.testing.checkers.teams.given_back import GivenBack
from mielin_cells.testing.checkers.teams.hands import fields_of


class ToldOncePerMember(Checker):
    """I40: what a committed turn has told a group comes to each member that it told, once; who has answered it was asked once.

    What a turn that failed has told comes to nobody; what it has asked may.  An undo may have given a question back to a member that
    ended before it had taken it again.
    """

    invariant = "I40"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._given_back = GivenBack("answer")

    def mail(self, letter: Letter) -> None:
        self._given_back.mail(letter)

    def behind(self) -> str:
        """What a member has not had yet; "" if all have everything."""
        for chief, told, _ in self._chiefs():
            for what, members in told:
                for member in members:
                    fold = self.scene.folds.get(member)
                    if fold is None or fold.phase is Phase.TERMINATED:
                        continue
                    if what not in (fields_of(fold, "told") or [[]])[0]:
                        return f"{member} was not told {what!r} by {chief}"
        return ""

    def at_rest(self) -> None:
        if behind := self.behind():
            self.fails(f"at rest {behind}")
        said, answered = dict[str, list[str]](), dict[str, list[str]]()
        for _, told, asked in self._chiefs():
            for what, members in told:
                said[what] = members
                self.scene.counts["told to members"] += len(members)
            for what, members, failed in asked:
                answered[what] = members
                self.scene.counts["asked of members"] += len(members)
                self.scene.counts["members that did not answer"] += len(failed)
        for agent, fold in self.scene.folds.items():
            mine = fields_of(fold, "told", "asked", "firings")
            if mine is None:
                continue
            for what in mine[0]:
                if agent not in said.get(what, []):
                    self.fails(f"{agent} was told {what!r}, and no turn that was committed told it")
            for one, name in ((mine[0], "told"), (mine[1], "asked")):
                if len(set(one)) != len(one):
                    self.fails(f"{agent} was {name} something twice: {one}")
            order = [what for what in said if agent in said[what]]
            if fold.phase is not Phase.TERMINATED and mine[0] != order:
                self.fails(f"{agent} was told {mine[0]}; the chief has told it {order}")
            given_back = {args["what"] for args in self._given_back.to(fold)}
            for what, members in answered.items():
                if agent in members and what not in mine[1] and what not in given_back:
                    self.fails(f"{agent} has answered {what!r}, and was not asked")

    def _chiefs(self) -> list[tuple[str, list[tuple[str, list[str]]], list[tuple[str, list[str], list[str]]]]]:
        found = []
        for agent, fold in self.scene.folds.items():
            fields = fields_of(fold, "said", "wanted")
            if fields is not None:
                found.append((agent, fields[0], fields[1]))
        return found


class _State(NamedTuple):
    """Of a member, from one record of its log on."""

    at: float
    state: AgentState
    owner: str
    has_ended: bool


class OrdersCarriedOut(Checker):
    """I40: an order for a group is carried out for each member that its report names, and taken back where the report says so."""

    invariant = "I40"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._states: dict[str, list[_State]] = {}

    def record(self, step: Step) -> None:
        fold = self.scene.folds.get(step.agent)
        if fold is not None and "firings" in fold.state.plain:
            now = _State(step.at, fold.lifecycle.state, fold.owner, fold.phase is Phase.TERMINATED)
            self._states.setdefault(step.agent, []).append(now)

    def at_rest(self) -> None:
        for one in self.scene.ordered:
            self.scene.counts[f"group: {one.report.order} {'done' if one.report.ok else 'not done'}"] += 1
            self.scene.counts["group: members put back"] += len(one.report.undone)
            for agent in (*one.report.done, *one.report.undone):
                # Nobody knew of one that failed whether it was done.  If not, others may have done the same once it was taken back.
                has_failed = agent in one.report.failed
                done = 0 if has_failed else self._first(one, agent, 0, one.began, is_done=True)
                since = one.asked[agent] if has_failed else one.began
                if done is None:
                    self.fails(f"{self._what(one)} says that it was done for {agent}, and its log does not")
                elif agent in one.report.undone and self._first(one, agent, done, since, is_done=False) is None:
                    self.fails(f"{self._what(one)} says that it was taken back for {agent}, and its log does not")
            if one.report.failed and one.report.done and one.report.order != "stop":
                self.fails(f"{self._what(one)} failed, and is done for {one.report.done}")

    def _first(self, one: Ordered, agent: str, place: int, since: float, *, is_done: bool) -> int | None:
        """The first place from `place` on in what the agent was from `since` until the order ended: as ordered, or not so."""
        states = self._states.get(agent, [])
        for number, state in enumerate(states):
            until = states[number + 1].at if number + 1 < len(states) else one.ended
            if number >= place and until >= since and state.at <= one.ended and _is(one, state) is is_done:
                return number
        return None

    def _what(self, one: Ordered) -> str:
        return f"the report of the order {one.report.order} ({one.began:.3f} to {one.ended:.3f} s)"


def _is(one: Ordered, state: _State) -> bool:
    match one.report.order:
        case "suspend":
            return state.state is AgentState.SUSPENDED
        case "resume":
            return state.state is AgentState.RUNNING
        case "migrate":
            return state.owner == one.node
        case "drain":
            return state.owner != one.node
        case _:
            return state.has_ended if one.report.ok else state.state is AgentState.SUSPENDED
