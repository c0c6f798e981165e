"""What to read, as the command line says it: a recipe, or files with a few settings."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from data_pipeline.commands.recipe_file import checked, read_recipe
from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.errors import PipelineError
from data_pipeline.files import is_url

DEFAULT_LANES = 8
DEFAULT_SEED = 17


class UsageError(PipelineError):
    """The command line asks for something that cannot be."""


def _shown(metavar: str, default: str = "") -> Any:
    """How --help shows a value, and what stands for it where it is not given."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})" if default else "")


@dataclass(frozen=True, kw_only=True)
class Files:
    """For files that no recipe names"""

    locations: Annotated[tuple[str, ...], tyro.conf.Positional, _shown("RECIPE | [NAME=]FILE ...")]
    """A recipe (.toml), whose data are read just as its run reads them; or files, folders and URLs, each a source that is
    called NAME, or like the file."""

    kind: Annotated[Literal["text", "prompt", "alpaca", "chat"] | None, _shown("text|prompt|alpaca|chat", "text")] = (
        None
    )
    """What a record is: text, or an example whose response alone is learned."""

    text_field: Annotated[str | None, _shown("FIELD", "text")] = None
    """Kind text: field with the text."""

    prompt_field: Annotated[str | None, _shown("FIELD", "prompt")] = None
    """Kind prompt: field with the prompt."""

    response_field: Annotated[str | None, _shown("FIELD", "response")] = None
    """Kind prompt: field with the response."""

    messages_field: Annotated[str | None, _shown("FIELD", "messages")] = None
    """Kind chat: field with the list of messages."""

    template: Annotated[str | None, _shown("TEXT")] = None
    """Kinds prompt and alpaca: the prompt with {field} for fields of the record."""

    dataset: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """What is named is Hugging Face datasets, or folders of save_to_disk."""

    subset: Annotated[str | None, _shown("NAME")] = None
    """Configuration of the Hugging Face dataset."""

    split: Annotated[str | None, _shown("NAME", "train")] = None
    """Split of the Hugging Face dataset or of the MDS folder."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """How to work"""

    cache_dir: Annotated[Path | None, _shown("FOLDER")] = None
    """Where indexes, tokens and copies of remote data are kept, instead of where the recipe says or .index beside the data."""

    cache_gb: Annotated[float | None, _shown("GB", "100")] = None
    """Most gigabytes of copies of remote or compressed data there."""

    workers: Annotated[int | None, _shown("N", "one for each core")] = None
    """Processes; 0 does everything in this one."""

    @property
    def processes(self) -> int:
        """How many worker processes to start."""
        if self.workers is None:
            return len(os.sched_getaffinity(0))
        if self.workers < 0:
            raise UsageError(f"--workers {self.workers} is below 0; 0 does everything in this process")
        return self.workers


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Instead of what the recipe says"""

    tokenizer: Annotated[Path | None, _shown("FILE | FOLDER")] = None
    """tokenizer.model, tokenizer.json, or a folder with one of them; needed for files."""

    seq_len: Annotated[int | None, _shown("N", "4096 for files")] = None
    """Tokens of a row."""

    num_lanes: Annotated[int | None, _shown("N", f"{DEFAULT_LANES} for files")] = None
    """Rows of a step: train.global_batch_rows."""

    seed: Annotated[int | None, _shown("N", f"{DEFAULT_SEED} for files")] = None
    """Seed of the order: run.seed."""

    too_long: Annotated[Literal["fail", "drop", "cut"] | None, _shown("fail|drop|cut", "fail for files")] = None
    """What becomes of examples with more tokens than a row."""

    on_bad_record: Annotated[Literal["fail", "skip"] | None, _shown("fail|skip", "fail for files")] = None
    """What becomes of records that hold no document."""


@dataclass(frozen=True)
class Request:
    """What a command works on.

    Attributes:
        config: checked settings of the data.
        num_lanes: rows of the global batch.
        seed: of the order.
        origin: the recipe, or the files.
    """

    config: DataConfig
    num_lanes: int
    seed: int
    origin: str


