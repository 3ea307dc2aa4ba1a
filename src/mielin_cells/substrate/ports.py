"""The two ports: everything that the outside world must offer.

`Log` keeps ordered entries per subject and decides: a conditional append is the only thing in the system that grants
anything.  `Wire` is best effort: replies, control and wake-ups; nothing on it decides anything.

Subjects are dot-separated words of `A-Z a-z 0-9 _ - =`; `log.ids` makes them, and adapters need not check again.
An adapter is right when `testing.conformance` passes against it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

from mielin_cells.log.topics.outside import Extent, Foreign

ENTRY_BYTES_MAX = 768 * 1024
"""The largest entry an adapter must take.  NATS allows 1 MiB for headers and body together by default; above it a
server drops the connection, so we stay clear of it.  Larger data is cut into parts (`substrate.parts`)."""

STALE_S = 10.0
"""How old an answer of `last` may be.  Of a cluster of NATS servers, a leader that was cut off gives up after about ten seconds, and
answers until then with what it has.  The other reads are answered by any replica, and have no bound: a replica that is cut off
is behind for as long as it is.  SQLite, and one server, are never behind."""


class Entry(NamedTuple):
    """One stored entry.  `seq` grows along a subject; it need not be contiguous (subjects share one counter)."""

    seq: int
    data: bytes


class Found(NamedTuple):
    """An entry that a pattern has found, and its subject."""

    subject: str
    seq: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Appended:
    """The entry is stored, durably as the store's sync setting says, at `seq`."""

    seq: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """The entry is not stored by this call: the subject's last sequence is `actual` (0: no entry), not the expected one.
    `actual` may be stale.  The same bytes sent *earlier* may be what is there: compare nonces."""

    actual: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """The entry may be stored, may be stored later, or never."""

    why: str


Outcome: TypeAlias = Appended | Conflict | Unknown

Source: TypeAlias = Literal["index", "settled index", "logs"]
"""What `Log.owned` reads.  "index": the index as it is, which may be late; it costs by what the owner owns.  "settled index":
the same, once the index has come to where the logs are at the call; it may cost an append.  "logs": the logs themselves, which
lack nothing that `last` has; it may cost the store by all agents."""


class Tail(Protocol):
    """Entries of one subject, in order, in batches: first those stored, then live ones as they come."""

    def __aiter__(self) -> AsyncIterator[list[Entry]]: ...

    async def __anext__(self) -> list[Entry]:
        """The next batch, never empty.  Waits for ever if nothing comes.  Raises StopAsyncIteration after `close`."""

    def watch(self, come: Callable[[], None]) -> bool:
        """Calls `come` once, on the event loop, as soon as there may be an entry that `__anext__` has not given; it must not raise.

        False if there may be such an entry already: then `come` is never called.  Nobody may wait in `__anext__` meanwhile, except
        a task that was just cancelled.  The next `__anext__`, and `close`, end the watch.  It may be called without need, and it
        outlasts a lost connection.
        """

    def close(self) -> None:
        """Ends the iteration, also one that waits.  Repeating it is harmless."""


class Subscription(Protocol):
    def close(self) -> None:
        """No call is made after it.  Repeating it is harmless."""


class Outside(Protocol):
    """Streams that other systems write, in the same server.  They are read: nothing is written to them, changed or made."""

    async def extent(self, stream: str) -> Extent:
        """Which stream it is and what it holds, by its leader.  Raises `NoSuchStream`."""

    async def read(
        self, stream: str, pattern: str, after: int, limit: int, *, is_settled: bool = False
    ) -> list[Foreign]:
        """Up to `limit` messages behind `after` whose subjects match, in order.  Raises `NoSuchStream`.

        May miss the newest (a stale replica); with `is_settled` the leader answers, with one message at most.
        """

    async def find(self, stream: str, extent: Extent, at: float) -> int:
        """The position behind which all messages are that were stored at this time (wall seconds of the server) or later."""

    async def watch(self, stream: str, pattern: str, wake: Callable[[], None]) -> Subscription | None:
        """Calls `wake` once, on the event loop, when a message of these subjects may have been stored: a hint, which may come early
        or be lost.  None: such messages cannot be heard, and have to be looked for.
        """


