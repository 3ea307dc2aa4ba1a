"""The parts of a run, each a program of its own: `python -m benchmarks.parts.pause --size quick`."""
