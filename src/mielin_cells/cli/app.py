"""Commands and their options.  What a command does is imported when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, Group, Parameter

from mielin_cells import __version__
from mielin_cells.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from mielin_cells.cli.show import Printer
    from mielin_cells.client.operator import Operator
    from mielin_cells.deployment.connect import Address

app = App(
    name="mielin", help="Stateful agents that move between nodes while they work.", version=__version__,
    help_format="plaintext",  # what renders markup takes 50 ms to import
    exit_on_error=False, print_error=False, suppress_keyboard_interrupt=False,  # told as every error is: see `cli.main`
)  # fmt: skip

RUN = Group.create_ordered("Run")
CALL = Group.create_ordered("Call agents")
LOOK = Group.create_ordered("Look")
STEER = Group.create_ordered("Steer")
CONNECTION = Group("Connection", sort_key=9)


@Parameter(name="*")
@dataclass(frozen=True)
class Server:
    """Where the deployment is."""

    connect: Annotated[
        str | None,
        Parameter(group=CONNECTION, help="The server's URL (default: MIELIN_URL, or what `mielin up` left here)."),
    ] = None
    creds: Annotated[Path | None, Parameter(group=CONNECTION, help="A NATS credentials file.")] = None
    tls_ca: Annotated[Path | None, Parameter(group=CONNECTION, help="Certificates to trust.")] = None
    deployment: Annotated[
        str | None, Parameter(group=CONNECTION, help="Its name there (default: MIELIN_DEPLOYMENT, or mielin).")
    ] = None
    json: Annotated[bool, Parameter(negative="", help="Print JSON, a line for each value.")] = False

    def address(self) -> Address:
        """Raises `NotConnected` or `ConfigError`."""
        from mielin_cells.deployment.connect import find_address

        return find_address(self.connect, self.creds, self.tls_ca, self.deployment)


@Parameter(name="*")
@dataclass(frozen=True)
class Streams:
    """What a new deployment is made with; of one that is there, other ones are refused."""

    replicas: Annotated[
        int | None, Parameter(group=CONNECTION, help="Copies of each stream (default: 3 on a cluster, else 1).")
    ] = None
    shards: Annotated[
        int | None, Parameter(group=CONNECTION, help="Streams that agents are spread over (default: 1).")
    ] = None


HERE = Server()
ANY = Streams()
Agent = Annotated[str, Parameter(help="The agent's id.")]
Node = Annotated[str, Parameter(help="The node's name.")]
Watch = Annotated[bool, Parameter(negative="", help="Look again and again, and show what has changed.")]
Yes = Annotated[bool, Parameter(negative="", help="Do not ask.")]
Words = Annotated[str, Parameter(help="Values, in order or as name=value: JSON, else text, as the signature wants.")]


def _operate(server: Server, work: Callable[[Operator, Printer], Coroutine[Any, Any, int]]) -> NoReturn:
    from mielin_cells.cli.link import operate

    raise SystemExit(operate(server, work))


def _confirm(question: str, server: Server) -> None:
    """Asks whoever sits at the terminal.  A script, which nobody can ask, has decided already."""
    from mielin_cells.cli import show
    from mielin_cells.deployment import codes

    if sys.stdin.isatty() and sys.stderr.isatty():
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            show.Printer(server.json).fail(UsageError("It was not confirmed, and nothing was done."))
            raise SystemExit(codes.REFUSED)


# ---- run -----------------------------------------------------------------------------------------------------


@app.command(group=RUN)
def up(
    *,
    app: Annotated[str, Parameter(help="The agents' classes: a .py file or a module.")],
    nodes: Annotated[int, Parameter(help="Nodes, each a process.")] = 3,
    sync: Annotated[
        Literal["always", "lazy"], Parameter(help="`lazy` may lose the last writes at a power cut.")
    ] = "always",
    dir: Annotated[Path, Parameter(help="Where data, credential and address are kept.")] = Path(".mielin"),
    nats_server: Annotated[Path | None, Parameter(help="The server program (default: bundled, or on PATH).")] = None,
    config: Annotated[
        Path | None, Parameter(help="Nodes' settings (default: mielin.toml here, if there is one).")
    ] = None,
    streams: Streams = ANY,
    server: Server = HERE,
) -> None:
    """Start a server and nodes here, show them, and end them all with Ctrl-C.

    With --connect no server is started.  What agents hold is kept, and the next `up` goes on with it.
    """
    from mielin_cells.cli.up import Wanted, run

    raise SystemExit(
        run(
            Wanted(
                app=app, nodes=nodes, sync=sync, folder=dir, nats_server=nats_server, config=config, server=server,
                streams=streams,
            )
        )
    )  # fmt: skip


@app.command(group=RUN)
def node(
    *,
    name: Annotated[str, Parameter(help="The node's name: a newer process of the same name takes its place.")],
    app: Annotated[str, Parameter(help="The agents' classes: a .py file or a module.")],
    label: Annotated[list[str] | None, Parameter(help="key=value, announced to operators; may be repeated.")] = None,
    stop_with_stdin: Annotated[bool, Parameter(negative="", help="Stop when standard input ends.")] = False,
    config: Annotated[Path | None, Parameter(help="Settings (default: mielin.toml here, if there is one).")] = None,
    wait: Annotated[
        float | None, Parameter(help="Seconds to wait for a server that does not answer yet (default: for ever).")
    ] = None,
    faults: Annotated[
        str | None, Parameter(help="For tests: step:kind[:probability][:most][@node], or `default`.")
    ] = None,
    streams: Streams = ANY,
    server: Server = HERE,
) -> None:
    """Run one node in this process, until SIGTERM or Ctrl-C: turns end, commits land, agents stay claimable.

    SIGTERM moves its agents to other nodes first, as `drain` does, within the setting drain_s.
    """
    from mielin_cells.cli.serve import run

    raise SystemExit(run(name, app, label or [], stop_with_stdin, server, streams, __version__, config, faults, wait))


@app.command(group=RUN)
def demo(
    *,
    events: Annotated[Path | None, Parameter(help="A CSV file, plain or .gz, with the built-in one's columns.")] = None,
    nodes: Annotated[int, Parameter(help="Nodes, each a process.")] = 3,
    migrations: Annotated[int, Parameter(help="Live migrations while events flow.")] = 500,
    json: Annotated[Path | None, Parameter(help="Write the report to this file, too.")] = None,
    sync: Annotated[
        Literal["always", "lazy"], Parameter(help="`lazy` may lose the last writes at a power cut.")
    ] = "always",
    nats_server: Annotated[Path | None, Parameter(help="The server program (default: bundled, or on PATH).")] = None,
    chaos: Annotated[
        bool, Parameter(negative="", help="Kill a node every few seconds; another one comes in its place.")
    ] = False,
    drain: Annotated[
        bool, Parameter(negative="", help="Replace each node in turn, three times; no call may fail.")
    ] = False,
    faults: Annotated[
        str | None,
        Parameter(help="Make nodes fail: `default`, or step:kind[:probability][:most][@node], with commas between."),
    ] = None,
    embedded: Annotated[bool, Parameter(negative="", help="All nodes in this process, on SQLite.")] = False,
    path: Annotated[Path | None, Parameter(help="With --embedded: keep the store in this file.")] = None,
    resume: Annotated[Path | None, Parameter(help="With --embedded: go on with the store that --path kept.")] = None,
) -> None:
    """Run the main job: a month of real flights through thousands of agents that move while they work.

    A server and node processes are started for it.  Each aircraft is an agent, and each destination airport.  At the end
    every agent is compared with an independent computation.  Exits with 0 only if nothing was lost, doubled or changed, and
    nine of ten migrations completed.
    """
    from mielin_cells.demo.demo import Wanted, run

    raise SystemExit(
        run(
            Wanted(
                events=events, nodes=nodes, migrations=migrations, report=json, embedded=embedded, path=path,
                resume=resume, sync=sync, program=nats_server, faults=faults, chaos=chaos,
                drain=drain,
            )
        )
    )  # fmt: skip


# ---- call agents ---------------------------------------------------------------------------------------------


@app.command(group=CALL)
def spawn(
    cls: Annotated[str, Parameter(name="CLASS", help="The agent's class.")],
    id: Annotated[str, Parameter(name="ID", help="Its id, unique in the deployment.")],
    /,
    *fields: Annotated[str, Parameter(help="field=value of its first state: JSON, else text.")],
    on: Annotated[
        str | None, Parameter(help="The node to run it (default: the emptiest that knows the class).")
    ] = None,
    server: Server = HERE,
) -> None:
    """Create an agent, unless it is there already."""
    from mielin_cells.cli import commands, link

    _operate(server, lambda op, out: commands.spawn(op, out, cls, id, link.readable(fields), on))


@app.command(group=CALL)
def ask(
    agent: Agent,
    handler: Annotated[str, Parameter(help="The handler's name.")],
    /,
    *words: Words,
    timeout: Annotated[float | None, Parameter(help="Seconds to wait for the answer (default 30).")] = None,
    server: Server = HERE,
) -> None:
    """Call a handler and print what it returns.  Exits with 5 if no answer came: the call may still take effect."""
    from mielin_cells.cli import commands, link

    if timeout is not None and not 0 < timeout <= 1e9:
        raise ConfigError(f"--timeout {timeout:g} is out of range; wanted: above 0.", field="timeout", range="above 0")
    _operate(server, lambda op, out: commands.ask(op, out, agent, handler, link.readable(words), timeout))


@app.command(group=CALL)
def tell(
    agent: Agent,
    handler: Annotated[str, Parameter(help="The handler's name.")],
    /,
    *words: Words,
    server: Server = HERE,
) -> None:
    """Send a message durably, without waiting for its effect."""
    from mielin_cells.cli import commands, link

    _operate(server, lambda op, out: commands.tell(op, out, agent, handler, link.readable(words)))


# ---- look ----------------------------------------------------------------------------------------------------


@app.command(group=LOOK)
def agents(
    *,
    node: Annotated[str | None, Parameter(help="Only those on this node.")] = None,
    cls: Annotated[str | None, Parameter(name="--class", help="Only those of this class.")] = None,
    state: Annotated[str | None, Parameter(help="Only those in this state: Running, Suspended, Error, ...")] = None,
    after: Annotated[str, Parameter(help="Only those behind this id, in order.")] = "",
    limit: Annotated[int | None, Parameter(help="At most so many.")] = None,
    count: Annotated[bool, Parameter(negative="", help="Only say how many there are.")] = False,
    watch: Watch = False,
    server: Server = HERE,
) -> None:
    """List the agents, in the order of their ids."""
    from mielin_cells.cli import commands

    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit} is out of range; wanted: 1 or more.", field="limit", range="1 or more")
    if count and (after or limit is not None):
        raise ConfigError("--count counts all of them; leave --after and --limit out.", field="count", range="alone")
    which = commands.Which(node, cls, state, after, limit)
    _operate(server, lambda op, out: commands.agents(op, out, which, count, watch))


@app.command(group=LOOK)
def nodes(*, watch: Watch = False, server: Server = HERE) -> None:
    """List the nodes: alive, stuck, silent or stopped, and for how long."""
    from mielin_cells.cli import commands

    _operate(server, lambda op, out: commands.nodes(op, out, watch))


@app.command(group=LOOK)
def doctor(
    *,
    path: Annotated[Path | None, Parameter(help="Look at this SQLite file, and at no server.")] = None,
    fix: Annotated[
        bool, Parameter(negative="", help="Change the streams' replicas first, to --replicas or the default.")
    ] = False,
    streams: Streams = ANY,
    server: Server = HERE,
) -> None:
    """Say what a power cut would lose, and what is wrong with the store's settings.  Exits with 1 if something is wrong."""
    from mielin_cells.cli.doctor import run

    raise SystemExit(run(path, server, fix, streams.replicas, streams.shards))


