"""What a seed draws: how large a world is, how it is set, what goes wrong in it, and who does what when.

All of it is drawn before the story begins, so a `Cut` can take parts away and leave the others as they are: that is how a failing
seed shrinks.  Each kind of thing is on in some worlds and off in others (swarm testing): so none always hides another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from random import Random
from typing import NamedTuple

from mielin_cells.log.inboxes.lines import Priority
from mielin_cells.migration.recovery import RecoveryConfig
from mielin_cells.settings import Settings
from mielin_cells.testing.simulator import misbehaving
from mielin_cells.testing.simulator.environment import CHANCES, Faults, limited, recovery_of, settings_of

OPS_S = 16.0
"""Virtual seconds in which an operator and a nemesis do what they do."""

HARMS = (
    "crash", "crash at call", "pause", "slow node", "cut", "cut one way", "store cut", "store cut one way", "partition",
    "partition one way", "swizzle", "clock step", "outage",
)  # fmt: skip
"""What a nemesis may do; `power cut` besides, rarely."""

ORDERS = ("claim", "suspend", "abort", "recover", "undo", "stop", "drain")
"""What an operator may do, besides moving agents."""

DEATHS = ("crash", "pause", "cut")
"""How a node that stays dead for good is dead."""

REFUSED = "refused"
"""Or so: it runs, is heard and hears, and the store refuses it."""

TRIGGERS = (
    "HandedOff", "Accepted", "Claimed", "Returned", "Asked", "Stepped", "Snapshot", "Committed", "Created", "Undone",
)  # fmt: skip
"""Records behind whose landing the nemesis likes to strike: something has been decided, and nobody knows of it yet."""

OFF: tuple[str, ...] = ()
"""Parts of stories that are left out until the bugs that they show are mended."""

CALLS = {"note": 4.0, "give": 3.0, "hand": 2.0, "roam": 0.5, "settle": 1.5, "alarm": 1.0}
"""What clients call, and how often."""

ODD_FROM = 1000
"""The number of the first call of an agent that misbehaves."""

SPILL_FROM = 2000
"""The number of the first call of the agent whose inbox drops its oldest messages."""

ODD_ORDERS = ("move", "move", "suspend", "stand by", "replay", "purge", "order pause", "terminate", "stop")

ASKER = "asker"
"""The client that asks for moves, and may die of it."""


class Op(NamedTuple):
    """Something that is done at a time.  `dice` is its own chance."""

    at: float
    what: str
    who: str
    agent: str
    dice: int


class CallPlan(NamedTuple):
    number: int
    rest_s: float
    agent: str
    kind: str
    to: str
    amount: int
    tells: bool
    deadline_s: float = 0.0
    """Within which its turn must begin; 0: whenever."""
    priority: Priority = "normal"
    patience_s: float = 0.0
    """After which its caller gives it up; 0: never."""
    inner: Priority = "normal"
    """That of the message that the call has the agent send."""


class Life(NamedTuple):
    """A client: calls by worker, and when it dies (its second life goes on with the same calls)."""

    name: str
    workers: list[list[CallPlan]]
    dies_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What is left out of a seed's story.  `parse` reads what `str` writes."""

    without: frozenset[str] = frozenset()
    """Faults, kinds of operations, and the parts that `shrink` names."""
    ops: frozenset[int] | None = None
    """Those that are done, by their places; None: all."""
    calls: frozenset[int] | None = None
    budget: int | None = None
    extra: frozenset[str] = frozenset()
    """Of `OFF`, what is in the story nevertheless."""

    def __str__(self) -> str:
        parts = []
        if self.without:
            parts.append("without=" + ",".join(sorted(name.replace(" ", "_") for name in self.without)))
        if self.ops is not None:
            parts.append(f"ops={_spans(self.ops)}")
        if self.calls is not None:
            parts.append(f"calls={_spans(self.calls)}")
        if self.budget is not None:
            parts.append(f"budget={self.budget}")
        if self.extra:
            parts.append("with=" + ",".join(sorted(self.extra)))
        return " ".join(parts)

    @classmethod
    def parse(cls, words: Iterable[str]) -> Cut:
        """Raises `ValueError` for a word that it does not know."""
        cut = cls()
        for word in words:
            name, _, value = word.partition("=")
            match name:
                case "without":
                    cut = replace(cut, without=frozenset(one.replace("_", " ") for one in value.split(",")))
                    cut = replace(cut, without=frozenset(_known(one) for one in cut.without))
                case "with":
                    cut = replace(cut, extra=frozenset(value.split(",")))
                case "ops":
                    cut = replace(cut, ops=_numbers(value))
                case "calls":
                    cut = replace(cut, calls=_numbers(value))
                case "budget":
                    cut = replace(cut, budget=int(value))
                case _:
                    raise ValueError(f"{word!r} is none of without=, with=, ops=, calls=, budget=")
        return cut


