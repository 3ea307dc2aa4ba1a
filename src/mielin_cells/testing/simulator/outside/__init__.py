"""What a simulated world has besides agents and nodes: a stream that another system writes."""
