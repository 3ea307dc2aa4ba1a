"""Every number that can be set, with its default and its reason.  Durations are seconds, sizes bytes."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from mielin_cells.errors import ConfigError, UsageError

TIMEOUT_S_MAX = 1e9
"""Some 31 years: what is longer is a slip, and what is no number would spoil the order of the loop's timers."""

Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=TIMEOUT_S_MAX)]
Delay: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=TIMEOUT_S_MAX)]
"""Seconds; 0: none."""
Count: TypeAlias = Annotated[int, msgspec.Meta(gt=0, le=10**9)]
Bytes: TypeAlias = Annotated[int, msgspec.Meta(gt=0, le=10**15)]
Rate: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=10**15)]
"""Bytes in a second; 0: no limit."""

WhenFull: TypeAlias = Literal["refuse", "wait", "drop_oldest"]
WHEN_FULL: tuple[WhenFull, ...] = typing.get_args(WhenFull)

MESSAGE_BYTES_MAX = 512 * 1024
"""A message with its arguments: half of what a broker takes by default, so that headers never matter."""

STREAM_BYTES_MAX = 64 * 1024 * 1024
"""Parts of one call's stream together: the owner holds what it has not stored, and an owner that runs the turn again reads all."""

STREAM_AHEAD_BYTES = 1024 * 1024
"""Parts that a handler may yield before the store has taken them; then its next part waits."""

STREAM_ENTRY_PARTS = 1024
"""Parts in one entry of a stream, at most; those that wait together travel together."""

STEPS_BYTES_MAX = 8 * 1024 * 1024
"""Outcomes of one turn's steps and asks together: they are in memory, in each snapshot and in each load until the turn ends."""

RECORD_BYTES_MAX = 512 * 1024
"""A log record above it keeps its body in parts."""

MAIL_BYTES_MAX = 256 * 1024
"""Messages to one receiver that wait together travel as one inbox entry up to this size."""

COMMIT_TURNS_MAX = 256
"""Turns in one commit: bounds what a lost race throws away."""

BURST_S = 0.005
"""An agent with many messages gives the event loop back at least this often."""

SESSIONS_MAX = 1000
"""Client sessions an agent remembers; the one quiet for longest is forgotten first.  Those that began no later and are not
known are refused from then on."""

ANSWERS_BYTES_MAX = 4 * 1024 * 1024
"""Answers that an agent keeps for repeated asks.  Above it those of the quietest are dropped, down to three quarters."""

LETTERS_BYTES_MAX = 8 * 1024 * 1024
"""Arguments of the dead letters of one agent; the oldest goes first, the newest stays."""

INBOX_MAX_MAX = 10**9

KEYS_BYTES_MAX = 64 * 1024 * 1024
"""What a class may let its agents keep of keyed calls."""

KEYS_MAX = 10_000
"""Keyed calls that an agent keeps: they are in its snapshots and in what a handover seals."""

TIMERS_BYTES_MAX = 4 * 1024 * 1024
"""Arguments of all timers of one agent."""

TIMERS_MAX = 10_000
"""Timers of one agent at a time: they are in its snapshots and in what a handover seals."""

OUTCOMES_MAX = 1000
"""Outcomes of external waits that an agent keeps; of an older one, who resolves it again is told `WaitOver`."""

OUTCOMES_BYTES_MAX = 4 * 1024 * 1024
"""Of those outcomes: they are in its snapshots and in what a handover seals."""

WAITS_MAX = 10_000
"""External waits of one agent at a time that keep no turn open."""

CATCH_UP_MAX = 10_000
"""Times of one repeating timer that are made up for, the newest: also where a clock was years ahead."""

DEAD_LETTERS_MAX = 1000
"""Dead letters kept per agent; the oldest goes first."""

TAKES_MAX = 32
"""Agents that a node takes at the same time, by adoption or for a takeover: with more, asks of the agents that it has wait too long.
Copies of agents that move to it have as many places of their own."""

FOLLOWS_MAX = 8
"""Agents that a node loads at the same time for standby copies, which nobody waits for."""

LOADS_BYTES_MAX = 64 * 1024 * 1024
"""State of the agents that are in such places of one kind together.  An agent with more is loaded alone."""

SNAPSHOTS_KEPT = 2
"""The newest and the one before it, so that a reader that is slow by one snapshot does not start over."""