def read_request(files: Files, work: Work, rows: Rows | None = None) -> Request:
    """The settings that the command line asks for.

    Args:
        files: what to read.
        work: where to keep what is made of it.
        rows: how to make rows; None where no tokenizer is needed.

    Raises:
        PipelineError: with everything that is wrong.
    """
    if not files.locations:
        raise UsageError("nothing to read: name a recipe (.toml), or files, folders or URLs; --help shows examples")
    recipes = [location for location in files.locations if location.endswith(".toml")]
    if recipes and len(files.locations) > 1:
        raise UsageError(f"name one recipe ({recipes[0]}) or files, and not more")
    changes = _given(work, ("cache_dir", "cache_gb"))
    if rows is not None:
        changes |= _given(rows, ("tokenizer", "seq_len", "too_long", "on_bad_record"))
    if recipes:
        if described := _given(files, [field.name for field in dataclasses.fields(Files)][1:]):
            flags = ", ".join("--" + name.replace("_", "-") for name in described)
            raise UsageError(
                f"{flags}: the recipe says how its sources are read; change it there, or name files instead"
            )
        recipe = read_recipe(Path(recipes[0]), needs_tokenizer=rows is not None and rows.tokenizer is None)
        config, num_lanes, seed = recipe.data, recipe.global_batch_rows, recipe.seed
    else:
        if rows is not None and rows.tokenizer is None:
            raise UsageError(
                "--tokenizer is missing: name a tokenizer.model, a tokenizer.json, or a folder with one of them"
            )
        config = DataConfig(sources=_sources(files), tokenizer=Path("none"))
        num_lanes, seed = DEFAULT_LANES, DEFAULT_SEED
    config = dataclasses.replace(config, **changes)
    problems = [f"{name}: {message}" for name, message in checked(config, needs_tokenizer=rows is not None)]
    if rows is not None:
        num_lanes = num_lanes if rows.num_lanes is None else rows.num_lanes
        seed = seed if rows.seed is None else rows.seed
        if num_lanes < 1:
            problems.append(f"--num-lanes {num_lanes} is below 1")
        if seed < 0:
            problems.append(f"--seed {seed} is below 0")
    if problems:
        raise UsageError("\n".join(problems))
    return Request(config, num_lanes, seed, recipes[0] if recipes else " ".join(files.locations))


def _given(arguments: Files | Work | Rows, names: Sequence[str]) -> dict[str, Any]:
    """Those of the arguments that were given."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None and value is not False}


def _sources(files: Files) -> dict[str, SourceConfig]:
    settings = _given(files, [field.name for field in dataclasses.fields(Files)][1:])
    is_dataset = settings.pop("dataset", False)
    sources: dict[str, SourceConfig] = {}
    for argument in files.locations:
        # The folders of partitioned data are called year=2024.
        named = None if os.path.exists(_path(argument)) else re.fullmatch(r"([\w-]+)=(.+)", argument)
        location = named[2] if named else argument
        if not (is_dataset or is_url(location)):
            location = str(_path(location))
        name = named[1] if named else _name_of(location)
        if named and name in sources:
            raise UsageError(f"two sources are called {name}; give each another NAME=")
        count = 1
        while name in sources:
            count += 1
            name = f"{_name_of(location)}-{count}"
        settings |= {"dataset" if is_dataset else "path": location}
        sources[name] = SourceConfig(**settings)
    return sources


def _path(argument: str) -> Path:
    """Where an argument is on disk, without the .. in it, which would be its name."""
    return Path(os.path.abspath(os.path.expanduser(argument)))


def _name_of(location: str) -> str:
    """A source's name: that of the file without its ending, or of the folder."""
    last = location.rstrip("/").rsplit("/", 1)[-1]
    return last.split(".")[0] or "data"
