"""The runtime that hosts agents."""
