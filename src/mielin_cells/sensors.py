"""Sensors and notices: functions of the app that measure what policies are to see of a node, or say that its machine goes away.

A node has those of its app: import this module where the app's agents are defined.
"""

from mielin_cells.policy.facts import Facts, Value
from mielin_cells.policy.sensors import Sensor, notice, sensor

__all__ = ["Facts", "Sensor", "Value", "notice", "sensor"]
