"""Policies as clients ask about them."""
