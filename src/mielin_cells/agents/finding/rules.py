"""Checks the texts of a policy where it is written; a record that is read may hold what only another version can read."""

from __future__ import annotations

from mielin_cells.agents.finding.parse import parse as parse_where
from mielin_cells.errors import WhereInvalid
from mielin_cells.log.policy import Policy
from mielin_cells.policy.expression.parser import check


def wrong_in(policy: Policy) -> str:
    """What cannot be meant, in one sentence; "" if all of it can."""
    for rule in policy.require:
        if why := check(rule):
            return f"require: {why}"
    for preference in policy.prefer:
        if why := check(preference.that):
            return f"prefer: {why}"
    for field, affinities in (("near", policy.near), ("apart", policy.apart)):
        for affinity in affinities:
            if bool(affinity.agent) is bool(affinity.where):
                return f"{field}: give agent or where, and not {'both' if affinity.agent else 'neither'}."
            try:
                if affinity.where:
                    parse_where(affinity.where)
            except WhereInvalid as error:
                return f"{field}: {error.message}"
    return ""