RETRY_S_MIN, RETRY_S_MAX = 0.02, 1.0
"""Back-off of an append or a request whose outcome is unknown: fast first, since nothing can go on meanwhile."""

REGRESSION_S = 12.0
"""The leader of a replicated stream that was cut off notices it within 10 s, and answers until then with what it had."""


def check_timeout(seconds: float | None, what: str, name: str = "timeout") -> None:
    """Raises `UsageError` for a time that nobody can wait.  None says nothing, and passes."""
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if seconds is not None and not (is_number and 0 < seconds <= TIMEOUT_S_MAX):
        raise UsageError(f"{what}: {name}={seconds!r} cannot be; give seconds above 0, to {TIMEOUT_S_MAX:g}.")


def check_ranges(record: Any, form: str = "{field} = {value!r}") -> None:
    """Raises `ConfigError` for the first field whose value is outside the range that its annotation declares.

    `form` is how the sentence begins.  The error's facts are `field` and `range`.
    """
    cls: Any = type(record)
    for field, (kind, wanted) in _ranges(cls).items():
        value = getattr(record, field)
        try:
            msgspec.convert(
                float(value) if isinstance(value, float) else value, kind
            )  # of a library's kind of float, too
        except msgspec.ValidationError as error:
            shown = form.format(field=field, value=value)
            raise ConfigError(f"{shown} is out of range ({wanted}).", field=field, range=wanted) from error


@cache
def _ranges(cls: type) -> dict[str, tuple[Any, str]]:
    """By field: the annotation with its range, and the range in words.  Other fields are not checked."""
    hints = typing.get_type_hints(cls, include_extras=True).items()
    return {field: (hint, wanted) for field, hint in hints if (wanted := _in_words(hint))}


