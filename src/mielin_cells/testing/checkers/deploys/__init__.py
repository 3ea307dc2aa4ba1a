"""The checker of deploys: I48."""
