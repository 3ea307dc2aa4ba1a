"""The language of rules: a condition or a number over facts of nodes and agents.  It cannot loop, call out, or change anything."""
