"""The checkers of services and groups know what an undo gave back to an agent that has ended, and excuse nothing else (I39, I40)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mielin_cells.agents.values.wire import encode
from mielin_cells.log.commit import ReplayInput
from mielin_cells.log.fold import Fold
from mielin_cells.log.lifecycle import Phase
from mielin_cells.log.message import Mail, Message
from mielin_cells.testing.checkers.checker import Checker, Letter
from mielin_cells.testing.checkers.history import Author, History
from mielin_cells.testing.checkers.scene import Scene, Served, Violation
from mielin_cells.testing.checkers.teams.orders import ToldOncePerMember
from mielin_cells.testing.checkers.teams.services import ServedOnce

AUTHOR = cast("Author", SimpleNamespace(name="node-1", label="node-1#1"))


def agent(name: str, *given_back: tuple[str, int], has_ended: bool = True, **fields: Any) -> Fold:
    plain = {field: encode(value) for field, value in fields.items()}
    replays = {place: ReplayInput(*place, True, [], {}, []) for place in given_back}
    phase = Phase.TERMINATED if has_ended else Phase.RUN
    fold = SimpleNamespace(
        agent=name, phase=phase, state=SimpleNamespace(plain=plain), ledger=SimpleNamespace(replays=replays)
    )
    return cast("Fold", fold)


def looks(kind: type[Checker], handler: str, args: dict[str, Any], *agents: Fold) -> Checker:
    """The checker of a scene with these agents, once message 1 of "s", with these arguments, is in the inbox of h0."""
    scene = Scene(History(lambda: 0.0))
    scene.folds = {fold.agent: fold for fold in agents}
    scene.served = [Served("client", 3, "h0", 0.0)]
    checker = kind(scene)
    mail = Mail("h0", "SimHand", "s", 0, 1, "", [Message(1, handler, encode(args), True)])
    checker.mail(Letter(mail, 7, AUTHOR))
    return checker


OTHER: list[Fold] = [agent("h1", has_ended=False, served=[("client", 3)])]


@pytest.mark.parametrize(
    ("place", "has_ended", "n", "others", "is_excused"),
    [
        (("s", 1), True, 3, [], True),
        (("s", 2), True, 3, [], False),
        (("s", 1), False, 3, [], False),
        (("s", 1), True, 4, [], False),
        (("s", 1), True, 3, OTHER, False),
    ],
    ids=["given back", "another message", "it lives", "another call", "another has it"],
)
def test_an_answered_call_may_be_missing_where_it_was_given_back_for_good(
    place: tuple[str, int], has_ended: bool, n: int, others: list[Fold], is_excused: bool
) -> None:
    """Seed 55000344: a member served a call, was suspended, went back by an undo, and ended."""
    hand = agent("h0", place, has_ended=has_ended, served=[])
    checker = looks(ServedOnce, "serve", {"sender": "client", "n": n, "nap_s": 0.0}, hand, *others)
    if is_excused:
        checker.at_rest()
    else:
        with pytest.raises(Violation, match="^I39: h0 answered call 3 of client to a service; (nobody|h1) has it"):
            checker.at_rest()


@pytest.mark.parametrize(("place", "is_excused"), [(("s", 1), True), (("s", 2), False)])
def test_a_question_that_was_answered_may_be_missing_where_it_was_given_back_for_good(
    place: tuple[str, int], is_excused: bool
) -> None:
    hand = agent("h0", place, told=[], asked=[], firings={})
    chief = agent("q0", has_ended=False, said=[], wanted=[("what", ["h0"], [])])
    checker = looks(ToldOncePerMember, "answer", {"what": "what"}, hand, chief)
    if is_excused:
        checker.at_rest()
    else:
        with pytest.raises(Violation, match="^I40: h0 has answered 'what', and was not asked"):
            checker.at_rest()
