"""Checkers of policies that move agents, and of plans of moves: I44 to I47."""
