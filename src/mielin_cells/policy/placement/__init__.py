"""Where an agent runs: one function for spawns, moves, takeovers, drains and standby copies, and for those who ask why."""