@app.command(group=LOOK)
def show(
    thing: Annotated[str, Parameter(help="An agent's id, a node's name, or a migration's id (m-...).")],
    /,
    *,
    server: Server = HERE,
) -> None:
    """Show an agent, a node or a migration."""
    from mielin_cells.cli import commands

    _operate(server, lambda op, out: commands.show(op, out, thing))


@app.command(group=LOOK)
def log(
    agent: Agent,
    /,
    *,
    after: Annotated[int, Parameter(help="Only records behind this sequence.")] = 0,
    follow: Annotated[bool, Parameter(negative="", help="Go on with new records as they come.")] = False,
    server: Server = HERE,
) -> None:
    """Print the records of an agent's log."""
    from mielin_cells.cli import commands

    if after < 0:
        raise ConfigError(f"--after {after} is out of range; wanted: 0 or more.", field="after", range="0 or more")
    _operate(server, lambda op, out: commands.log(op, out, agent, after, follow))


@app.command(group=LOOK)
def timers(agent: Agent, /, *, server: Server = HERE) -> None:
    """List an agent's timers, the next first."""
    from mielin_cells.cli import commands

    _operate(server, lambda op, out: commands.timers(op, out, agent))


@app.command(group=LOOK)
def dead(
    agent: Agent,
    letter: Annotated[str | None, Parameter(help="A letter's number or id.")] = None,
    /,
    *,
    replay: Annotated[bool, Parameter(negative="", help="Send its message again and remove the letter.")] = False,
    purge: Annotated[bool, Parameter(negative="", help="Remove it; without LETTER, all of them.")] = False,
    yes: Yes = False,
    server: Server = HERE,
) -> None:
    """List an agent's dead letters, show one, replay it, or purge them."""
    from mielin_cells.cli import commands

    if replay and purge:
        raise ConfigError("--replay and --purge are two wishes; give one.", field="replay", range="one of them")
    if replay and letter is None:
        raise ConfigError("--replay needs the letter's number or id.", field="letter", range="see `mielin dead AGENT`")
    if purge and not yes:
        what = f"dead letter {letter!r}" if letter is not None else "all dead letters"
        _confirm(f"Remove {what} of agent {agent!r}?", server)
    _operate(server, lambda op, out: commands.dead(op, out, agent, letter, replay, purge))


