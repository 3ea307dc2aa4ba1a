"""Commands about policies and placement."""
