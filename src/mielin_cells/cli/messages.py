"""`mielin spawn`, `ask`, `tell`, `resolve`, `reject`, `topic` and `dead`: agents are made and called, and messages looked after."""

from __future__ import annotations

import datetime
import logging
from functools import partial
from typing import Annotated

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number

from mielin_cells.agents.reports import WaitOutcome
from mielin_cells.agents.topics.messages import Published, Since, TopicGap
from mielin_cells.cli.command import command, confirm, operate
from mielin_cells.cli.options import (
    HERE,
    Agent,
    Deadline,
    Fields,
    Handler,
    Key,
    Server,
    Timeout,
    Urgency,
    Words,
    Yes,
    choose_one,
)
from mielin_cells.cli.show import Printer, as_json, counted, record, table, when
from mielin_cells.client.operator import Operator
from mielin_cells.deployment.codes import DONE, REFUSED
from mielin_cells.errors import ConfigError, UsageError
from mielin_cells.store.topics import list_topics

ONE = choose_one()
COLUMNS = ("number", "id", "handler", "sender", "tries", "cause")


@command
async def spawn(
    operator: Operator,
    printer: Printer,
    cls: Annotated[str, Parameter(name="CLASS", help="The agent's class.")],
    id: Annotated[str, Parameter(name="ID", help="Its id, unique in the deployment.")],
    /,
    *fields: Fields,
    on: Annotated[
        str | None, Parameter(help="The node to run it (default: the emptiest that knows the class).")
    ] = None,
) -> int:
    node, is_new = await operator.spawn(cls, id, list(fields), on)
    value = {"agent": id, "class": cls, "node": node, "new": is_new}
    unused = f"; its state is unchanged, and {' '.join(fields)} was not used" if fields else ""
    printer.show(value, lambda: f"{id} runs on {node}" if is_new else f"{id} exists already, on {node}{unused}")
    return DONE


@command
async def ask(
    operator: Operator,
    printer: Printer,
    agent: Agent,
    handler: Handler,
    /,
    *words: Words,
    timeout: Timeout = None,
    deadline: Deadline = None,
    key: Key = None,
    priority: Urgency = "normal",
) -> int:
    printer.show(await operator.ask(agent, handler, list(words), timeout, deadline, key, priority))
    return DONE


@command
async def tell(
    operator: Operator,
    printer: Printer,
    agent: Agent,
    handler: Handler,
    /,
    *words: Words,
    deadline: Deadline = None,
    key: Key = None,
    priority: Urgency = "normal",
) -> int:
    await operator.tell(agent, handler, list(words), deadline, key, priority)
    printer.show({"agent": agent, "handler": handler, "stored": True}, lambda: f"stored in the inbox of {agent}")
    return DONE


# ---- waits ----------------------------------------------------------------------------------------------------

Token = Annotated[
    str, Parameter(name="TOKEN", help="The wait's token: whoever opened it has given it out; `mielin show` has it too.")
]


@command
async def resolve(
    operator: Operator,
    printer: Printer,
    token: Token,
    value: Annotated[str, Parameter(name="VALUE", help="JSON if that fits the type of the wait, else text.")],
    /,
    *,
    timeout: Timeout = None,
) -> int:
    return _told(printer, await operator.client.resolve_word(token, value, timeout))


@command
async def reject(
    operator: Operator,
    printer: Printer,
    token: Token,
    reason: Annotated[str, Parameter(name="TEXT", help="Why; the waiting handler gets it.")] = "",
    /,
    *,
    timeout: Timeout = None,
) -> int:
    return _told(printer, await operator.client.reject(token, reason, timeout=timeout))


def _told(printer: Printer, told: WaitOutcome) -> int:
    """Done if this has ended the wait; refused if something else stands."""
    stands = as_json(told.value) if told.outcome == "value" else f"{told.outcome}: {told.reason}"
    had = "" if told.accepted else " already"
    printer.show(told, lambda: f"wait {told.wait!r} of {told.agent} has ended{had}: {stands}")
    return DONE if told.accepted else REFUSED


# ---- topics ---------------------------------------------------------------------------------------------------

Topic = Annotated[str, Parameter(name="TOPIC", help="Levels joined by dots, as in orders.eu.new.")]
Pattern = Annotated[
    str, Parameter(name="PATTERN", help="Levels; * stands for any one, and > at the end for one or more.")
]


@command
async def topic_ls(operator: Operator, printer: Printer, pattern: Pattern = ">", /) -> int:
    infos = await list_topics(operator.client.log, pattern)
    rows = [{"topic": one.topic, "publisher": one.publisher, "last": one.n, "at": when(one.at)} for one in infos]
    printer.show(
        [one._asdict() for one in infos], lambda: table(rows) if rows else f"nothing was published to {pattern}"
    )
    return DONE


