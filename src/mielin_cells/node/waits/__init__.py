"""External waits of a node's agents."""
