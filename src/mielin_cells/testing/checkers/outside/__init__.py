"""A stream that another system writes: what a simulated world has of it, and the checker of what comes to agents."""
