"""The recipe of the run that made a checkpoint, out of its manifest; no torch in here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from training.checkpoint.manifest import Checkpoint
from training.config import Config
from training.errors import CheckpointError


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
