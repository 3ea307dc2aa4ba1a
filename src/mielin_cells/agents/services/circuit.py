"""Which agents of a service are left out because they fail, and when they are tried again.  Times are given: there is no clock
here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

FAILURES_MAX = 3
"""Failures in a row after which an agent is left out."""
REST_S = 1.0
"""For so long first; each probe that fails doubles it."""
REST_S_MAX = 60.0
PROBE_S = 10.0
"""A probe that has not ended after so long is over: its task may be gone."""


class Circuit(NamedTuple):
    """Of one agent."""

    failures: int = 0
    """In a row."""
    rest_s: float = 0.0
    """How long it is left out; 0: it is not."""
    until: float = 0.0
    """When it may be probed."""
    probed_at: float | None = None
    """When the probe began that is under way."""

    @property
    def is_closed(self) -> bool:
        """Calls go to the agent."""
        return self.rest_s == 0.0

    def may_probe(self, now: float) -> bool:
        is_probed = self.probed_at is not None and now < self.probed_at + PROBE_S
        return not self.is_closed and now >= self.until and not is_probed

    def probing(self, now: float) -> Circuit:
        return self._replace(probed_at=now)

    def failed(self, now: float) -> Circuit:
        """A call has failed, or a probe.  Calls that were under way when the agent was left out change nothing."""
        if not self.is_closed:
            if self.probed_at is None:
                return self
            rest_s = min(2 * self.rest_s, REST_S_MAX)
            return Circuit(self.failures + 1, rest_s, now + rest_s)
        if self.failures + 1 < FAILURES_MAX:
            return Circuit(self.failures + 1)
        return Circuit(self.failures + 1, REST_S, now + REST_S)

    def succeeded(self) -> Circuit:
        """A call has been answered, or a probe."""
        return CLOSED


CLOSED = Circuit()


@dataclass(slots=True)
class Circuits:
    """Of all agents of a service.  Those that do not fail are not in it."""

    _by_agent: dict[str, Circuit]

    @classmethod
    def none(cls) -> Circuits:
        return cls({})

    def of(self, agent: str) -> Circuit:
        return self._by_agent.get(agent, CLOSED)

    def _set(self, agent: str, circuit: Circuit) -> None:
        if circuit == CLOSED:
            self._by_agent.pop(agent, None)
        else:
            self._by_agent[agent] = circuit

    def failed(self, agent: str, now: float) -> None:
        self._set(agent, self.of(agent).failed(now))

    def succeeded(self, agent: str) -> None:
        self._set(agent, self.of(agent).succeeded())

    def take_due(self, now: float) -> list[str]:
        """The agents that are to be probed now; each is given once."""
        due = [agent for agent, circuit in self._by_agent.items() if circuit.may_probe(now)]
        for agent in due:
            self._by_agent[agent] = self._by_agent[agent].probing(now)
        return due

    def keep(self, agents: set[str]) -> None:
        """Forgets agents that are not of the service any more."""
        self._by_agent = {agent: circuit for agent, circuit in self._by_agent.items() if agent in agents}

    @property
    def left_out(self) -> list[str]:
        return sorted(agent for agent, circuit in self._by_agent.items() if not circuit.is_closed)
