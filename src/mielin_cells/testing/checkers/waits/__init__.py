"""External waits: what accounts wait for, and what must come of it."""