class Log(Protocol):
    """Durable ordered entries per subject."""

    @property
    def outside(self) -> Outside | None:
        """None: this store has no streams of other systems."""

    async def append(self, subject: str, data: bytes, expect: int | None = None, owner: str | None = None) -> Outcome:
        """Stores `data` as the subject's next entry, if the subject's last sequence is `expect` (0: no entry; None: whatever it is).

        Of several appends with one `expect`, exactly one is `Appended`.  Appends made one after another (the next called
        before or after the former has answered) by one caller to one subject are stored in that order, unless one is `Unknown`.
        `owner` marks an ownership record of an agent's log (`log.ids.is_agents_log`): from this entry on the node `owner` owns the
        agent ("": nobody does).  Such entries stand under the same expectation as all others of the log, and are indexed (`owned`).

        Raises a `StoreFull`, `StoreReadOnly`, `MessageTooLarge`, ... only where it is certain that nothing was stored.
        """

    async def read(self, subject: str, after: int = 0, limit: int = 1000) -> list[Entry]:
        """Up to `limit` entries with `seq > after`, in order.  May miss the newest (a stale replica), never skips inside."""

    async def last(self, subject: str) -> Entry | None:
        """The subject's last entry, or what was the last up to `STALE_S` ago.

        That there is an entry is certain; that there is none, or none after it, is a hint.  A caller that decides something by
        it asks `settled`, or decides by a conditional append.
        """

    async def settled(self, subject: str) -> Entry | None:
        """The subject's last entry, linearizable: it includes every append that was acknowledged before the call.

        It may cost an append.  Raises a `RetryError` if the answer could not be made certain.
        """

    async def lasts(self, subjects: Sequence[str]) -> dict[str, Entry]:
        """The last entries of many subjects, by subject; those without entries are not there.  May be stale, without a bound."""

    def tail(self, subject: str, after: int = 0) -> Tail:
        """All entries with `seq > after`, without gap or repeat, catching up first, then live.  May lag."""

    async def trim(self, subject: str, before: int) -> None:
        """Removes entries with `seq < before`.  May be repeated, late, or lost without harm.  Sequences are not reused.

        Of an agent's log the last entry and the last ownership record always stay: they say where the log ends and who owns it.
        So an ownership record may stand alone before the oldest entry that is kept, with a gap behind it.  Of a topic's subject,
        and of that of an agent's attributes, the last entry always stays, too (`log.ids.keeps_last`).
        """

    async def subjects(self, prefix: str) -> list[tuple[str, int]]:
        """Subjects that start with `prefix` and have entries, with their last sequence; in order of name.  May be stale."""

    async def position(self) -> tuple[int, ...]:
        """How far the logs have come; it costs the same whatever they hold.

        Equal to an earlier answer only if nothing was appended between the two calls, or what was appended is not known here
        yet (`STALE_S`).  Different after a connection was lost, and after the store was put back to an older copy.
        """

    async def now(self) -> float:
        """The store's time, in seconds since 1970: one clock for all that use the store, and for all its logs.

        The answer was right at some time during the call, so it is never ahead.  It does not go back while the store runs.
        """

    async def owned(self, owner: str, source: Source = "index") -> list[str]:
        """Agents' logs in which an ownership record names `owner`, in order of name.  Raises a `RetryError` if it was not found out.

        A hint: it may be late, may lack logs, and may hold logs that have named another node since.  Only the log itself says who
        owns the agent.
        """

    async def owned_by_others(self, nodes: Collection[str]) -> list[str]:
        """Agents' logs in which an ownership record names a node that is none of `nodes`, in order of name; and those that have no
        ownership record, since nobody knows whose they are.

        A hint as `owned` gives, but by the logs' names and not by the index: it lacks nothing that `last` has.  It may cost the
        store by all agents; no record is read, and memory is needed for what is returned.
        """

    def hear_owned(self, owner: str, receive: Callable[[str | None], None]) -> Subscription:
        """Calls `receive` with an agent's log soon after an ownership record in it has named `owner`; on the event loop.

        A hint: it may be late, lost, repeated or wrong.  `receive(None)`: some may have been lost just now, with a connection.
        """

    async def forget_owned(self, owner: str, subject: str, seq: int) -> None:
        """Removes `subject` from `owned(owner)` if the record that put it there is before `seq`; otherwise it stays.

        Only node `owner` itself calls this, after its log's record `seq` has named another node.  May be lost without harm.
        """

    async def mend_owned(self) -> int:
        """Makes the index of `owned` anew if it does not name agents' logs at their owners, and has not for some time; how many.

        After that it may be partial for a while.  It may cost the store by all agents, as `owned_by_others` does.  Several may call
        it at the same time.
        """

    # Topics (`log.topics`), and attributes of agents (`log.attributes`): each subject lies in one of several shards, and each shard
    # keeps all its entries in one order, which is the order of their sequences.

    async def topic_ends(self) -> tuple[int, ...]:
        """By shard, the sequence up to which entries of topics are stored.

        May be stale: every entry that is appended after the call has a higher sequence than its shard's.
        """

    async def scan(self, pattern: str, shard: int, after: int = 0, limit: int = 1000) -> list[Found]:
        """Up to `limit` entries of topics, or of attributes, in this shard with `seq > after` whose subjects match, in its order.

        In the pattern `*` stands for one word, and `>` at the end for one word or more.  May miss the newest, never skips inside.
        """

    def watch(self, pattern: str, wake: Callable[[], None]) -> Subscription:
        """Calls `wake`, on the event loop, after an entry was stored whose subject matches.  A hint: some calls may be lost.

        `wake` is also called after a connection was lost, when nobody knows what was missed.
        """


class Wire(Protocol):
    """Best-effort messages between those connected now: at most once, no order promised, may be lost."""

    async def publish(self, subject: str, data: bytes) -> None:
        """Sends to all current subscribers of exactly this subject.  Never waits for them, never raises for lack of them."""

    async def subscribe(self, subject: str, receive: Callable[[bytes], None]) -> Subscription:
        """Calls `receive` with each message, on the event loop.  It must not block and must not raise."""

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        """One server's answer.  Raises `NoResponder` if nobody serves, `WireTimeout` after `timeout` seconds:
        the request may still be acted on."""

    async def serve(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]]) -> Subscription:
        """Answers requests on exactly this subject, each in a task of its own."""


class Substrate(Protocol):
    """One connection to the outside world."""

    @property
    def log(self) -> Log: ...

    @property
    def wire(self) -> Wire: ...

    @property
    def sync(self) -> str:
        """What an acknowledged append survives: "memory", "process" (kill -9) or "power"."""

    async def close(self) -> None:
        """Waits for what was accepted, then closes.  Calls made after it raise `StoreUnreachable`."""
