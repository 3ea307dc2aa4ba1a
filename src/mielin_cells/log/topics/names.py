"""Topics: names and patterns, and the subjects of their entries.

A topic is one log for each publisher.  Its entries are named `topic.<levels>.=.<publisher>`; no level and no publisher is encoded as
`=` alone.
"""

from __future__ import annotations

import re

from mielin_cells.errors import TopicInvalid
from mielin_cells.log.ids import TOPICS, decoded, encoded

TOPIC_CHARS_MAX = 256
LEVELS_MAX = 16

_RECEIVER = "\x03"
"""Begins the name of a topic among those of receivers.  No agent id holds a control character."""
_END = "="
"""The word between levels and publisher."""
_LEVEL = re.compile(r"[^\s.*>\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


def check_topic(topic: object) -> str:
    """The topic's name.  Raises `TopicInvalid`."""
    return _checked(topic, "topic", ())


def check_pattern(pattern: object) -> str:
    """The pattern: levels, `*` for any one level, and `>` at the end for one level or more.  Raises `TopicInvalid`."""
    return _checked(pattern, "pattern", ("*", ">"))


def _checked(name: object, what: str, wildcards: tuple[str, ...]) -> str:
    if not isinstance(name, str):
        raise TopicInvalid(f"A {what} is text, not {type(name).__name__}.", topic=repr(name)[:80])
    shown, levels = name[:80], name.split(".")
    why = ""
    if not 1 <= len(name) <= TOPIC_CHARS_MAX or len(levels) > LEVELS_MAX:
        why = f"it has {len(name)} characters in {len(levels)} levels; up to {TOPIC_CHARS_MAX} in {LEVELS_MAX} are allowed"
    for place, level in enumerate(levels):
        if why:
            break
        if level in wildcards:
            if level == ">" and place < len(levels) - 1:
                why = "`>` stands for the rest, so it is the last level"
        elif not level:
            why = "a level is empty"
        elif level in ("*", ">"):
            why = f"`{level}` is a wildcard, which only patterns of subscribers have"
        elif _LEVEL.fullmatch(level) is None:
            why = f"the level {level!r} has a space, a control character, or a wildcard that is not alone"
    if why:
        raise TopicInvalid(
            f"{shown!r} is no {what}: {why}. Levels are joined by dots, as in orders.eu.new.", topic=shown
        )
    return str.__str__(name)


def matches(pattern: str, topic: str) -> bool:
    wanted, levels = pattern.split("."), topic.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(levels) <= len(wanted):
            return False
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(want in ("*", have) for want, have in zip(wanted, levels, strict=True))


def subject_of(topic: str, publisher: str) -> str:
    return f"{TOPICS}{_words(topic)}.{_END}.{encoded(publisher)}"


def scan_pattern(pattern: str) -> str:
    """What the subjects of all topics match that the pattern matches, and perhaps others: each topic is compared once more."""
    words = _words(pattern)
    return TOPICS + (words if words.endswith(">") else f"{words}.{_END}.*")


def _words(name: str) -> str:
    return ".".join(level if level in ("*", ">") else encoded(level) for level in name.split("."))


def topic_of(subject: str) -> tuple[str, str]:
    """The topic and the publisher whose entries have this subject."""
    words, _, publisher = subject[len(TOPICS) :].rpartition(f".{_END}.")
    return ".".join(decoded(word) for word in words.split(".")), decoded(publisher)


def receiver_of(topic: str) -> str:
    """The name under which a publisher counts and keeps its messages to a topic, beside those to agents."""
    return _RECEIVER + topic


def is_topic(receiver: str) -> bool:
    return receiver.startswith(_RECEIVER)


def topic_named(receiver: str) -> str:
    return receiver[len(_RECEIVER) :]


def receiver_text(receiver: str) -> str:
    """A receiver as text for people."""
    return f"topic {topic_named(receiver)}" if is_topic(receiver) else receiver
