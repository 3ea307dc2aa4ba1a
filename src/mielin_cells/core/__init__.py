"""The pure agent model: no I/O, no clocks, no randomness."""
