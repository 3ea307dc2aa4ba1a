"""Policies: facts of nodes, rules over them, and where an agent may or should run.  Pure."""
