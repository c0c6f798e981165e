"""What was written about a run: its recipe, in the manifest of a checkpoint, and where it began, in run.json.

No torch in here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from training.checkpoint.manifest import Checkpoint
from training.config import Config
from training.errors import CheckpointError
from training.origin import is_among


def recorded_config(checkpoint: Checkpoint) -> Config:
    """The configuration that was in force, with its lengths resolved; settings that are not known here are left out.

    Raises:
        CheckpointError: what is recorded is none.
    """
    try:
        config: Config = _decoded(Config, checkpoint.manifest["config"])
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint.path}: the recipe in its manifest can't be read ({error})") from error
    return config


def first_step(record: Mapping[str, Any], root: Path) -> int:
    """Step of the checkpoint from elsewhere that the run began with, after which its own follow; 0: it began with none.

    Args:
        record: the content of run.json.
        root: folder of the run's own checkpoints.
    """
    # What it was given replaces what it began with before; one of its own, to which it went back, does not.
    given = [known for known in record.get("origins") or [] if not is_among(Path(known["path"]), root)]
    found = given[-1] if given else record.get("branched_from")
    return int(found["step"]) if found else 0


def _decoded(hint: Any, value: Any) -> Any:
    """What `training.config.to_dict` has made plain JSON of."""
    if value is None:
        return None
    if dataclasses.is_dataclass(hint):
        hints, known = get_type_hints(hint), {field.name for field in dataclasses.fields(hint)}
        return hint(**{name: _decoded(hints[name], item) for name, item in value.items() if name in known})  # type: ignore[operator]  # a class
    arguments = get_args(hint)
    if get_origin(hint) is dict:
        return {key: _decoded(arguments[1], item) for key, item in value.items()}
    if get_origin(hint) is tuple:
        return tuple(_decoded(arguments[0], item) for item in value)
    return Path(value) if hint is Path or Path in arguments else value
