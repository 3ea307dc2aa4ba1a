"""Programs that run in the peers' environment, each a peer as its users write for it."""
