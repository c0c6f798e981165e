"""What was written about a run: its recipe, in the manifest of a checkpoint, and where it began, in run.json.

No torch in here.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from training.checkpoint.manifest import Checkpoint
from training.config import Config
from training.errors import CheckpointError
from training.origin import is_among
from training.recipe import types_of


def recorded_config(checkpoint: Checkpoint) -> Config:
    """The configuration that was in force, with its lengths resolved; settings that are not known here are left out.

    Raises:
        CheckpointError: what is recorded is none.
    """
    try:
        config: Config = _decoded(Config, checkpoint.manifest["config"], "config")
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


def _decoded(hint: Any, value: Any, path: str) -> Any:
    """What `training.config.to_dict` has made plain JSON of; `path` is the setting, for messages."""
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (option for option in get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint):
        hints, known = types_of(hint), {field.name for field in dataclasses.fields(hint)}
        table = _checked(value, dict, path)
        return hint(
            **{name: _decoded(hints[name], item, f"{path}.{name}") for name, item in table.items() if name in known}
        )  # type: ignore[operator]  # a class
    arguments = get_args(hint)
    if get_origin(hint) is dict:
        return {key: _decoded(arguments[1], item, f"{path}.{key}") for key, item in _checked(value, dict, path).items()}
    if get_origin(hint) is tuple:
        return tuple(_decoded(arguments[0], item, path) for item in _checked(value, list, path))
    if get_origin(hint) is Literal:
        if value not in arguments:
            raise ValueError(f"{path} is {value!r}")
        return value
    return Path(_checked(value, str, path)) if hint is Path else _checked(value, hint, path)


def _checked(value: Any, kind: type, path: str) -> Any:
    """The value, of a kind of JSON."""
    is_number = kind is float and type(value) is int
    if type(value) is not kind and not is_number:
        raise TypeError(f"{path} is {value!r}")
    return value
