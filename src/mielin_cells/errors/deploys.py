"""Yours, about deploys: another one goes on, or its state does not allow the order."""

from __future__ import annotations

from mielin_cells.errors.base import UsageError


class DeployRefused(UsageError):
    """A deploy goes on, or its state does not allow what was wanted; nothing was done.  Facts: deploy.

    Next: look at the deploy with `mielin deploy --status`, and end it, or wait for its end.
    """
