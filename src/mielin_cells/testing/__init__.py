"""Tools that test agents and the system itself."""
