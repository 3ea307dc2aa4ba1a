"""A deployment as its users hold it: the `Cluster` protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar

from mielin_cells.agents.finding.found import Finding
from mielin_cells.agents.finding.where import Where
from mielin_cells.agents.groups.report import GroupReport, Order
from mielin_cells.agents.reference import Reference
from mielin_cells.agents.reports import AgentInfo, DrainReport, MigrationReport, NodeInfo, RollbackReport, WaitOutcome
from mielin_cells.agents.services.service import Choice, Service
from mielin_cells.agents.topics.messages import Published, Since, TopicGap
from mielin_cells.log.policy import Policy

P = ParamSpec("P")
A = TypeVar("A", bound=Reference)


class Spawning(Protocol):
    async def spawn(self, make: Callable[P, A], id: str, /, *args: P.args, **state: P.kwargs) -> A:
        """Creates the agent if the id is free, and returns a reference when its creation is durable.

        An agent of the same class that exists already is returned as it is, and the initial state is not used; if the state differs
        from the one that the agent was made with, the warning `errors.AlreadySpawned` is issued.

        Raises `WrongClass`, `AgentTerminated`, `InvalidAgentId`, `BadArguments`, `FieldRefused`.

            >>> shop = await cluster.spawn(Till, "shop", cents=100)
            >>> await shop.sell(1)
            101
        """


class Placing(Spawning, Protocol):
    def with_policy(self, policy: Policy, /) -> Spawning:
        """`await cluster.with_policy(cells.Policy(...)).spawn(Cart, "anna")`: agents with this policy in place of their class's.

        Raises `UsageError` for rules that cannot be read.

            >>> safe = await cluster.with_policy(cells.Policy(immovable=True)).spawn(Till, "safe")
            >>> (await cluster.show(safe)).policy.immovable
            True
        """


class Cluster(Placing, Protocol):
    """A deployment: its agents and nodes.  `agent` arguments take a reference or an id."""

    def on(self, node: str, /) -> Placing:
        """Spawns agents on this node.

        >>> shop = await cluster.on("node-2").spawn(Till, "shop")
        >>> (await cluster.show(shop)).node
        'node-2'
        """

    def get(self, cls: type[A], id: str, /) -> A:
        """A reference, without any I/O.  Whether the agent exists shows when it is asked.

        >>> _ = till  # it exists
        >>> await cluster.get(Till, "till-1").sell(5)
        5
        """

    async def migrate(
        self, agent: Reference | str, /, to: str | None = None, *, recovery: Mapping[str, float] | None = None
    ) -> MigrationReport:
        """Moves the agent while it works, and returns when the move has completed or was rolled back (`report.check()` raises then).

        Without `to`, the agent goes to the other node with the fewest agents.  `recovery` has the fields of `RecoveryConfig` that
        this move overrides, such as `{"max_retries": 0}`.

        Raises `MigrationRefused` with every reason, `AlreadyThere`, `UnknownNode`, `MigrationInProgress`, `NoSuchAgent`,
        `AgentTerminated`, `ConfigError`.  After an error nothing has begun.

            >>> report = await cluster.migrate(till, to="node-2", recovery={"max_retries": 0})
            >>> report.check().target
            'node-2'
        """

    async def rollback(
        self, migration: str, /, to: str | None = None, *, dry_run: bool = False, correct: bool = False
    ) -> RollbackReport:
        """Undoes a completed migration: the agent has the state again in which it was handed over, and handles the messages that came
        since once more.  It continues on the node `to` (default: a node that has the class version of that time, preferably the
        migration's source).  Returns when those messages are handled.

        Guarantees: no message is lost.  Nothing that was sent is sent again, even if it would differ now; with `correct`, what
        differs is sent, and `this().corrects` tells its receiver which message it replaces.  Asks that were answered keep their
        answers.  Finished steps are not called again.  Other agents are not undone.
        Not guaranteed: that a handler does the same twice; the report counts what differed.

        Raises `NoSuchMigration`, `UsageError` for a migration that did not complete or that an earlier undo covers,
        `RollbackExpired` if the log does not reach back that far (setting `retention_s`), `MigrationRefused` with every reason,
        `UnknownNode`, `MigrationInProgress`, `AskTimeout`.  After an error nothing was done.

            >>> move = await cluster.migrate(till, to="node-2")
            >>> (await cluster.rollback(move.migration, dry_run=True)).messages
            0
            >>> (await cluster.rollback(move.migration)).target
            'node-1'
        """

    async def abort(self, agent: Reference | str, /) -> str:
        """Cancels the agent's open migration, and returns the migration's id.  Raises `NoSuchMigration`, `TooLateToCancel`.

        >>> await cluster.abort(till)
        Traceback (most recent call last):
            ...
        mielin_cells.errors.NoSuchMigration: ...
        """

    async def claim(self, agent: Reference | str, /, to: str) -> None:
        """Node `to` takes the agent over, whichever node owns it now.  The former owner's next append is refused.

        >>> await cluster.claim(till, "node-2")
        >>> await till.sell(5)  # node-2 answers
        5
        """

    async def cordon(self, node: str, /) -> None:
        """The node keeps its agents and takes no others until `uncordon`, also after a restart.  Raises `UnknownNode`.

        >>> await cluster.cordon("node-2")
        >>> [node.name for node in await cluster.nodes() if node.is_cordoned]
        ['node-2']
        """

    async def uncordon(self, node: str, /) -> None:
        """The node takes agents again; a drain of it begins no further move.  Raises `UnknownNode`.

        >>> await cluster.cordon("node-2")
        >>> await cluster.uncordon("node-2")
        >>> [node.name for node in await cluster.nodes() if node.is_cordoned]
        []
        """

    async def drain(self, node: str, /, deadline_s: float | None = None) -> DrainReport:
        """Cordons the node and moves every agent off it, quiet ones first; returns when all have gone, or at the deadline
        (default: setting `drain_s`).  The agents of a node that is dead are claimed by others.

        Each agent is moved as by `migrate`.  Agents that are left keep running, and can be claimed once the node has stopped.  A
        move that an operator aborts is not begun again.  Raises `UnknownNode`, and `MigrationRefused` if no node could take an
        agent; then nothing was done.

            >>> _ = till  # it is on node-1
            >>> (await cluster.drain("node-1", deadline_s=10)).moved
            1
        """

    async def standby(self, agent: Reference | str, /, copies: int = 1) -> None:
        """Sets how many other nodes keep a copy of the agent, in place of what its class says.  Losing the owner then costs the time
        to notice it and one append, and no load.  Raises `UsageError` for a number above 8.

            >>> await cluster.standby(till, copies=1)
        """

    async def suspend(self, agent: Reference | str, /, reason: str = "") -> None:
        """No turn runs until `resume`; it can still be moved.  Raises `InvalidTransition`.

        >>> await cluster.suspend(till, "the till is counted")
        >>> (await cluster.show(till)).state
        'Suspended'
        """

    async def pause(self, agent: Reference | str, /, reason: str = "") -> None:
        """As `suspend`, for the agent's user.

        >>> await cluster.pause(till, "lunch")
        >>> (await cluster.show(till)).state
        'Paused'
        """

    async def resume(self, agent: Reference | str, /) -> None:
        """Lets a suspended or paused agent, or one in ERROR, run again.  Raises `InvalidTransition` if the error is fatal.

        >>> await cluster.suspend(till)
        >>> await till.sell.tell(5)  # waits
        >>> await cluster.resume(till)
        >>> await till.sell(1)
        6
        """

    async def terminate(self, agent: Reference | str, /) -> None:
        """Ends the agent for good, after what it has sent is delivered.  Messages that it has not handled become dead letters.

        >>> await cluster.terminate(till)
        >>> await till.sell(1)
        Traceback (most recent call last):
            ...
        mielin_cells.errors.AgentTerminated: ...
        """

    async def cancel(self, agent: Reference | str, /, call: str) -> None:
        """Cancels a call of the agent, whoever has made it, and returns when the order is stored.  `call` is its id, as `mielin calls`
        lists it; that of a stream is `stream.id`.

        Guarantees: a message that waits does not run, and the handler of one that runs gets `CancelledError` at its next await outside
        of a step's call.  Then the call has no effect, its asker gets `Cancelled`, and so do asks that it has made.  A call that has
        taken effect stays as it is, and nobody is told.  Finished steps stay.
        Raises `UsageError` for a text that is no id, `NoSuchAgent`, `AgentTerminated`, and what the store raises.

            >>> class Sleeper(cells.Agent):
            ...     @cells.handler
            ...     async def sleep(self) -> AsyncIterator[int]:
            ...         yield 1
            ...         await asyncio.sleep(3600)
            ...
            >>> sleeper = await cluster.spawn(Sleeper, "anna")
            >>> stream = await sleeper.sleep().start()
            >>> await cluster.cancel(sleeper, stream.id)
        """

    async def publish(self, topic: str, value: Any, /, *, publisher: str = "client") -> Published:
        """Publishes a value to a topic from outside of agents, and returns when it is stored.  Inside a turn use `cells.publish`.

        Messages of one publisher's name are numbered, whichever process publishes under it.

        Guarantees: once it returns, the message is stored, once.  Not guaranteed: if it raises, or if its process ends meanwhile,
        the message may be stored.  Raises `TopicInvalid`, `BadArguments`, `MessageTooLarge`, and what the store raises.

            >>> (await cluster.publish("orders.eu.new", {"pieces": 3}, publisher="web")).n
            1
        """

    def follow(
        self, pattern: str, /, *, since: Since = "now", stream: str | None = None
    ) -> AsyncIterator[tuple[Published, Any] | TopicGap]:
        """Reads what is published to the topics that match, as long as it is iterated, by the rules of `cells.subscribe`.

        The values are plain: dicts, lists, text and numbers.  Nothing is kept of what was read; go on with
        `since=about.offset`.  `stream` names a stream that another system writes to the same NATS server.

            >>> _ = await cluster.publish("orders.eu.new", {"pieces": 3})
            >>> async for about, order in cluster.follow("orders.>", since="first"):
            ...     print(about.topic, order)
            ...     break
            ...
            orders.eu.new {'pieces': 3}
        """

    async def show(self, agent: Reference | str, /) -> AgentInfo:
        """The agent as its owner sees it.  Raises `NoSuchAgent`, and `NoResponder` while the owner does not answer.

        >>> (await cluster.show(till)).state
        'Running'
        """

    async def resolve(self, token: str, value: Any = None, /, *, timeout: float | None = None) -> WaitOutcome:
        """Ends the external wait that the token names with a value, unless it has an outcome: then that one stands, and is returned.

        Guarantees: once this returns, the outcome is recorded.  Whoever was not answered may repeat it.
        A wait that is not open yet, because its turn runs again just now, gets the value when it opens.

        Raises `BadArguments` for a value of another type than the wait's, which goes on; `NoSuchWait` for a text that is no token of
        this deployment; `WaitOver` if the turn has ended without the wait, or what stands is not kept any more; `AskTimeout`, and then
        it may still take effect.

            >>> class Expense(cells.Agent):
            ...     @cells.handler
            ...     async def request(self) -> str:
            ...         return await cells.external("approval", then=self.decided)()
            ...
            ...     @cells.handler
            ...     async def decided(self, yes: bool) -> None: ...
            ...
            >>> token = await (await cluster.spawn(Expense, "expense")).request()
            >>> (await cluster.resolve(token, True)).accepted
            True
            >>> (await cluster.reject(token, "too dear")).accepted  # too late: the first word counts
            False
        """

    async def reject(
        self, token: str, reason: str | BaseException = "", /, *, timeout: float | None = None
    ) -> WaitOutcome:
        """As `resolve`: where it waits, the handler gets `WaitRejected` with this reason.

        >>> class Expense(cells.Agent):
        ...     @cells.handler
        ...     async def request(self) -> str:
        ...         return await cells.external("approval", then=self.decided)()
        ...
        ...     @cells.handler
        ...     async def decided(self, yes: bool) -> None: ...
        ...
        >>> token = await (await cluster.spawn(Expense, "expense")).request()
        >>> (await cluster.reject(token, "too dear")).outcome
        'rejected'
        """

    async def agents(self) -> list[AgentInfo]:
        """Every agent that runs now.

        >>> _ = till  # it exists
        >>> [agent.id for agent in await cluster.agents()]
        ['till-1']
        """

    def find(
        self, cls: type[A], /, *, where: Where | str | None = None, node: str | None = None, state: str | None = None
    ) -> Finding[A]:
        """Finds agents of the class: `async for found in cluster.find(Order, where=cells.attr("region") == "eu")`.

        `where` is a condition on attributes (`cells.attributes`), or its text: `'region == "eu" and load < 3'`.  `node` and `state`
        restrict the search to one node, and to one state such as "Running".

        What is found is a hint, and says how fresh it is: the page when the index was read (`as_of`), and each agent up to where
        in its log its attributes are known (`revision`).  An agent may move, change or end right after it.  A condition that needs
        attributes costs the agents that have some; every other search, and one by state, asks each node for its agents, and those of
        nodes that do not answer are missing (`unheard`).

        In a handler, search in a step: a turn that runs again may find others.

        Raises `WhereInvalid`, which names the column, `ConfigError` for a state that is none; when it is read, what the store raises.

            >>> _ = till  # it exists
            >>> [found.id async for found in cluster.find(Till, node="node-1")]
            ['till-1']
        """

    async def nodes(self) -> list[NodeInfo]:
        """The nodes that answer.

        >>> sorted(node.name for node in await cluster.nodes())
        ['node-1', 'node-2']
        """

    def service(
        self, cls: type[A], /, *, where: Where | str | None = None, choose: Choice = "round_robin",
        near: str | Mapping[str, str] | None = None,
    ) -> Service[A]:  # fmt: skip
        """Any one of the agents that `find` finds: `await cluster.service(Worker).call(lambda worker: worker.work(5))`.

        `choose`: "round_robin"; "least_waiting": of a few that are drawn the one with the fewest messages in its inbox;
        "nearest": those on the node `near` (in a handler by default the agent's own), else on its host, else on nodes with like
        labels, or those on nodes with the labels `near`; "by_key": always the same one for a key, as long as it is there.  Agents
        that fail are left out until they answer again.

        In a handler, pick in a step: a turn that runs again may pick another one.  Raises as `find`, and `UsageError`.

            >>> _ = till  # it exists
            >>> await cluster.service(Till).call(lambda one: one.sell(5))
            5
        """

    async def order_all(
        self,
        agents: Iterable[Reference | str],
        order: Order,
        *,
        to: str | None = None,
        node: str | None = None,
        reason: str = "",
    ) -> GroupReport:
        """One order for several agents: "suspend", "resume", "migrate" (`to` a node), "drain" (off a `node`), or "stop".

        If it fails for one of them, no further one is ordered, and what was done is taken back: who was suspended is resumed, and
        who was moved goes back to its node.  The report says what failed, what was taken back, and what could not be.  "stop"
        suspends all and then terminates each; that cannot be taken back, and begins only once all are suspended.

        Raises `UsageError` for an order that does not exist, or that lacks its node.

            >>> report = await cluster.order_all(["till-1", till], "suspend", reason="stocktaking")
            >>> report.ok
            True
        """
