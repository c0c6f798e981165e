"""Errors of training that a user can put right, apart from the configuration's own (training/recipe.py)."""


class CheckpointError(ValueError):
    """A checkpoint that can't be used; says which file and why."""