@command
async def topic_pub(
    operator: Operator,
    printer: Printer,
    topic: Topic,
    value: Annotated[str, Parameter(name="VALUE", help="JSON, else text.")],
    /,
    *,
    publisher: Annotated[str, Parameter(name="--as", help="The name under which it is published.")] = "cli",
) -> int:
    try:
        content = msgspec.json.decode(value)
    except msgspec.MsgspecError:
        content = value
    about = await operator.client.publish(topic, content, publisher=publisher)
    printer.show(about, lambda: f"stored as message {about.n} of {about.publisher} to {topic}")
    return DONE


@command
async def topic_sub(
    operator: Operator,
    printer: Printer,
    pattern: Pattern,
    /,
    *,
    since: Annotated[
        str,
        Parameter(
            help="Where to begin: now, first, an offset, a time such as 2026-01-31T12:00Z, or -60 (seconds ago)."
        ),
    ] = "now",
    count: Annotated[int | None, Parameter(validator=Number(gte=1), help="Stop after so many messages.")] = None,
    stream: Annotated[
        str | None,
        Parameter(help="A stream that another system writes to the same NATS server; PATTERN is one of its subjects."),
    ] = None,
) -> int:
    logging.getLogger("mielin_cells.jetstream").setLevel(logging.WARNING)
    seen = 0
    async for one in operator.client.follow(pattern, since=_since(since), stream=stream):
        if isinstance(one, TopicGap):
            printer.show({"gap": one}, partial(_gap_text, one))
            continue
        about, value = one
        printer.show({**msgspec.structs.asdict(about), "value": value}, partial(_message_text, about, value))
        seen += 1
        if seen == count:
            break
    return DONE


def _gap_text(gap: TopicGap) -> str:
    return (
        f"{gap.topic}: messages {gap.first or '?'} to {gap.last} of {gap.publisher} were removed before they were read"
    )


def _message_text(about: Published, value: object) -> str:
    return f"{about.topic} {about.publisher} {about.n}: {msgspec.json.encode(value, enc_hook=repr).decode()}"


def _since(text: str) -> Since:
    if text in ("now", "first"):
        return "now" if text == "now" else "first"
    try:
        number = int(text)
        return number if number >= 0 else datetime.timedelta(seconds=-number)
    except ValueError:
        pass
    try:
        at = datetime.datetime.fromisoformat(text)
        return at if at.tzinfo is not None else at.astimezone()
    except ValueError:
        raise UsageError(
            f"--since {text!r} cannot be read; give now, first, an offset, seconds ago as -60, or a time as 2026-01-31T12:00Z."
        ) from None


# ---- dead letters --------------------------------------------------------------------------------------------


def dead(
    agent: Agent,
    letter: Annotated[str | None, Parameter(help="A letter's number or id.")] = None,
    /,
    *,
    replay: Annotated[
        bool, Parameter(group=ONE, help="Send the letter's message again and remove the letter.")
    ] = False,
    purge: Annotated[bool, Parameter(group=ONE, help="Remove the letter; without LETTER, remove all.")] = False,
    yes: Yes = False,
    server: Server = HERE,
) -> int:
    if replay and letter is None:
        raise ConfigError("--replay needs the letter's number or id.", field="letter", range="see `mielin dead AGENT`")
    if purge and not yes:
        which = f"dead letter {letter!r}" if letter is not None else "all dead letters"
        refused = confirm(f"Remove {which} of agent {agent!r}?", server.json)
        if refused is not None:
            return refused

    async def work(operator: Operator, printer: Printer) -> int:
        if replay and letter is not None:
            return await replay_letter(operator, printer, agent, letter)
        return await (purge_letters if purge else show_letters)(operator, printer, agent, letter)

    return operate(server, work)


async def show_letters(operator: Operator, printer: Printer, agent: str, which: str | None) -> int:
    """Lists dead letters, or shows one."""
    letters = await operator.letters(agent)
    if which is not None:
        letter = operator.letter(agent, which, letters)
        printer.show(letter, lambda: record({**msgspec.structs.asdict(letter), "at": when(letter.at)}))
        return DONE
    rows = [{"at": when(letter.at), **{name: getattr(letter, name) for name in COLUMNS}} for letter in letters]
    printer.show(letters, lambda: table(rows) if rows else f"{agent} has no dead letters")
    return DONE


async def replay_letter(operator: Operator, printer: Printer, agent: str, which: str) -> int:
    letter = await operator.replay(agent, which)
    printer.show(
        {"agent": agent, "letter": letter.id, "replayed": True},
        lambda: f"{letter.handler} of {letter.sender} was sent again; if it fails again, it becomes a new dead letter",
    )
    return DONE


async def purge_letters(operator: Operator, printer: Printer, agent: str, which: str | None) -> int:
    count = await operator.purge(agent, which)
    printer.show({"agent": agent, "purged": count}, lambda: f"removed {counted(count, 'dead letter')} of {agent}")
    return DONE
