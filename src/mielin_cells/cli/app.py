"""The commands, with the text that `--help` prints.  A command's module is imported when the command runs."""

from __future__ import annotations

import re

from cyclopts import App, Group, Parameter

from mielin_cells import __version__

app = App(
    name="mielin",
    help="Stateful agents that move between nodes while they work.",
    version=__version__,
    help_format="plaintext",  # markup would take 50 ms to import
    default_parameter=Parameter(negative="", show_default=lambda value: value or None),  # none for flags, nor for 0 and ""
    result_action="return_value",
    exit_on_error=False, print_error=False, suppress_keyboard_interrupt=False,  # `cli.main` prints all errors alike
)  # fmt: skip

HELP = {
    "Run": {
        "up.up": """Start a server and nodes here, show them, and stop them all on Ctrl-C.

With --connect, no server is started.  The agents' state is kept, and the next `up` continues from it.""",
        "node.node": """Run one node in this process until SIGTERM or Ctrl-C.

On SIGTERM the node first moves its agents to other nodes, as `drain` does, within the setting drain_s.  On Ctrl-C it moves nothing.
In both cases running turns end, commits land, and other nodes can claim the agents that stay.""",
        "demo": """Run the main job: a month of real flights through thousands of agents that move while they work.

A server and node processes are started for it.  Each aircraft is an agent, and so is each destination airport.  At the end every
agent is compared with an independent computation.  Exits with 0 only if nothing was lost, duplicated or changed, and at least nine
of ten migrations completed.""",
    },
    "Call agents": {
        "messages.spawn": "Create an agent, unless it exists already.",
        "messages.ask": """Call a handler and print its result.

Exits with 5 if no answer came in time: the call may still take effect.""",
        "messages.tell": "Store a message in an agent's inbox, without waiting for its effect.",
        "messages.resolve": """End an external wait of an agent with a value.

Exits with 3 if the wait has ended before: the first outcome stands, and is printed.""",
        "messages.reject": "End an external wait of an agent with an error, which says why.",
    },
    "Look": {
        "look.agents": "List the agents, in the order of their ids.",
        "look.nodes": "List the nodes, with their state and since when they are in it.",
        "nodes.top.top": """Show what the nodes do, again and again: agents, messages, moves and facts.

On a terminal the list stays in its place until Ctrl-C.  Elsewhere each look is printed behind the other; --count limits them.""",
        "nodes.metrics.metrics": """Print the metrics of all nodes once, as Prometheus reads them.

`mielin node --metrics HOST:PORT` serves those of a node for scraping.""",
        "moves.migrations": "List migrations and their outcomes; `show m-...` shows one in full.",
        "look.show": "Show an agent, a node or a migration.",
        "records.log": "Print the records of an agent's log.",
        "records.watch": "Print an agent's committed state, now and each time it changes, with its revision.",
        "policies.commands.why": """Say why an agent runs where it does, and where it would be placed now.

Each node is listed with the rule that rules it out, or with what it lacks.  Nothing is asked of any node.""",
        "policies.commands.why_not": "Say what each rule says about one node for an agent, with the values that decided.",
        "policies.commands.place": """Say where new agents of a class would go, by its policy and the table of members.

Exits with 3 if some of them would have no place.""",
        "look.tree": "Show which agents have spawned which, and how their children fare.",
        "look.calls": "List an agent's calls that run, wait, or wait to be run again.",
        "look.timers": "List an agent's timers, the next one first.",
        "messages.dead": "List an agent's dead letters; show, replay or purge them.",
        "deploys.check.check": """Say whether new code can go on with every agent that there is, before a node runs it.

Each agent, as it is stored now, is upgraded and loaded by the app in a process of its own, which knows no deployment.  Nothing is
changed.  Exits with 1 if an agent would not load or could not take what waits for it, and with 2 if the app cannot be imported.""",
        "explain.command.explain": """Say what an error means, what its facts are, and what to do next.

Every error that a command prints ends with its code.  Without a code, all codes are listed.""",
        "doctor.doctor": """Say what a power cut would lose, and what is wrong with the store's settings.

Exits with 1 if something is wrong.""",
    },
    "Steer": {
        "moves.migrate": """Move an agent while it works, and show the phases.

A move that fails is retried, on the same node or another, or rolled back.  Exits with 4 if it was rolled back or gave up: the agent
is safe.""",
        "recovery.recover": "Decide about a migration that gave up; until then its agent is safe and suspended.",
        "recovery.rollback": """Undo a completed migration.

The agent goes back to the state it had before the move, and takes the messages that arrived since then again.  Messages that it
sent are not sent again, asks keep their answers, and other agents are not undone.""",
        "steer.standby": """Let other nodes follow an agent's log.

When the agent's node is lost, one of them takes the agent over without loading it first.""",
        "drain.drain": """Move every agent off a node, so that it can be removed; other nodes claim the agents of a dead node.

The node stays cordoned.  Agents that are still there at the deadline are listed with the reason; they keep running, and other nodes
claim them once the node has stopped.""",
        "plans.rebalance.rebalance": """Spread the agents over the nodes by the messages that come to them.

Messages are counted for two seconds first.  Each move is worth while, and none is made if the spread is within a tenth of even.  Exits
with 1 if it is not even at the end.""",
        "drain.cordon": "Let a node keep its agents and take no others, also after a restart.",
        "drain.uncordon": "Let a node take agents again; this also stops a drain of the node.",
        "deploys.deploy.deploy": """Bring new code to all agents: a few of them first, the others while nothing is wrong with these.

New nodes start beside the old ones.  If agents fare worse in the new code, the deploy is undone by itself and says why.  It can be
paused, resumed and undone from any terminal, also after its operator was killed.  Exits with 4 if it was undone.""",
        "steer.cancel": """Cancel a call of an agent, or one of its timers.

A call that waits does not run; the handler of one that runs is cancelled between its steps.  What has taken effect stays.""",
        "steer.abort": "Cancel an agent's open migration; the agent stays where it is.",
        "steer.claim": "Let a node take over an agent whose owner is gone.",
        "steer.suspend": "Run no more turns of an agent until `resume`; messages wait, and the agent can still be moved.",
        "steer.pause": "Suspend an agent on behalf of its user.",
        "steer.resume": "Let a suspended, paused or failed agent run again.",
        "steer.terminate": """End an agent for good, once everything it sent is delivered.

Its id is not used again.  At a terminal the command asks for confirmation.""",
    },
}

