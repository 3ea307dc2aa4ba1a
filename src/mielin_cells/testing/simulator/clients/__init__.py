"""What clients of a simulated world do besides the calls of the workload."""