def _known(name: str) -> str:
    underscored = name.replace(" ", "_")
    return underscored if underscored in CHANCES else name


def _spans(numbers: frozenset[int]) -> str:
    """`1-3,7` for 1, 2, 3 and 7; `-` for none."""
    spans: list[list[int]] = []
    for n in sorted(numbers):
        if spans and spans[-1][1] == n - 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) or "-"


def _numbers(text: str) -> frozenset[int]:
    numbers: set[int] = set()
    for span in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", span)
        if match:
            numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
        elif span != "-":
            raise ValueError(f"{span!r} is no number and no span of numbers")
    return frozenset(numbers)


@dataclass(slots=True, kw_only=True)
class Swarm:
    """One seed's world and story."""

    seed: int
    nodes: tuple[str, ...] = ("node-1", "node-2", "node-3")
    agents: tuple[str, ...] = ("a0", "a1")
    faults: Faults = field(default_factory=Faults)
    budget: int = 0
    settings: Settings = field(default_factory=Settings)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    ops: list[Op] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    triggers: dict[str, float] = field(default_factory=dict)
    odd: tuple[str, ...] = ()
    """Agents that misbehave (`testing.odd`), besides the others."""
    crowd: tuple[str, ...] = ()
    """And as many of them as keep a node busy when it starts; nobody calls them."""
    old: tuple[str, ...] = ()
    """Nodes that begin with the older code of those, and are upgraded one after the other."""
    sulks: float = 0.0
    """How likely one of their hooks raises."""
    slow_s: float = 0.0
    """How long one takes at most."""
    strikes: int = 0
    """What the nemesis may do at landings."""
    keepers: bool = False
    """Nodes have hearts, and claim the agents of those that are silent; else an operator does."""
    dead: dict[str, str] = field(default_factory=dict)
    """Nodes that stay dead for good once the world heals, and how; never a majority."""

    @property
    def calls(self) -> list[CallPlan]:
        return [call for life in self.lives for worker in life.workers for call in worker]