TOPIC_HELP = {
    "ls": "List topics with their publishers, and when each has published last.",
    "pub": """Publish a value to a topic.

Messages of one name (--as) are numbered in the order in which they are stored, whichever process publishes under it.""",
    "sub": """Print what is published to the topics that match, until Ctrl-C.

In the pattern * stands for any one level, and > at the end for one level or more.  Quote it.""",
}

GROUP_HELP = {
    "show": "List the members of a group.",
    "add": "Add agents to a group, or change their role.",
    "remove": "Remove agents from a group.",
    "suspend": "Suspend all members; if that fails for one, resume those that were.",
    "resume": "Resume all members; if that fails for one, suspend those that were.",
    "migrate": "Move all members to a node; if that fails for one, move those back that went.",
    "drain": "Move all members off a node; if that fails for one, move those back that went.",
    "stop": """End all members for good.

All are suspended first; if that fails for one, they are resumed, and none ends.  At a terminal the command asks for confirmation.""",
}


def _several(parent: Group, name: str, text: str, module: str, helps: dict[str, str]) -> None:
    """A command with commands of its own."""
    several = App(
        name=name, group=parent, help=text, help_format="plaintext", default_parameter=app.default_parameter,
        result_action="return_value",
    )  # fmt: skip
    for one, said in helps.items():
        path = f"mielin_cells.cli.{module}:{name}_{one}"
        several.command(path, name=one, help=re.sub(r"(?<!\n)\n(?!\n)", " ", said))
    app.command(several)


for title, commands in HELP.items():
    group = Group.create_ordered(title)
    for place, text in commands.items():
        module, _, name = place.rpartition(".")
        path = f"mielin_cells.cli.{module}" if module else "mielin_cells.demo.demo"
        shown = name.replace("_", "-")
        app.command(f"{path}:{name or place}", name=shown, group=group, help=re.sub(r"(?<!\n)\n(?!\n)", " ", text))
    if title == "Call agents":
        _several(group, "topic", "List topics, publish to one, or print what is published.", "messages", TOPIC_HELP)
    if title == "Steer":
        _several(
            group, "group", "Show and change groups, and give an order for all members.", "groups.commands", GROUP_HELP
        )
