"""Errors of training that a user can put right, apart from the configuration's own (training/recipe.py)."""


class CheckpointError(ValueError):
    """A checkpoint that can't be used; says which file and why."""


class ModelError(ValueError):
    """A base that can't be loaded; says which and why."""


class NonFiniteGradients(ValueError):
    """Loss or gradients stayed non-finite for train.max_skipped_steps steps in a row."""


class LossSpikes(ValueError):
    """The loss spiked more than train.max_skipped_steps times since the same checkpoint."""


class StorageError(ValueError):
    """What a run has to say of itself could not be written until its end; says what is missing."""
