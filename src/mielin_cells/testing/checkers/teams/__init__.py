"""Services, groups, timers by cron and traces in the simulator's mix, and their checkers."""
