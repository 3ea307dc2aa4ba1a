"""The pure migration state machines."""