def _in_words(hint: Any) -> str:
    if hint is bool:
        return "true or false"
    metas = [meta for meta in getattr(hint, "__metadata__", ()) if isinstance(meta, msgspec.Meta)]
    if not metas:
        return ""
    meta = metas[0]
    if meta.description is not None:
        return meta.description
    low = (
        f"above {meta.gt:,}, to"
        if meta.gt is not None
        else f"{meta.ge:,} to"
        if meta.le is not None
        else f"from {meta.ge:,}"
    )
    high = "" if meta.le is None else f" {meta.le:g}" if meta.le >= 1e7 else f" {meta.le:,}"
    if hint.__origin__ is int:
        return f"a whole number{' ' if meta.ge is None or meta.le is None else ', '}{low}{high}"
    return f"{low}{high} seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settable per deployment.  Raises `ConfigError` naming the field and its range.

    >>> async with cells.local(settings=cells.Settings(idle_s=60, tries=3)) as deployment:
    ...     pass
    ...
    >>> cells.Settings(idle_s=-1)
    Traceback (most recent call last):
        ...
    mielin_cells.errors.ConfigError: idle_s = -1 is out of range (0 to 1e+09 seconds).
    """

    ask_timeout_s: Seconds = 30.0
    """An ask's answer; long enough for a model call."""
    ask_repeat_s: Seconds = 1.0
    """Without an answer for so long the receiver is reminded of an ask (it answers from what it has stored); doubles up to 8 s."""
    turn_deadline_s: Seconds = 60.0
    """One turn, without its durable steps; behind each of them it begins anew."""
    step_timeout_s: Seconds = 300.0
    """One call of a durable step: a slow model is slower than any turn should be."""
    tries: Count = 5
    """Runs of a tell or a timer's message before it becomes a dead letter: what failed may pass, and nobody waits."""
    ask_tries: Count = 1
    """Runs of an ask before its error is the answer: its caller waits, and knows better whether to ask again."""
    retry_first_s: Delay = 0.01
    """Wait before the second run of a failed turn; doubles each time.  The agent waits too: order is kept."""
    inbox_max: Count = 10_000
    """Messages waiting per agent before its inbox is full.  A class may set both this and the next for itself."""
    when_full: Annotated[WhenFull, msgspec.Meta(description='"refuse", "wait" or "drop_oldest"')] = "refuse"
    """What a full inbox means to senders: `InboxFull` at once, or after a wait; or the oldest messages become dead letters."""
    keys_s: Delay = 86_400.0
    """How long an agent keeps a call that was made with a key: a client that was away for a day may repeat it."""
    keys_bytes: Bytes = 1024 * 1024
    """What these calls may take, with their answers: the oldest go first.  A class may set both for itself."""
    prepare_s: Seconds = 5.0
    """The target's answer whether it takes the agent, and the reservation of its memory."""
    copy_rounds: Count = 10
    """Rounds of copying while the agent works.  A copy that is still too far behind after them fails the attempt."""
    copy_lag_records: Count = 64
    """Converged: at most this many records ..."""
    copy_lag_bytes: Bytes = 1024 * 1024
    """... and bytes behind: at most 10 ms of the pause.  While rounds still come nearer, the copy goes on within both bounds."""
    pause_s: Seconds = 5.0
    """The current turn's time to end once the intake is stopped."""
    handover_s: Seconds = 2.0
    """The handover's answer, before the source settles it by a claim."""
    probation_s: Seconds = 10.0
    """From handover to Accepted, before the source claims back."""
    migration_s: Seconds = 60.0
    """One attempt to move an agent, from its plan to the handover."""
    moves_out: Count = 64
    """Agents that move away from a node at a time; further moves wait while their agents work.  A drain moves 16 at a time."""
    moves_all: Count = 512
    """Agents that move at a time in the whole deployment, whoever asks for it.  Each node has its part of half of these places for
    itself, and the leader lends the others; moves without a place wait, while their agents work."""
    moves_in: Count = 128
    """Agents that move to a node at a time; sources of further ones wait for `prepare_s`, and then go elsewhere."""
    agents_max: Rate = 0
    """Agents that a node takes, by spawns, moves and failovers; 0: no limit.  What it has left of them is its fact `slots`."""
    move_bytes_s: Rate = 0
    """Bytes of agents' states that a node takes by moves in a second, on average; 0: no limit.  Likewise."""
    retention_s: Delay = 3600.0
    """A completed migration can be undone for this long: log and inbox are kept from its handover on."""
    state_bytes_max: Bytes = 1 << 30
    """State of an agent that a node takes by a move; above it copy and verification outlast their deadlines."""
    snapshot_records: Count = 512
    """Records since the last snapshot before the next one is written: bounds a load to about 30 ms."""
    snapshot_bytes: Bytes = 4 * 1024 * 1024
    """Or bytes, once they also exceed the state itself."""
    idle_s: Delay = 900.0
    """An agent without work for so long leaves memory until a message, a timer or an order wakes it; 0: never.  A quarter of an
    hour: whoever talks with an agent does not wait for its log between two messages, and an agent that nobody talks to takes its
    memory no longer than that."""
    drain_s: Seconds = 30.0
    """How long a stopping node waits for its turns."""
    heartbeat_s: Seconds = 0.5
    """A node says this often that it is there."""
    facts_s: Seconds = 1.0
    """A node measures its machine this often, unless that takes more than about 0.05 % of a core: then it waits longer.  What the
    others are told of it is bounded by other numbers."""
    heartbeat_misses: Count = 5
    """Heartbeats that may be missed before a node counts as silent: 2.5 s outlast a slow moment of a machine."""
    plan_moves: Count = 128
    """Moves that plans of policies and rebalancing have open in the deployment at a time; critical ones have as many besides."""
    plan_moves_node: Count = 64
    """Of these, from one node, and to one node."""
    rebalance_s: Delay = 0.0
    """The leader looks this often whether the agents are spread evenly, and moves some if they are not; 0: never by itself."""
    reconcile_s: Seconds = 5.0
    """A node looks for agents that the log gives it and that it does not run; if nothing was written anywhere, it need not."""
    stream_keep_s: Delay = 600.0
    """The parts of a stream can be read for this long after its end: a reader that has lost its connection comes back within it."""
    compare_s: Seconds = 600.0
    """Even then it compares all logs with what it runs this often."""
    topic_keep_s: Seconds = 7 * 86400.0
    """Messages of topics are kept for so long, ..."""
    topic_keep: Count = 100_000
    """... and at most so many of one publisher and topic.  Publishers remove older ones while they publish; the last one stays."""
    topic_poll_s: Seconds = 10.0
    """A node reads the topics that its agents have subscribed to this often if nothing wakes it: live messages may be lost."""
    regression_s: Seconds = REGRESSION_S
    """A log that says less than it had acknowledged must go on saying so for this long, before its agent is quarantined."""

    def __post_init__(self) -> None:
        check_ranges(self)


ASK_REPEAT_S_MAX = 8.0
