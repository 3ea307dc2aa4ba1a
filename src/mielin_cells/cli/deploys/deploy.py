"""`mielin deploy`: new code for all agents, a few of them first; shown, paused, resumed and undone from any terminal."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from mielin_cells.cli.command import operate
from mielin_cells.cli.deploys.check import facts_of, report_text
from mielin_cells.cli.options import HERE, Config, Server, choose_one
from mielin_cells.cli.show import Printer, counted, when
from mielin_cells.client.client import Client
from mielin_cells.client.deploys.driver import Driver, lives, summary
from mielin_cells.client.deploys.plan import begin_at
from mielin_cells.client.operator import Operator
from mielin_cells.deployment.check.check import CheckReport, check_app
from mielin_cells.deployment.codes import DONE, FAILED, REFUSED, ROLLED_BACK
from mielin_cells.errors import ConfigError, DeployRefused, UsageError
from mielin_cells.policy.deploys.events import Began, Wish, Wished
from mielin_cells.policy.deploys.health import Limits
from mielin_cells.policy.deploys.machine import Deploy, Phase
from mielin_cells.store.deploys import Deploys

DEEDS = choose_one()
Percent = Number(gt=0, lte=100)
Seconds = Number(gte=0, lte=86_400)

HEARD_S = 5.0
"""For a driver to act on what it was told."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    app: Annotated[str | None, Parameter(group=DEEDS, help="The new code: a .py file or a module.")] = None
    status: Annotated[bool, Parameter(group=DEEDS, help="Show the newest deploy.")] = False
    pause: Annotated[bool, Parameter(group=DEEDS, help="Begin nothing more until --resume or --undo.")] = False
    resume: Annotated[bool, Parameter(group=DEEDS, help="Go on, also with a deploy whose operator was killed.")] = False
    undo: Annotated[
        bool, Parameter(group=DEEDS, help="Take all agents back to the old nodes, and stop the new ones.")
    ] = False
    canary: Annotated[int, Parameter(validator=Percent, help="Percent of the agents that move first.")] = 5
    where: Annotated[
        str | None, Parameter(help="The agents that move first, by a condition on attributes; instead of --canary.")
    ] = None
    batch: Annotated[int, Parameter(validator=Percent, help="Percent of the agents in each step after that.")] = 25
    watch: Annotated[float, Parameter(validator=Seconds, help="Seconds to watch after each step.")] = 30.0
    start_timeout: Annotated[float, Parameter(validator=Seconds, help="Seconds for new nodes to serve.")] = 60.0
    nodes: Annotated[
        int | None,
        Parameter(validator=Number(gte=1, lte=64), help="How many new nodes (default: as many as there are)."),
    ] = None
    label: Annotated[
        str | None,
        Parameter(help="key=value of new nodes that somebody else starts, with `mielin node --reserved`."),
    ] = None
    max_errors: Annotated[
        float, Parameter(validator=Number(gte=0, lte=100), help="How many percent of turns may fail more than before.")
    ] = 1.0
    max_dead: Annotated[int, Parameter(validator=Number(gte=0), help="Dead letters that may come in the new code.")] = 0
    max_latency: Annotated[
        float,
        Parameter(validator=Number(gte=0), help="How many times as long the slowest turns may take; 0: not looked at."),
    ] = 4.0
    pause_if_unwell: Annotated[bool, Parameter(help="If the new code is not well, pause; do not undo.")] = False
    rewind: Annotated[bool, Parameter(help="An undo takes all agents back to what they were before they moved.")] = (
        False
    )
    no_check: Annotated[bool, Parameter(help="Do not load all agents in the new code first.")] = False
    config: Config = None
    server: Server = HERE


DEFAULTS = Options()


def deploy(options: Options = DEFAULTS) -> int:
    """Exits with 0 when all agents run the new code, 3 if nothing was begun, 4 if it was undone, 1 if it was undone in part."""

    async def work(operator: Operator, printer: Printer) -> int:
        deploys = Deploys(operator.log)
        await deploys.read_to_end()
        if options.app is not None:
            return await _begin(options, operator.client, printer, deploys)
        if options.pause or options.resume or options.undo:
            wish: Wish = "pause" if options.pause else "resume" if options.resume else "undo"
            return await _tell(operator.client, printer, deploys, wish)
        if options.status:
            return await _show(operator.client, printer, deploys)
        raise UsageError("Say what to deploy with --app, or give one of --status, --pause, --resume and --undo.")

    return operate(options.server, work)


# ---- a new one -----------------------------------------------------------------------------------------------


async def _begin(options: Options, client: Client, printer: Printer, deploys: Deploys) -> int:
    began = await _plan(options, client)
    if deploys.deploy is not None and (why := deploys.deploy.refusal(began)):
        raise _refused(why)
    if not options.no_check:
        report = await check_app(client.log, began.app, options.config)
        if not report.ok:
            printer.show({"event": "check", **facts_of(report)}, lambda: report_text(report))
            print("mielin: nothing was begun; mend the app, or give --no-check", file=sys.stderr)
            return REFUSED
        began = _with_rising(began, report)
    if why := await deploys.append(began):
        raise _refused(why)
    return await _drive(client, printer, deploys)


def _refused(why: str) -> DeployRefused:
    return DeployRefused(f"{why[:1].upper()}{why[1:]}: see `mielin deploy --status`. Nothing was done.")


