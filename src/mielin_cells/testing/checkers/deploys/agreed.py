"""The checker of the log of deploys, and of what an undo of a deploy takes back (I48)."""

from __future__ import annotations

from mielin_cells.client.deploys.moving import migration_prefix
from mielin_cells.log.records import Accepted, HandedOff, Undone
from mielin_cells.policy.deploys.events import Began, Drives, Wished
from mielin_cells.policy.deploys.machine import Deploy
from mielin_cells.testing.checkers.checker import Checker, DeployStep, Step, migration_name
from mielin_cells.testing.checkers.scene import Scene


class DeploysAgree(Checker):
    """I48: each event of a deploy can follow those before it, and is by an operator or by the process that said last that it drives.

    An undo takes an agent back to before the first move of the deploy that is not undone.  At rest every deploy is over.
    """

    invariant = "I48"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._deploy: Deploy | None = None
        self._driver = ""
        """The process that has said last that it drives."""
        self._handed: dict[str, int] = {}
        """By agent, where it was handed over last."""
        self._moves: dict[str, list[tuple[int, str]]] = {}
        """By agent: moves of deploys that are completed and not undone, each with the position of its handover."""

    def deploy(self, step: DeployStep) -> None:
        event, deploy = step.event, self._deploy
        what = f"{type(event).__name__} of {step.author.label} at {step.seq}"
        if deploy is None and not isinstance(event, Began):
            self.fails(f"{what}: there is no deploy")
        if deploy is not None and (why := deploy.refusal(event)):
            self.fails(f"{what} cannot follow what was there: {why}")
        if isinstance(event, Began):
            self._moves.clear()  # one that a power cut has made forgotten is begun again under its name, and takes back its own moves
        if isinstance(event, Drives):
            self._driver = step.author.label
        elif not isinstance(event, (Began, Wished)) and step.author.label != self._driver:
            self.fails(f"{what}: {self._driver or 'nobody'} drives the deploy")
        if isinstance(event, Began) and deploy is None:
            self._deploy, _ = Deploy.begin(event)
        elif deploy is not None:
            self._deploy, _ = deploy.on(event)
        self.scene.counts[f"deploy: {type(event).__name__}"] += 1
        if self._deploy is not None and self._deploy.is_over:
            self.scene.counts[f"deploy is {self._deploy.phase.value}"] += 1

    def record(self, step: Step) -> None:
        moves, deploy = self._moves.setdefault(step.agent, []), self._deploy
        prefix = migration_prefix(deploy.name) if deploy is not None else None
        match step.record:
            case HandedOff():
                self._handed[step.agent] = step.seq
            case Accepted() if prefix is not None and step.before.migration.startswith(prefix):
                moves.append((self._handed[step.agent], migration_name(step.before.migration)))
            case Undone(migration=migration, to=to):
                if prefix is not None and migration.startswith(prefix):
                    first = moves[0][1] if moves else "none"
                    if migration_name(migration) != first:
                        self.fails(f"{step.what} takes back {migration}; the first move of the deploy is {first}")
                    self.scene.counts["deploy: agents taken back"] += 1
                self._moves[step.agent] = [one for one in moves if one[0] < to]
            case _:
                pass

    def at_rest(self) -> None:
        if self._deploy is not None and not self._deploy.is_over:
            self.fails(f"deploy {self._deploy.name} is {self._deploy.phase.value} at rest")
