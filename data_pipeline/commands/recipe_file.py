"""What a run's recipe says about its data, read without the rest of the run.

The run itself reads the whole recipe in `training.recipe`, which this package does not know; types, paths and names mean the
same here.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.errors import PipelineError
from data_pipeline.files import resolve

MAX_SEED = 2**32 - 1

Problem = tuple[str, str]


class RecipeError(PipelineError):
    """A recipe cannot be read, or its data cannot; the message lists every problem with its dotted name."""


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """The part of a recipe that decides the rows; the defaults are those of the run.

    Attributes:
        data: the section [data].
        global_batch_rows: train.global_batch_rows, the number of lanes.
        seed: run.seed.
    """

    data: DataConfig
    global_batch_rows: int = 192
    seed: int = 17


def read_recipe(path: Path, *, needs_tokenizer: bool = True) -> DataRecipe:
    """Read and check the data part of a recipe.

    Args:
        path: the .toml file; relative paths in it are relative to its folder, `~` and `$VARIABLES` are expanded.
        needs_tokenizer: whether a tokenizer that is not there yet is a problem.

    Raises:
        RecipeError: with everything that is wrong at once.
    """
    table = _load(path)
    problems: list[Problem] = []
    numbers = {
        "global_batch_rows": _number(table, "train", "global_batch_rows", 1, 2**63 - 1, problems),
        "seed": _number(table, "run", "seed", 0, MAX_SEED, problems),
    }
    section = table.get("data")
    if not isinstance(section, Mapping):
        problems.append(
            ("data", "is missing: add a section [data] with a tokenizer and at least one [data.sources.NAME]")
        )
        config = None
    else:
        values = _resolved(DataConfig, section, "data.", path.resolve().parent, problems)
        config = _validated(values, problems)
    if config is not None:
        # A path that could not be resolved would be missing too.
        known = {name for name, _ in problems}
        found = checked(config, needs_tokenizer=needs_tokenizer, prefix="data.")
        problems += [problem for problem in found if problem[0] not in known]
    if config is None or problems:
        lines = "\n".join(f"  - {name}: {message}" for name, message in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError(f"{count} in the data of {path}\n{lines}")
    return DataRecipe(data=config, **{name: number for name, number in numbers.items() if number is not None})


def checked(config: DataConfig, *, needs_tokenizer: bool, prefix: str = "") -> Iterator[Problem]:
    """Yield (dotted name, message) for every problem of the settings; those of the tokenizer only where it is needed."""
    for name, message in config.problems():
        if needs_tokenizer or name not in ("tokenizer", "chat_template"):
            yield prefix + name, message


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"the recipe {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        # A ValueError that is no TOMLDecodeError: a date or number that there is none of.
        raise RecipeError(f"the recipe {path} is not valid TOML: {error}") from error


def _number(table: dict[str, Any], section: str, key: str, low: int, high: int, problems: list[Problem]) -> int | None:
    """A whole number of the recipe, None where it says nothing or something wrong."""
    part = table.get(section, {})
    value = part.get(key) if isinstance(part, Mapping) else None
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        problems.append((f"{section}.{key}", f"{value!r} is not a whole number from {low} to {high}"))
        return None
    return value


def _resolved(
    owner: type, table: Mapping[str, Any], prefix: str, folder: Path, problems: list[Problem]
) -> dict[str, Any]:
    """The table without its unknown settings, which are problems, and with all paths absolute."""
    fields = {field.name: field for field in dataclasses.fields(owner)}
    hints = get_type_hints(owner)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            problems.append((prefix + key, "unknown setting" + _did_you_mean(key, fields)))
        elif key == "sources" and isinstance(value, Mapping):
            values[key] = {}
            for name, source in value.items():
                if "." in name:
                    problems.append((f'{prefix}{key}."{name}"', "a name must not contain a dot"))
                is_section = isinstance(source, Mapping)
                values[key][name] = (
                    _resolved(SourceConfig, source, f"{prefix}{key}.{name}.", folder, problems)
                    if is_section
                    else source
                )
        elif isinstance(value, str) and _is_path(hints[key], fields[key].metadata):
            try:
                values[key] = resolve(value, folder, is_name_allowed="path_or_name" in fields[key].metadata)
            except ValueError as error:
                problems.append((prefix + key, f"{value!r}: {error}"))
                values[key] = value
        else:
            values[key] = value
    return values


def _is_path(hint: object, metadata: Mapping[str, Any]) -> bool:
    return hint is Path or Path in get_args(hint) or bool(metadata.keys() & {"path_or_name", "path_or_url"})


def _did_you_mean(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _validated(values: dict[str, Any], problems: list[Problem]) -> DataConfig | None:
    """The settings, or None where types are wrong, which are problems."""
    from pydantic import TypeAdapter, ValidationError

    # As JSON: strict about numbers and strings, and yet taking tables and paths. A date becomes a list, which no setting is.
    text = json.dumps(values, default=lambda value: [str(value)])
    try:
        return TypeAdapter(DataConfig).validate_json(text, strict=True)
    except ValidationError as error:
        for item in error.errors():
            name = ".".join(["data", *map(str, item["loc"])])
            if item["type"] == "missing":
                message = "is missing and has no default; set it"
            elif item["type"] == "dataclass_type":
                message = f"is a section: write [{name}]"
            else:
                message = f"{item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
            problems.append((name, message))
        return None