# ---- steer ---------------------------------------------------------------------------------------------------


@app.command(group=STEER)
def migrate(
    agent: Agent,
    /,
    *,
    to: Annotated[
        str | None, Parameter(help="The target node (default: the other one with the fewest agents).")
    ] = None,
    detach: Annotated[bool, Parameter(negative="", help="Do not wait for the end.")] = False,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Only say what it would take, and what speaks against it.")
    ] = False,
    retries: Annotated[int | None, Parameter(help="Retries after a failure (default: the node's setting).")] = None,
    server: Server = HERE,
) -> None:
    """Move an agent while it works, and show the phases.  A move that fails is retried, here or elsewhere, or rolled back.

    Exits with 4 if it was rolled back or gave up: the agent is safe.
    """
    from mielin_cells.cli import moves

    recovery = {"max_retries": float(retries)} if retries is not None else None
    _operate(server, lambda op, out: moves.migrate(op, out, agent, to, detach, dry_run, recovery))


@app.command(group=LOOK)
def migrations(
    *,
    failed: Annotated[bool, Parameter(negative="", help="Only those that did not complete.")] = False,
    agent: Annotated[str | None, Parameter(help="Only those of this agent.")] = None,
    watch: Watch = False,
    server: Server = HERE,
) -> None:
    """List migrations with their outcomes; `show m-...` tells one in full."""
    from mielin_cells.cli import moves

    _operate(server, lambda op, out: moves.migrations(op, out, agent, failed, watch))


