"""`make sim-scale`: what a node costs the others, and the store, in simulated deployments of up to a thousand nodes."""
