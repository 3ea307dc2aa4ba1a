"""Metrics: `families` says which there are, and `text` writes them as Prometheus reads them."""
