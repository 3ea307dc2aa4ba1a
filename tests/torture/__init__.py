"""Real processes under real faults: `python -m torture` (see `make torture`), and what the tests of the fault matrix share with it."""
