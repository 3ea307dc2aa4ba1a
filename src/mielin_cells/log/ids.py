"""Agent ids, and the subjects made from them.  Nothing else in the package builds a subject from an id."""

from __future__ import annotations

import re

from mielin_cells.errors import InvalidAgentId
from mielin_cells.log.inboxes.lines import NORMAL

AGENT_ID_CHARS_MAX = 128
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_ESCAPE = re.compile(r"=([0-9A-F]{2})")


class AgentId(str):
    """An agent's identity: 1 to 128 characters of text, without control characters; unique in a deployment.

    Raises `InvalidAgentId` for anything else.  Any other character is allowed: subjects carry it encoded.

        >>> cells.AgentId("till-1")
        'till-1'
        >>> cells.AgentId("")
        Traceback (most recent call last):
            ...
        mielin_cells.errors.InvalidAgentId: An agent id has 1 to 128 characters; this one has 0.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> AgentId:
        if type(text) is cls:
            return text
        if not isinstance(text, str):
            raise InvalidAgentId(f"An agent id is text, not {type(text).__name__}.", agent=repr(text)[:80])
        if not 1 <= len(text) <= AGENT_ID_CHARS_MAX:
            raise InvalidAgentId(
                f"An agent id has 1 to {AGENT_ID_CHARS_MAX} characters; this one has {len(text)}.", agent=text[:80]
            )
        for char in text:
            if char < " " or char == "\x7f" or "\ud800" <= char <= "\udfff" or "\x80" <= char < "\xa0":
                raise InvalidAgentId(
                    f"The agent id {text[:80]!r} holds a control character; use printable text.", agent=text[:80]
                )
        return super().__new__(cls, text)


def encoded(text: str) -> str:
    """`text` as one word of a subject: bytes outside `A-Z a-z 0-9 _ -` become `=XX`.  Different texts stay different."""
    if _PLAIN.issuperset(text):
        return text
    return "".join(c if c in _PLAIN else "".join(f"={byte:02X}" for byte in c.encode()) for c in text)


def decoded(word: str) -> str:
    """The text that `encoded` made the word from."""
    if "=" not in word:
        return word
    return _ESCAPE.sub(lambda m: chr(int(m[1], 16)), word).encode("latin-1").decode()


LOGS = "log."
"""Prefix of all agents' logs."""

TOPICS = "topic."
"""Prefix of all entries of topics (`log.topics`)."""

ATTRIBUTES = "attr."
"""Prefix of the attributes of all agents (`log.attributes`)."""

SCANNED = (TOPICS, ATTRIBUTES)
"""Prefixes of the subjects that are read by pattern, in the order of their shard."""


def log_subject(agent: str) -> str:
    return LOGS + encoded(agent)


def is_agents_log(subject: str) -> bool:
    return subject.startswith(LOGS) and "." not in subject[len(LOGS) :]


def keeps_last(subject: str) -> bool:
    """True for subjects whose last entry no trim removes: it is what the next append expects."""
    return is_agents_log(subject) or subject.startswith(SCANNED)


def attributes_subject(agent: str) -> str:
    """Where the agent's attributes are, as its owners have written them."""
    return ATTRIBUTES + encoded(agent)


INBOXES = "inbox."
"""Prefix of all inboxes."""


def inbox_subject(agent: str, priority: str = NORMAL) -> str:
    subject = INBOXES + encoded(agent)
    return subject if priority == NORMAL else f"{subject}.{priority}"


STREAMS = "stream."
"""Prefix of the streams of all calls."""


def stream_subject(agent: str, sender: str) -> str:
    """Where the streams of all calls of a sender to an agent are."""
    return f"{STREAMS}{encoded(agent)}.{encoded(sender)}"


def part_prefix(agent: str) -> str:
    return f"part.{encoded(agent)}."


def part_subject(agent: str, name: str) -> str:
    return part_prefix(agent) + name


MEMBERS = "members"
"""The log of who is there."""

DEPLOYS = "deploys"
"""The log of all deploys (`policy.deploys`)."""

SECRET = "secret"
"""Where the deployment's secret is: one entry, which is never removed."""

BEATS = "beat.nodes"
"""Where every node's heartbeat is heard on the wire, by those that watch."""

LEADER_BEATS = "beat.leader"
"""Where every node hears the leader's heartbeat."""


def control_subject(node: str) -> str:
    """Where a node answers requests on the wire."""
    return "control." + encoded(node)


def reply_subject(receiver: str) -> str:
    """Where a client or a node's incarnation hears replies on the wire."""
    return "reply." + encoded(receiver)


def agent_of(log: str) -> str:
    """The agent whose log this subject is."""
    return decoded(log[len(LOGS) :])


JOURNALS = "journal."
"""Prefix of all migrations' journals."""


def journal_subject(agent: str, migration: str) -> str:
    return f"{JOURNALS}{encoded(agent)}.{migration}"


def journals_of(agent: str) -> str:
    """Prefix of the journals of one agent's migrations."""
    return f"{JOURNALS}{encoded(agent)}."


def migration_of(journal: str) -> tuple[str, str]:
    """The agent and the migration whose journal this subject is."""
    agent, _, migration = journal[len(JOURNALS) :].rpartition(".")
    return decoded(agent), migration