def _with_rising(began: Began, report: CheckReport) -> Began:
    import msgspec

    return msgspec.structs.replace(
        began, rising={one.cls: min(one.stored) for one in report.classes if one.rises},
        versions={one.cls: one.version for one in report.classes if one.version is not None},
    )  # fmt: skip


async def _plan(options: Options, client: Client) -> Began:
    return await begin_at(
        client, _resolved(options.app or ""), label=_label(options.label), nodes=options.nodes,
        config=str(options.config.resolve()) if options.config else "", stages=stages(options.canary, options.batch),
        where=options.where or "", watch_s=options.watch, start_s=options.start_timeout,
        limits=Limits(errors=options.max_errors / 100, dead=options.max_dead, latency=options.max_latency or None),
        undoes=not options.pause_if_unwell, rewinds=options.rewind,
    )  # fmt: skip


def stages(canary: int, batch: int) -> list[int]:
    """Percent of the agents that are on new nodes after each step."""
    steps = [canary]
    while steps[-1] < 100:
        steps.append(min(100, steps[-1] + batch))
    return steps


def _resolved(app: str) -> str:
    return os.path.abspath(app) if app.endswith(".py") else app


def _label(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    key, sign, value = text.partition("=")
    if not (key and sign):
        raise ConfigError(f"--label {text!r} is not key=value.", field="label", range="key=value")
    return key, value


# ---- one that goes on ----------------------------------------------------------------------------------------


async def _drive(client: Client, printer: Printer, deploys: Deploys) -> int:
    try:
        found = await Driver(client, deploys, lambda event: printer.show(event, lambda: event_text(event))).run()
    except asyncio.CancelledError:
        print(
            "mielin: the deploy stands still now: `mielin deploy --resume` goes on with it, `mielin deploy --undo` takes it back",
            file=sys.stderr,
        )
        raise
    return _CODES[found.phase]


_CODES = {Phase.DONE: DONE, Phase.UNDONE: ROLLED_BACK, Phase.PARTLY_UNDONE: FAILED}


async def _tell(client: Client, printer: Printer, deploys: Deploys, wish: Wish) -> int:
    """Appends the wish; if nobody drives the deploy, this process does from here on, unless it is to pause."""
    found = _newest(deploys)
    is_stale = wish == "resume" and not found.is_paused and not found.is_over
    if is_stale and await lives(client, found.driver):
        raise DeployRefused(f"Deploy {found.name} is not paused, and goes on ({found.driven_by}). Nothing was done.")
    if not is_stale and (
        why := await deploys.append(Wished(deploy=found.name, at=time.time(), wish=wish, why=_BY[wish]))
    ):
        raise _refused(why)
    if not await lives(client, found.driver) and wish != "pause":
        return await _drive(client, printer, deploys)
    return await _show(client, printer, deploys)


_BY: dict[Wish, str] = {"pause": "an operator paused it", "resume": "", "undo": "an operator undid it"}


async def _show(client: Client, printer: Printer, deploys: Deploys) -> int:
    found = _newest(deploys)
    is_driven = found.is_over or await lives(client, found.driver)
    value = {**summary(found), "driven": is_driven}
    printer.show(value, lambda: status_text(found, is_driven))
    return DONE


def _newest(deploys: Deploys) -> Deploy:
    if deploys.deploy is None:
        raise UsageError("There was no deploy in this deployment.")
    return deploys.deploy


# ---- text ----------------------------------------------------------------------------------------------------


def event_text(event: dict[str, Any]) -> str:
    match event["event"]:
        case "moving":
            return f"{event['deploy']}: {event['moved']} of {counted(event['of'], 'agent')} moved"
        case "waiting":
            return f"{event['deploy']} waits: {event['reason']}"
        case _:
            return _phase_text(event)


def _phase_text(event: dict[str, Any]) -> str:
    phase, stages = event["phase"], event["stages"]
    step = (
        f", step {event['stage']} of {len(stages)} ({stages[event['stage'] - 1]} %)"
        if phase in ("moving", "watching")
        else ""
    )
    paused = ", paused" if event["paused"] else ""
    why = f": {event['why']}" if event["why"] else ""
    return f"{event['deploy']} is {phase}{step}{paused}{why}{_back_text(event.get('back'))}"


def _back_text(back: dict[str, Any] | None) -> str:
    if back is None:
        return ""
    again = counted(back["replayed"], "dead letter")
    lines = [
        f"\n  {counted(back['moved'], 'agent')} moved back, {back['rewound']} as they were before; {again} sent again"
    ]
    lines += [f"\n  {agent}: {why}" for agent, why in back["stuck"]]
    if back["stay"] > len(back["stuck"]):
        lines.append(f"\n  and {back['stay'] - len(back['stuck'])} more")
    return "".join(lines)


def status_text(found: Deploy, is_driven: bool) -> str:
    lines = [_phase_text(summary(found)), f"  {found.began.app}, begun {when(found.began.at)}"]
    lines.append(f"  old nodes {', '.join(found.began.old)}; new nodes {', '.join(found.began.new)}")
    lines.append(f"  {counted(found.moved, 'agent')} moved to new nodes")
    if not is_driven:
        who = found.driven_by or "nobody ever did"
        lines.append(
            f"  nobody drives it ({who}): `mielin deploy --resume` goes on, `mielin deploy --undo` takes it back"
        )
    return "\n".join(lines)