@app.command(group=STEER)
def recover(
    migration: Annotated[
        str | None, Parameter(help="A migration's id (m-...); without one, those that gave up.")
    ] = None,
    /,
    *,
    retry: Annotated[bool, Parameter(negative="", help="Move the agent after all.")] = False,
    to: Annotated[str | None, Parameter(help="With --retry: to this node.")] = None,
    rollback: Annotated[bool, Parameter(negative="", help="Let the agent run where it is.")] = False,
    server: Server = HERE,
) -> None:
    """Decide about a migration that gave up: its agent is suspended until then, and safe."""
    from mielin_cells.cli import moves

    if retry and rollback:
        raise ConfigError("--retry and --rollback are two wishes; give one.", field="retry", range="one of them")
    if to is not None and not retry:
        raise ConfigError("--to goes with --retry.", field="to", range="with --retry")
    if migration is None and (retry or rollback):
        raise ConfigError("Which migration? See `mielin recover`.", field="migration", range="an id, m-...")
    _operate(server, lambda op, out: moves.recover(op, out, migration, retry, to, rollback))


@app.command(group=STEER)
def rollback(
    migration: Annotated[str, Parameter(help="A completed migration's id (m-...).")],
    /,
    *,
    to: Annotated[
        str | None, Parameter(help="Where the agent goes on (default: where the class is as it was).")
    ] = None,
    dry_run: Annotated[bool, Parameter(negative="", help="Only say what would be taken again.")] = False,
    correct: Annotated[
        bool, Parameter(negative="", help="Send what now differs, as corrections (default: what was sent stands).")
    ] = False,
    server: Server = HERE,
) -> None:
    """Undo a completed migration: the agent is back in the state it had, and takes the messages that came since again.

    Nothing that was sent is sent again, and asks keep their answers; other agents are not undone.
    """
    from mielin_cells.cli import moves

    _operate(server, lambda op, out: moves.rollback(op, out, migration, to, dry_run, correct))


