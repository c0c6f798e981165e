"""The one error this package raises for its users."""

from __future__ import annotations


class EvalError(ValueError):
    """Something in the evaluation's inputs is wrong: which file or setting, what is wrong, and what to do."""
