"""The streams of calls: their entries, and what owners and readers make of them.  Pure."""