def drawn(seed: int, cut: Cut | None = None) -> Swarm:
    """What the seed draws, less what is cut."""
    rng = Random(f"swarm {seed}")
    nodes = tuple(f"node-{n}" for n in range(1, rng.choices((2, 3, 4, 5), (1, 7, 1, 1))[0] + 1))
    agents = tuple(f"a{n}" for n in range(rng.randint(2, 5)))
    swarm = Swarm(
        seed=seed, nodes=nodes, agents=agents, faults=Faults.drawn(rng), budget=rng.choice((10, 40, 150)),
        settings=settings_of(rng), recovery=recovery_of(rng),
    )  # fmt: skip
    swarm.lives = _lives(rng, agents)
    swarm.ops = _ops(rng, nodes, agents)
    swarm.triggers = {kind: rng.random() * 0.3 for kind in TRIGGERS if rng.random() < 0.4}
    if "Committed" in swarm.triggers:
        swarm.triggers["Committed"] *= 0.1
    swarm.strikes = rng.choice((0, 3, 8))
    if rng.random() < 0.5:
        some = rng.sample(nodes, rng.randint(0, (len(nodes) - 1) // 2))
        swarm.dead = {name: rng.choice(DEATHS) for name in some}
    if cut is None or "wider" not in cut.without:
        _widen(swarm, cut.without if cut is not None else frozenset())
    if cut is None or "keepers" not in cut.without:
        _keep(swarm)
    swarm.settings = limited(swarm.settings, seed, is_cut=cut is not None and "limits" in cut.without)
    if cut is None or "idle" not in cut.without:  # drawn apart from all else
        swarm.settings = replace(swarm.settings, idle_s=Random(f"idle {seed}").choice((0.0, 0.0, 0.1, 0.5, 3.0)))
    if cut is not None:
        less(swarm, cut)
    swarm.ops.sort()
    return swarm


def _widen(swarm: Swarm, without: frozenset[str]) -> None:
    """Parts that were added later.  They are drawn apart, after the rest: `without=wider` a seed tells its older story."""
    rng = Random(f"wider {swarm.seed}")
    swarm.faults = swarm.faults.wider(rng)
    if "odd" not in without:
        _add_odd(swarm, Random(f"odd {swarm.seed}"))
    if "terms" not in without:
        _add_terms(swarm, Random(f"terms {swarm.seed}"))
    if rng.random() < 0.4:
        for _ in range(rng.choice((1, 2, 4))):
            at, who = round(rng.random() * OPS_S, 3), rng.choice((*swarm.nodes, *swarm.nodes, ""))
            swarm.ops.append(Op(at, "refusal", who, swarm.agents[0], rng.getrandbits(32)))
    if swarm.odd and "versions" not in without:
        _add_versions(swarm, Random(f"versions {swarm.seed}"))
    _add_load(swarm, Random(f"load {swarm.seed}"), without)
    for name in swarm.dead:
        if rng.random() < 0.25:
            swarm.dead[name] = REFUSED


def _add_terms(swarm: Swarm, rng: Random) -> None:
    """In two thirds of all worlds some calls have a deadline or a key."""
    share, longest_s = rng.choice((0.0, 0.3, 0.8)), rng.choice((0.02, 0.3, 3.0))
    swarm.settings = replace(swarm.settings, keys_bytes=rng.choice((1 << 20, 1 << 20, 200)))
    if rng.random() < share:
        swarm.agents = *swarm.agents, "c0"
        plans = [
            CallPlan(SPILL_FROM + n, 0.02 * rng.random(), "c0", "timely", "", 0, n % 3 > 0, 1000.0) for n in range(40)
        ]
        swarm.lives.append(Life("client-spill", [plans[n::4] for n in range(4)], None))
        swarm.ops += [
            Op(round(rng.random() * 2, 3), "move", rng.choice(swarm.nodes), "c0", rng.getrandbits(32)) for _ in range(2)
        ]
    for life in swarm.lives:
        for worker in life.workers:
            for place, call in enumerate(worker):
                if call.kind in ("note", "give") and rng.random() < share:
                    timely = {"kind": "timely", "deadline_s": longest_s * (0.1 + rng.random())}
                    worker[place] = call._replace(**({"kind": "once"} if call.kind == "give" else timely))


def _add_odd(swarm: Swarm, rng: Random) -> None:
    if rng.random() < 0.5:
        return
    swarm.odd = tuple(f"b{n}" for n in range(rng.randint(1, 3)))
    swarm.sulks, swarm.slow_s = rng.choice((0.0, 0.0, 0.3)), rng.choice((0.0, 0.0, 2.0, 8.0))
    kinds = [kind for kind in misbehaving.CALLS if rng.random() < 0.7] or ["mark"]
    weights, number, workers = [misbehaving.CALLS[kind] for kind in kinds], ODD_FROM, list[list[CallPlan]]()
    for _ in range(rng.randint(1, 3)):
        plans = list[CallPlan]()
        for _ in range(rng.randint(3, 8)):
            kind, rest_s = rng.choices(kinds, weights)[0], rng.random() * rng.choice((0.01, 0.5, 2.0))
            tells = rng.random() < 0.4 and kind != "hang"
            plans.append(CallPlan(number, rest_s, rng.choice(swarm.odd), kind, "", 0, tells))
            number += 1
        workers.append(plans)
    swarm.lives.append(Life("client-odd", workers, None))
    for _ in range(rng.choice((2, 5, 10))):
        at, who = round(rng.random() * OPS_S, 3), rng.choice(swarm.nodes)
        swarm.ops.append(Op(at, rng.choice(ODD_ORDERS), who, rng.choice(swarm.odd), rng.getrandbits(32)))


def _add_versions(swarm: Swarm, rng: Random) -> None:
    if rng.random() < 0.5:
        return
    new = rng.choice(swarm.nodes)  # else nobody could run what a client of the newer code spawns
    swarm.old = tuple(name for name in swarm.nodes if name != new and rng.random() < 0.8)
    for name in swarm.old:
        at = round(rng.random() * OPS_S, 3)
        swarm.ops.append(Op(at, "upgrade", name, swarm.odd[0], rng.getrandbits(32)))


def _add_load(swarm: Swarm, rng: Random, without: frozenset[str]) -> None:
    """Nodes that are late again and again; and in few worlds a crowd that takes seconds to arrive, on nodes that start again."""
    if rng.random() < 0.3:
        for _ in range(rng.choice((1, 3))):
            at, who = round(rng.random() * OPS_S, 3), rng.choice(swarm.nodes)
            swarm.ops.append(Op(at, "starve", who, swarm.agents[0], rng.getrandbits(32)))
    if rng.random() < 0.02 and "crowd" not in without:
        swarm.crowd = tuple(f"b{n}" for n in range(100, 100 + rng.choice((40, 150))))
        swarm.slow_s = rng.choice((1.0, 4.0))
        for _ in range(2):
            at, who = round(rng.random() * OPS_S, 3), rng.choice(swarm.nodes)
            swarm.ops.append(Op(at, rng.choice(("crash", "stop")), who, swarm.agents[0], rng.getrandbits(32)))


def _keep(swarm: Swarm) -> None:
    """In a third of all worlds nodes look after each other, and no operator claims.  Drawn apart from all else."""
    rng = Random(f"keepers {swarm.seed}")
    swarm.keepers = rng.random() < 0.33
    if swarm.keepers:
        swarm.ops = [op for op in swarm.ops if op.what != "claim"]
        swarm.settings = replace(
            swarm.settings, heartbeat_s=rng.choice((0.5, 1.0)), heartbeat_misses=rng.choice((3, 5))
        )
        for what in ("crash leader", "crash watchers"):
            if rng.random() < 0.25:
                swarm.ops.append(Op(round(rng.random() * OPS_S, 3), what, "", swarm.agents[0], rng.getrandbits(32)))


def _lives(rng: Random, agents: tuple[str, ...]) -> list[Life]:
    lives, index = [], 0
    kinds = [kind for kind in CALLS if rng.random() < 0.7] or ["give"]
    for number in range(rng.randint(1, 3)):
        calls, workers = rng.randint(4, 12), list[list[CallPlan]]()
        for _ in range(rng.randint(1, 3)):
            plans = []
            for _ in range(calls):
                agent = rng.choice(agents)
                to = rng.choice([a for a in agents if a != agent])
                kind = rng.choices(kinds, [CALLS[kind] for kind in kinds])[0]
                rest_s = rng.random() * rng.choice((0.01, 0.5, 2.0))
                plans.append(CallPlan(index, rest_s, agent, kind, to, rng.randint(1, 5), rng.random() < 0.3))
                index += 1
            workers.append(plans)
        lives.append(Life(f"client-{number}", workers, rng.random() * 5 if rng.random() < 0.3 else None))
    return lives


def _ops(rng: Random, nodes: tuple[str, ...], agents: tuple[str, ...]) -> list[Op]:
    harms = rng.sample(HARMS, rng.randint(1, 6))
    orders = rng.sample(ORDERS, rng.randint(0, 5))
    ops: list[Op] = []

    def add(what: str, who: str) -> None:
        ops.append(Op(round(rng.random() * OPS_S, 3), what, who, rng.choice(agents), rng.getrandbits(32)))

    for _ in range(rng.randint(2, 10)):
        add("move", rng.choice(("", *nodes)))
    for _ in range(rng.choice((0, 2, 5, 10))):
        add(rng.choice(harms), ASKER if rng.random() < 0.1 else rng.choice(nodes))
    for _ in range(rng.choice((0, 2, 5)) if orders else 0):
        add(rng.choice(orders), rng.choice(nodes))
    if rng.random() < 0.04:
        add("power cut", "")
    return sorted(ops)


def less(swarm: Swarm, cut: Cut) -> None:
    """Takes out of the swarm what the cut leaves out."""
    off = cut.without
    swarm.faults = swarm.faults.without(*(name for name in off if name in CHANCES))
    swarm.ops = [
        op for place, op in enumerate(swarm.ops)
        if op.what not in off and (cut.ops is None or place in cut.ops)
    ]  # fmt: skip
    if cut.calls is not None:
        keep = cut.calls
        swarm.lives = [
            life._replace(workers=[[call for call in worker if call.number in keep] for worker in life.workers])
            for life in swarm.lives
        ]
    if "dead clients" in off:
        swarm.lives = [life._replace(dies_at=None) for life in swarm.lives]
    if "strikes" in off:
        swarm.strikes = 0
    if "deaths" in off:
        swarm.dead = {}
    if cut.budget is not None:
        swarm.budget = min(swarm.budget, cut.budget)
