"""A run of rounds in which all comes and goes: `python -m soak` (see `make soak`)."""
