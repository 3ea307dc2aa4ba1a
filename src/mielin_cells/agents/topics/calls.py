"""Topics, as authors write them: `cells.publish("orders.eu.new", order)` and `await cells.subscribe("orders.*.new", self.on_order)`.

What a turn publishes is part of its commit, as what it tells is.  A subscription is part of the agent: it moves with the agent, and
survives the loss of its node.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from mielin_cells.agents.context import Turn, turn
from mielin_cells.agents.handler import Bound
from mielin_cells.agents.reference import agent_id
from mielin_cells.agents.signature import HandlerSpec
from mielin_cells.agents.topics.messages import Published, Since, TopicGap
from mielin_cells.agents.values.wire import encode
from mielin_cells.errors import BadArguments, NotInTurn, UsageError
from mielin_cells.log.topics.names import check_pattern
from mielin_cells.log.topics.outside import check_outside


def publish(topic: str, value: Any, /) -> None:
    """Publishes a value to a topic with the commit of this turn: a turn that fails publishes nothing.

    A topic is levels joined by dots, such as `orders.eu.new`.  The value is anything that a message can carry.

    Guarantees: the message is stored once, whatever fails, and in the order in which this agent publishes to this topic.  It costs
    this agent one append, however many subscribers there are, and waits for none of them.
    Not guaranteed: an order between topics, or between publishers, other than the store's.

    Raises `NotInTurn` outside a turn (use `cluster.publish` there), `TopicInvalid`, `BadArguments` for a value that cannot be
    stored, `MessageTooLarge`, `InboxFull` while the store does not take what was published before.

        >>> class Shelf(cells.Agent):
        ...     @cells.handler
        ...     async def take(self, count: int) -> None:
        ...         cells.publish(f"shelf.{cells.this().id}.taken", count)
        ...
        >>> tulips = await cluster.spawn(Shelf, "tulips")
        >>> await tulips.take(3)
        >>> async for about, value in cluster.follow("shelf.*.taken", since="first"):
        ...     print(about.topic, value)
        ...     break
        ...
        shelf.tulips.taken 3
    """
    _running().publish(topic, encoded_value(value))


async def subscribe(
    pattern: str,
    handler: Bound[Any, Any],
    /,
    *,
    since: Since = "now",
    on_gap: Bound[Any, Any] | None = None,
    stream: str | None = None,
) -> None:
    """Has each message of the topics that match handled by a handler of this agent, from the commit of this turn on.

    In the pattern `*` stands for any one level, and `>` at the end for one level or more.  The handler's first parameter gets the
    value.  Its second one, if it is of type `Published`, says topic, publisher and number.

    Guarantees: each message is handled once, also if several subscriptions of this handler match it, and however often it was
    subscribed; those of one publisher to one topic in their order.  None is missed while the agent moves, is
    suspended, or has no node.
    What was removed from the store before it was read is told to `on_gap` as a `TopicGap`; without that it is a dead letter.
    A subscription that is there already stays as it is, with the new `on_gap`: `since` counts for a new one.

    `stream` names a stream that another system writes to the same NATS server: then the pattern is one of its subjects.  Each message
    that it stores is handled once, in the order of the stream, and nothing is written to it.  Bodies are JSON or msgpack; a handler
    whose first parameter is `bytes` gets them as they are, and to others what is neither is a dead letter.

    Not guaranteed: an order between publishers or topics, other than the store's; and with "now" a message that is published
    at about the same time may be among the first ones.

    Raises `NotInTurn`, `TopicInvalid`, `NoSuchStream`, and `UsageError` for a handler of another agent, one that cannot take a
    message, or a `since` that cannot be.

        >>> class Buyer(cells.Agent):
        ...     news: list[str] = []
        ...
        ...     async def on_start(self) -> None:
        ...         await cells.subscribe("shelf.*.low", self.on_low)
        ...
        ...     @cells.handler
        ...     async def on_low(self, left: int, about: cells.Published) -> None:
        ...         self.news.append(f"{about.topic}: {left} left")
        ...
        ...     @cells.handler
        ...     async def read(self) -> list[str]:
        ...         return self.news
        ...
        >>> buyer = await cluster.spawn(Buyer, "buyer")
        >>> _ = await cluster.publish("shelf.tulips.low", 2)
        >>> while not (news := await buyer.read()):
        ...     await asyncio.sleep(0.01)
        ...
        >>> news
        ['shelf.tulips.low: 2 left']
    """
    running = _running()
    checked = _checked(pattern, stream)
    await running.subscribe(checked, _own(running, handler), since, "" if on_gap is None else _own(running, on_gap))


def unsubscribe(pattern: str, handler: Bound[Any, Any], /, *, stream: str | None = None) -> bool:
    """Ends a subscription with the commit of this turn.  Returns False if there is none of this pattern and handler.

    Messages that this agent has taken before are still handled.

        >>> class Buyer(cells.Agent):
        ...     async def on_start(self) -> None:
        ...         await cells.subscribe("shelf.*.low", self.on_low)
        ...
        ...     @cells.handler
        ...     async def on_low(self, left: int) -> None: ...
        ...
        ...     @cells.handler
        ...     async def stop(self) -> bool:
        ...         return cells.unsubscribe("shelf.*.low", self.on_low)
        ...
        >>> buyer = await cluster.spawn(Buyer, "buyer")
        >>> await buyer.stop(), await buyer.stop()
        (True, False)
    """
    running = _running()
    return running.unsubscribe(_checked(pattern, stream), _own(running, handler))


def _checked(pattern: str, stream: str | None) -> str:
    return check_pattern(pattern) if stream is None else check_outside(stream, pattern)


def encoded_value(value: Any) -> bytes:
    """Raises `BadArguments`."""
    try:
        return encode(value)
    except Exception as error:  # whatever the user's type raises when it is encoded
        raise BadArguments(f"A {type(value).__name__} cannot be published: {error}.") from error


def message_args(handler: HandlerSpec | None, value: bytes, about: Published | TopicGap) -> bytes:
    """The arguments with which a message of a topic comes to its handler.

    A handler that this version of the class has not gets them too: its refusal is a dead letter, which shows them.
    """
    names = [*handler.parameters] if handler is not None else []
    args: dict[str, Any] = {names[0] if names else "message": msgspec.Raw(value)}
    if handler is not None and len(names) > 1 and handler.parameters[names[1]] is type(about):
        args[names[1]] = about
    return encode(args)


def check_takes(handler: HandlerSpec) -> None:
    """Raises `UsageError` for a handler that cannot be called with a value, and perhaps a `Published`."""
    required = handler.required
    parameters = [*handler.parameters.items()]
    if not parameters or any(kind is not Published for name, kind in parameters[1:] if name in required):
        raise UsageError(
            f"{handler.path} cannot take messages of a topic: its first parameter is for the value, and a second one may be of type "
            "Published; others need defaults."
        )


def since_s(since: Since, now: float) -> float:
    """The wall time from which on messages are wanted; 0 if `since` is no time.  Raises `UsageError`."""
    if isinstance(since, datetime):
        if since.tzinfo is None:
            raise UsageError(f"since={since!r} has no time zone; give one, such as datetime.now(UTC).")
        return max(since.astimezone(UTC).timestamp(), 1e-6)
    if isinstance(since, timedelta):
        if since < timedelta(0):
            raise UsageError(f"since={since!r} is in the future; give how long ago.")
        return max(now - since.total_seconds(), 1e-6)
    if since in ("now", "first") or (type(since) is int and since >= 0):
        return 0.0
    raise UsageError(
        f'since={since!r} cannot be; give "now", "first", an offset from 0, a datetime with a time zone, or a timedelta.'
    )


def starts(since: Since, ends: tuple[int, ...]) -> list[int]:
    """By shard, behind which entry a subscription begins.  Raises `UsageError` for an offset where there are several shards."""
    if since == "now":
        return [*ends]
    if type(since) is int:
        if len(ends) > 1:
            raise UsageError(
                f"since={since} is an offset, and this deployment keeps topics in {len(ends)} shards, each with offsets of its own; "
                "give a time."
            )
        return [since]
    return [0] * len(ends)


def _own(running: Turn, handler: Any) -> str:
    if not isinstance(handler, Bound) or agent_id(handler.__self__) != running.id:
        raise UsageError(
            f"Agent {running.id!r} subscribed with {handler!r}; give a handler of its own: subscribe(pattern, self.on_message)."
        )
    return handler.name


def _running() -> Turn:
    running = turn.get()
    if running is None:
        raise NotInTurn("Agents publish and subscribe inside a handler or a hook; outside there is cluster.publish.")
    return running
