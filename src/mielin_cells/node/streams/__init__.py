"""The streams of the calls that one node answers (rule T7)."""
