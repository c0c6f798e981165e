"""The one error this package raises for its users."""

from __future__ import annotations


class AdapterError(ValueError):
    """An adapter cannot be put on this model, or read from this directory, as asked."""
