"""Policies by label selectors: which entry counts for an agent, and which contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mielin_cells as cells
from mielin_cells.deployment.config import read
from mielin_cells.log.policy import Policy
from mielin_cells.policy.facts import Value
from mielin_cells.policy.selectors import Resolved, Selector, overlaps, resolve

EU, FAST = Policy(require=("node.labels.region == 'eu'",)), Policy(require=("node.cpu < 50",))


def test_the_entry_with_the_most_matching_labels_counts_alone() -> None:
    own = Policy(spread=("zone",), require=("node.mains",))
    entries = [
        Selector(match={"class": "Chat"}, policy=EU), Selector(match={"class": "Chat", "tier": "gold"}, policy=FAST),
        Selector(match={"tier": "gold"}, policy=Policy(immovable=True)),
    ]  # fmt: skip
    gold = resolve(own, entries, {"class": "Chat", "id": "a", "tier": "gold"})
    assert gold.policy == Policy(spread=("zone",), require=FAST.require)
    assert gold.entry is entries[1]
    assert gold.conflicts == []
    assert resolve(own, entries, {"class": "Chat", "id": "a"}).policy == Policy(spread=("zone",), require=EU.require)
    assert resolve(own, entries, {"class": "Cart", "id": "a"}) == Resolved(own, None, [])


def test_entries_that_match_equally_well_and_say_otherwise_are_named() -> None:
    entries = [Selector(match={"tier": "gold"}, policy=EU), Selector(match={"class": "Chat"}, policy=FAST)]
    found = resolve(Policy(), entries, {"class": "Chat", "tier": "gold"})
    assert found.policy == EU
    assert found.conflicts == [
        "require: the entry for tier = 'gold' counts, and that for class = 'Chat' matches as well; the first in the file wins"
    ]
    assert overlaps(entries) == found.conflicts
    apart = [Selector(match={"class": "Chat"}, policy=EU), Selector(match={"class": "Cart"}, policy=FAST)]
    assert overlaps(apart) == []
    assert overlaps([entries[0], Selector(match={"tier": "gold", "class": "Chat"}, policy=FAST)]) == []


def test_true_is_not_one() -> None:
    assert not Selector(match={"vip": True}, policy=EU).matches({"vip": 1})
    assert Selector(match={"vip": 1}, policy=EU).matches({"vip": 1.0})


values: st.SearchStrategy[Value] = st.sampled_from(("a", "b", 1, True))
labels = st.dictionaries(st.sampled_from(("class", "tier", "room")), values, min_size=1)


@given(st.lists(labels, max_size=6), labels)
def test_what_counts_matches_and_nothing_matches_better(
    matches: list[dict[str, Value]], agent: dict[str, Value]
) -> None:
    entries = [Selector(match=match, policy=Policy(require=(f"node.cpu < {n}",))) for n, match in enumerate(matches)]
    found = resolve(Policy(), entries, agent)
    fitting = [one for one in entries if one.matches(agent)]
    assert (found.entry is None) is not bool(fitting)
    if found.entry is not None:
        assert found.entry in fitting
        assert len(found.entry.match) == max(len(one.match) for one in fitting)
        assert bool(found.conflicts) is (sum(len(one.match) == len(found.entry.match) for one in fitting) > 1)
        assert not found.conflicts or overlaps(entries)


FILE = """
[settings]
pause_s = 2.0

[[policies]]
match = { class = "Chat", tier = "gold" }
require = ["node.labels.zone == 'eu-1'"]
prefer = [{ that = "node.mains", weight = 2 }]
near = [{ agent = "db", by = "zone", required = true }]

[[policies]]
match = { room = 7 }
immovable = true
"""


def test_entries_are_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mielin.toml"
    path.write_text(FILE)
    first, second = read(path).policies
    assert first.match == {"class": "Chat", "tier": "gold"}
    assert first.policy.prefer[0].weight == 2.0
    assert first.policy.near[0].required
    assert (second.match, second.policy) == ({"room": 7}, Policy(immovable=True))


@pytest.mark.parametrize(
    ("entry", "line", "says"),
    [
        ("require = ['node.mains']", 2, "match|wanted: labels"),
        ("match = { class = ['a'] }", 2, "wanted: labels"),
        ("match = { class = 'a' }\nrequired = ['node.mains']", 2, "no such field"),
        ("match = { class = 'a' }\nrequire = 'node.mains'", 2, "require"),
        ("match = { class = 'a' }\nrequire = ['node.cpuu < 3']", 2, "column 1"),
        ("match = { class = 'a' }\nstandby = 1", 2, "no such field"),
        ("match = { class = 'a' }\napart = [{ by = 'zone' }]", 2, "give agent or where"),
        ("match = { class = 'a' }\nprefer = [{ that = 'node.cpu', weight = 1e9 }]", 2, "1000"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path: Path, entry: str, line: int, says: str) -> None:
    path = tmp_path / "mielin.toml"
    path.write_text(f"\n[[policies]]\n{entry}\n")
    with pytest.raises(cells.ConfigError, match=f"mielin.toml, line {line}: (.|\n)*({says})"):
        read(path)