@app.command(group=STEER)
def standby(
    agent: Agent,
    copies: Annotated[int, Parameter(help="Other nodes that follow its log.")] = 1,
    /,
    *,
    server: Server = HERE,
) -> None:
    """Have other nodes keep a copy of an agent: losing its node then costs the detection, and no load."""
    from mielin_cells.cli import commands

    _operate(server, lambda op, out: commands.standby(op, out, agent, copies))


@app.command(group=STEER)
def drain(
    node: Node,
    /,
    *,
    deadline: Annotated[str, Parameter(help="When what is left stays: 30s, 2m, ...")] = "30s",
    dry_run: Annotated[
        bool, Parameter(negative="", help="Only say where each agent would go, and what would keep it.")
    ] = False,
    server: Server = HERE,
) -> None:
    """Move every agent off a node and let none come, so that it can be taken away; also off a dead one.

    The node stays cordoned.  What is left at the deadline is told; it runs on, and others take it over once the node has stopped.
    """
    from mielin_cells.cli import drain as drains

    seconds = drains.seconds_of("deadline", deadline)
    _operate(server, lambda op, out: drains.drain(op, out, node, seconds, dry_run))


@app.command(group=STEER)
def cordon(node: Node, /, *, server: Server = HERE) -> None:
    """Let a node keep its agents and take no others, also after a restart."""
    from mielin_cells.cli import drain as drains

    _operate(server, lambda op, out: drains.cordon(op, out, node, True))


@app.command(group=STEER)
def uncordon(node: Node, /, *, server: Server = HERE) -> None:
    """Let a node take agents again; ends a drain of it."""
    from mielin_cells.cli import drain as drains

    _operate(server, lambda op, out: drains.cordon(op, out, node, False))


@app.command(group=STEER)
def cancel(
    agent: Agent, timer: Annotated[str, Parameter(help="The timer's id: see `timers`.")], /, *, server: Server = HERE
) -> None:
    """Take a timer of an agent away."""
    from mielin_cells.cli import commands

    _operate(server, lambda op, out: commands.cancel(op, out, agent, timer))


@app.command(group=STEER)
def abort(agent: Agent, /, *, server: Server = HERE) -> None:
    """Cancel an agent's open migration; the agent goes on where it is."""
    from mielin_cells.cli import commands

    _operate(server, lambda op, out: commands.abort(op, out, agent))


@app.command(group=STEER)
def claim(
    agent: Agent,
    /,
    *,
    to: Annotated[str, Parameter(help="The node that takes it over.")],
    force: Annotated[bool, Parameter(negative="", help="Though its owner answers, which is then fenced.")] = False,
    server: Server = HERE,
) -> None:
    """Have a node take over an agent whose owner is gone."""
    from mielin_cells.cli import commands

    _operate(server, lambda op, out: commands.claim(op, out, agent, to, force))


def _order(agent: str, what: str, reason: str, server: Server) -> NoReturn:
    from mielin_cells.cli import commands

    _operate(server, lambda op, out: commands.order(op, out, agent, what, reason))


@app.command(group=STEER)
def suspend(
    agent: Agent, /, *, reason: Annotated[str, Parameter(help="Kept in its log.")] = "", server: Server = HERE
) -> None:
    """Let no turn run until `resume`; messages wait, and the agent can still be moved."""
    _order(agent, "suspend", reason, server)


@app.command(group=STEER)
def pause(
    agent: Agent, /, *, reason: Annotated[str, Parameter(help="Kept in its log.")] = "", server: Server = HERE
) -> None:
    """As suspend, at the wish of the agent's user."""
    _order(agent, "pause", reason, server)


@app.command(group=STEER)
def resume(agent: Agent, /, *, server: Server = HERE) -> None:
    """Let a suspended, paused or failed agent run again."""
    _order(agent, "resume", "", server)


@app.command(group=STEER)
def terminate(agent: Agent, /, *, yes: Yes = False, server: Server = HERE) -> None:
    """End an agent for good, once what it sent is delivered.  Its id is not used again.  On a terminal it asks first."""
    if not yes:
        _confirm(f"End agent {agent!r} for good?", server)
    _order(agent, "terminate", "", server)
