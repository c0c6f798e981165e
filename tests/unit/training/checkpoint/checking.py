"""Whether checkpoints are whole, as one process that reads everything finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.checkpoint.manifest import Checkpoint, first_damage, folders, open_checkpoint
from training.errors import CheckpointError


def verify(folder: Path) -> Checkpoint:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: naming the first missing, truncated or changed file.
    """
    checkpoint = open_checkpoint(folder)
    if (damage := first_damage(checkpoint)) is not None:
        raise CheckpointError(damage)
    return checkpoint


def newest_good(root: Path, check: Callable[[Path], Checkpoint] = verify) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint under `root`, and a message for every newer one that is damaged."""
    damages: list[str] = []
    for folder in folders(root):
        try:
            return check(folder), damages
        except CheckpointError as error:
            damages.append(str(error))
    return None, damages
