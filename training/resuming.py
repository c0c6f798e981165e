"""The checkpoint that a run goes on from: found, checked and loaded by all ranks together. Which ones come into question says origin.py.

Functions are collectives: what one rank finds damaged is damaged for all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.checkpoint import storage
from training.checkpoint.manifest import Checkpoint, first_damage, folders, open_checkpoint
from training.checkpoint.slices import read_state
from training.engine import Engine
from training.errors import CheckpointError
from training.origin import Origin, set_aside_later
from training.progress import Progress
from training.ranks.distributed import from_rank_0, gather
from training.world import World


def where_to_begin(origin: Origin, root: Path, say: Callable[[str], None], world: World) -> Checkpoint | None:
    """The checkpoint that a start begins with, whose files are what was written; None for the beginning.

    Args:
        origin: of the start.
        root: folder of the run's checkpoints, which is put in order.
        say: tells what was passed over.
        world: all ranks.

    Raises:
        CheckpointError: there are checkpoints, and none is good.
    """
    _on_rank_0(lambda: storage.tidy_up(root), root, world)
    found = None if origin.root is None else newest_good(origin.root, say, world)
    if found is None and origin.checkpoint is not None:
        found = good(origin.checkpoint, world)
    return found


def newest_good(root: Path, say: Callable[[str], None], world: World) -> Checkpoint | None:
    """The newest good checkpoint under `root`; later ones are set aside, as they are no future of the one that is continued.

    Raises:
        CheckpointError: all of them are damaged.
    """
    found, num_damaged = None, 0
    for folder in _on_rank_0(lambda: folders(root), root, world):
        try:
            found = good(folder, world)
            break
        except CheckpointError as error:
            say(f"damaged checkpoint ignored: {error}")
            num_damaged += 1
    if found is not None and num_damaged:
        step = found.step
        # Storage may be able to read the others again one day.
        for line in _on_rank_0(lambda: set_aside_later(root, step), root, world):
            say(line)
    elif num_damaged:
        raise CheckpointError(
            f"{root}: every checkpoint is damaged; restore one, or remove the run directory to begin the run anew"
        )
    return found


def good(folder: Path, world: World) -> Checkpoint:
    """A checkpoint whose files are what was written: all ranks read and hash them, some each.

    Raises:
        CheckpointError: on all ranks, when it is damaged.
    """
    found: Checkpoint = _on_rank_0(lambda: open_checkpoint(folder), folder, world)
    damages = gather(first_damage(found, world.rank, world.size), world)
    if (damage := next((text for text in damages if text is not None), None)) is not None:
        raise CheckpointError(damage)
    return found


def load(found: Checkpoint, engine: Engine, progress: Progress, base: str | None) -> None:
    """Put weights, optimizer states and progress to what they were.

    Args:
        found: a good checkpoint.
        engine: gets its slices.
        progress: gets its values.
        base: fingerprint of the base that the engine was made of.

    Raises:
        CheckpointError: it is not of such a run.
    """
    if (theirs := found.manifest["fingerprints"].get("base")) != base:
        raise CheckpointError(
            f"{found.path}: was trained from another base ({theirs}) than model.base holds now ({base})"
        )
    rank, size = engine.world.rank, engine.world.size
    state = read_state(found, engine.state_names(), engine.shapes(), rank, size)
    engine.load_local_state(state, found.manifest["optimizer_steps"])
    for name, value in found.manifest["progress"].items():
        setattr(progress, name, value)


def _on_rank_0(compute: Callable[[], Any], place: Path, world: World) -> Any:
    """What `compute` returns on rank 0, which alone looks at names in `place`.

    Raises:
        CheckpointError: on all ranks, when it can't.
    """

    def attempt() -> Any:
        try:
            return compute()
        except CheckpointError as error:
            return error
        except OSError as error:
            file = error.filename or place
            return CheckpointError(
                f"{file}: what an earlier start has left there can't be put in order: {error.strerror}"
            )

    result = from_rank_0(attempt, world)
    if isinstance(result, CheckpointError):
        raise result
    return result
