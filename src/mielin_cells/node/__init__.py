"""The runtime that runs agents."""
