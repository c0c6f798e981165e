"""A TOML recipe and command line overrides -> one checked Config, or every problem at once.

Both sources go through the same decoder, so that a wrong key in the file and a wrong value on the command line are
reported together, each with its dotted path, its value and where it was written.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import re
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from data_pipeline.files import resolve
from training.config import Config, nested, to_dict

_evaluated = functools.cache(get_type_hints)


class ConfigError(ValueError):
    """Every problem of a configuration, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{count} in the configuration; nothing was started.\n{lines}")


def types_of(owner: Any) -> dict[str, Any]:
    """The types of a dataclass's fields by name, evaluated once: that takes most of the time of reading a recipe."""
    return _evaluated(owner)


COMMAND_LINE = "command line"
"""Where a setting was written, unless it is a recipe's path."""


@dataclasses.dataclass
class Draft:
    """Values on their way into a Config: what was read, where each came from, what is wrong so far."""

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    entries: dict[str, dict[str, None]] = dataclasses.field(default_factory=dict)
    """Names in each named table (dictionaries, to keep their order), also of entries that say nothing else."""
    source: dict[str, str] = dataclasses.field(default_factory=dict)
    unread: set[str] = dataclasses.field(default_factory=set)
    """Settings whose defaults stand in for values that could not be read."""
    problems: list[str] = dataclasses.field(default_factory=list)
    needs_files: bool = True
    """Whether paths must be known, so that every environment variable in them must be set."""

    def wrong(self, path: str, source: str, message: str, value: Any = None) -> None:
        """Note a problem of the setting `path`, written in `source`."""
        shown = path if value is None else f"{path} = {show(value)}"
        self.problems.append(f"{shown} ({source}): {message}")


def show(value: Any) -> str:
    """A value the way a recipe writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return f'"{value}"'
    return str(list(value)) if isinstance(value, tuple) else str(value)


def load_config(
    recipe: Path | None,
    overrides: Sequence[str] = (),
    *,
    world_size: int | None = None,
    more_problems: Sequence[str] = (),
    also_check: Callable[[Config], Sequence[str]] = lambda config: (),
    needs_files: bool = True,
) -> Config:
    """Read a recipe, apply `--dotted.name value` overrides, check everything.

    Relative paths of a recipe are relative to the recipe's folder, those of the command line to the working
    directory; `~` and `$VARIABLES` are expanded. Without `needs_files`, what isn't there yet is no problem, and paths with
    variables that aren't set stay as written (planning). `world_size` None leaves out the checks that need it (planning).
    `more_problems` (of the DeepSpeed JSON, say) and those that `also_check` finds are reported with the configuration's own.

    Raises:
        ConfigError: with all problems at once.
    """
    draft = Draft(problems=list(more_problems), needs_files=needs_files)
    is_read = recipe is None or read_recipe(draft, recipe)
    read_overrides(draft, overrides)
    if not is_read:
        # All that a recipe must say would be reported as missing.
        raise ConfigError(draft.problems)
    sections = {f.name: build(types_of(Config)[f.name], draft, f"{f.name}.") for f in dataclasses.fields(Config)}
    if None in sections.values():
        # What is missing leaves the checks between sections out, but not those of the other sections.
        for name, section in sections.items():
            for path, message in nested(name, section) if section is not None else ():
                report(draft, types.SimpleNamespace(**sections), path, message)
        raise ConfigError(draft.problems)
    is_as_written = len(draft.problems) == len(more_problems)
    config = fill_names(Config(**sections), draft)
    # One group of ranks that share rows is the smallest world of any.
    for path, message in config.problems(world_size or max(1, config.train.sequence_parallel), draft.unread):
        if needs_files or not is_missing_file(config, path):
            report(draft, config, path, message)
    for length in ("tokens", "epochs"):
        # A recipe's steps give way to its or a command line's tokens; what was just typed does not.
        if draft.source.get("train.steps") == COMMAND_LINE and getattr(config.train, length) is not None:
            report(draft, config, "train.steps", f"would be ignored: train.{length} is set; add --train.{length} none")
    if is_as_written:
        # Not where a default stands in for something unreadable, and would be taken for what was meant.
        draft.problems += also_check(config)
    if draft.problems:
        raise ConfigError(draft.problems)
    return config


def value_at(config: Any, path: str) -> Any:
    """The setting at a dotted path; keys of a table may have dots themselves."""
    first, _, rest = path.partition(".")
    if isinstance(config, dict):
        if path in config:
            return config[path]
        value = config.get(first)
    else:
        value = getattr(config, first, None)
    return value_at(value, rest) if rest else value


def is_missing_file(config: Config, path: str) -> bool:
    """Whether a setting names a file or folder that doesn't exist, as far as one may look."""
    value = value_at(config, path)
    is_path = isinstance(value, Path) or path == "model.base" or re.fullmatch(r"data\.sources\.[^.]+\.path", path)
    return bool(is_path) and value is not None and not os.path.exists(value)


def report(draft: Draft, config: Any, path: str, message: str) -> None:
    """Note a value out of range, saying where it was set (or that it is the default).

    Nothing is noted of a default that stands in for a value that could not be read.
    """
    if any(path == unread or path.startswith(f"{unread}.") for unread in draft.unread):
        return
    value = value_at(config, path)
    # The messages of some packages begin with the value; a path is said wherever it stands.
    is_said = re.match(rf"(is )?'?{re.escape(str(value))}(?![\w.])", message) or (
        isinstance(value, Path) and str(value) in message
    )
    shown = None if dataclasses.is_dataclass(value) or isinstance(value, dict) or is_said else value
    # A problem may be of one key of a table, which is written as a whole.
    written = next((known for known in draft.source if path == known or path.startswith(f"{known}.")), path)
    draft.wrong(path, draft.source.get(written, "default"), message, shown)


def read_recipe(draft: Draft, recipe: Path) -> bool:
    """Flatten a TOML file into the draft; False when it can't be read."""
    try:
        table = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except FileNotFoundError:
        draft.problems.append(f"--recipe {recipe}: no such file")
    except (OSError, UnicodeDecodeError) as error:
        draft.problems.append(f"--recipe {recipe}: can't be read: {error}")
    except (ValueError, RecursionError) as error:
        # A ValueError that is no TOMLDecodeError: a date or number that there is none of.
        draft.problems.append(f"--recipe {recipe}: not valid TOML: {error}")
    else:
        flatten(draft, Config, table, "", str(recipe), recipe.resolve().parent)
        return True
    return False


def flatten(draft: Draft, owner: type, table: Mapping[str, Any], prefix: str, source: str, folder: Path) -> None:
    """Walk a table beside the dataclass it describes; decode leaves, report unknown keys."""
    hints = types_of(owner)
    fields = {f.name: f for f in dataclasses.fields(owner)}
    for key, value in table.items():
        path = f"{prefix}{key}"
        if key not in fields:
            draft.wrong(path, source, "unknown setting" + did_you_mean(path))
            continue
        hint, entry = hints[key], table_type(hints[key])
        if entry is not None or dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                draft.wrong(path, source, f"is a section: write [{path}]", value)
            elif entry is None:
                flatten(draft, hint, value, f"{path}.", source, folder)
            else:
                for name, item in value.items():
                    if "." in name:
                        draft.wrong(f'{path}."{name}"', source, "a name must not contain a dot")
                    elif isinstance(item, Mapping):
                        draft.entries.setdefault(path, {})[name] = None
                        flatten(draft, entry, item, f"{path}.{name}.", source, folder)
                    else:
                        draft.wrong(f"{path}.{name}", source, f"is a section: write [{path}.{name}]", item)
        else:
            put(draft, path, hint, fields[key].metadata, value, source, folder)


def put(draft: Draft, path: str, hint: Any, metadata: Mapping[str, Any], value: Any, source: str, folder: Path) -> None:
    """Decode one leaf into the draft."""
    try:
        if "number_too" in metadata and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        decoded = decode(hint, value)
        is_path = hint is Path or Path in get_args(hint)
        if decoded is not None and (is_path or metadata.keys() & {"path_or_name", "path_or_url"}):
            if draft.needs_files or "$" not in os.path.expandvars(str(decoded)):
                decoded = resolve(str(decoded), folder, is_name_allowed="path_or_name" in metadata)
            decoded = Path(decoded) if is_path else decoded
    except ValueError as error:
        draft.wrong(path, source, str(error), value)
        # The default stands in, so that the checks of all other values still run.
        draft.unread.add(path)
        return
    draft.unread.discard(path)
    draft.values[path] = decoded
    draft.source[path] = source


def decode(hint: Any, value: Any) -> Any:
    """A TOML value, or the text of a command line value, as the type of its field.

    Raises:
        ValueError: saying what was expected.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (option for option in get_args(hint) if option is not type(None))
        return None if value == Text("none") else decode(inner, value)
    if origin is Literal:
        if value not in get_args(hint):
            choices = get_args(hint)
            raise ValueError(f"must be one of {', '.join(map(str, choices))}{close_to(str(value), choices)}")
        return str(value)
    if origin is tuple:
        items = [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, Text) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ValueError("must be a list of strings")
        return tuple(str(item) for item in items)
    if origin is dict:
        return decode_table(get_args(hint)[1], value)
    if isinstance(value, Text) and hint not in (str, Path):
        value = parse_text(hint, value)
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ValueError("must be a number of 64 bits, as TOML has them")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    expected = str if hint is Path else hint
    if type(value) not in (expected, *((Text,) if expected is str else ())):
        raise ValueError(f"must be {TYPE_NAMES[expected]}, not {TYPE_NAMES.get(type(value), 'a table')}")
    return str(value) if expected is str else value


def decode_table(hint: type, value: Any) -> dict[str, Any]:
    """A table of values of one type, from TOML or from the text of an inline table.

    Raises:
        ValueError: saying what was expected.
    """
    example = f'a table such as {{"*.mlp.*" = {"64.0" if hint is float else "64"}}}'
    if isinstance(value, Text):
        try:
            value = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"must be {example}, as in a recipe") from error
    if not isinstance(value, Mapping):
        raise ValueError(f"must be {example}")
    table = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            raise ValueError(f"must be {example}: put {key} and what follows it in quotes")
        try:
            table[key] = decode(hint, item)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    return table


TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", list: "a list"}


class Text(str):
    """A value from the command line, where everything is text."""


def parse_text(hint: type, text: str) -> Any:
    """The number or truth value a command line text stands for; the text itself when it stands for none."""
    try:
        if hint is bool:
            return {"true": True, "false": False}[text.lower()]
        return hint(text)
    except (KeyError, ValueError):
        return str(text)


def read_overrides(draft: Draft, arguments: Sequence[str]) -> None:
    """Decode `--a.b value`, `--a.b=value` and `--a-b.c-d value` into the draft."""
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--"):
            draft.problems.append(f"command line: {argument!r} is no setting; write --section.name value")
            continue
        name, equals, text = argument[2:].partition("=")
        path = ".".join(part if i and is_entry_name(name, i) else part.replace("-", "_")
                        for i, part in enumerate(name.split(".")))  # fmt: skip
        leaf = find_leaf(path)
        if leaf is None:
            draft.wrong(f"--{name}", COMMAND_LINE, "unknown setting" + did_you_mean(path))
            if not equals and remaining and not remaining[0].startswith("--"):
                remaining.pop(0)
            continue
        if not equals:
            if remaining and (not remaining[0].startswith("--")):
                text = remaining.pop(0)
            elif leaf[0] is bool:
                text = "true"
            else:
                draft.wrong(f"--{name}", COMMAND_LINE, "needs a value")
                continue
        put(draft, path, leaf[0], leaf[1], Text(text), COMMAND_LINE, Path.cwd())


def is_entry_name(dotted: str, index: int) -> bool:
    """Whether part `index` of a dotted name is a name the user chose (of a source or task), not a field."""
    parts = [part.replace("-", "_") for part in dotted.split(".")]
    owner: Any = Config
    for part in parts[:index]:
        hint = types_of(owner).get(part) if dataclasses.is_dataclass(owner) else None
        if hint is None:
            return False
        if table_type(hint) is not None:
            return parts.index(part) == index - 1
        owner = hint
    return False


def table_type(hint: Any) -> type | None:
    """The entry's dataclass of a `dict[str, Entry]` field, else None, also for a table of plain values."""
    entry: type | None = get_args(hint)[1] if get_origin(hint) is dict else None
    return entry if entry is not None and dataclasses.is_dataclass(entry) else None


def find_leaf(path: str) -> tuple[Any, Mapping[str, Any]] | None:
    """Type and metadata of the setting at a dotted path, or None when there is none."""
    owner: Any = Config
    parts = path.split(".")
    while parts:
        fields = {f.name: f for f in dataclasses.fields(owner)}
        name = parts.pop(0)
        if name not in fields:
            return None
        hint = types_of(owner)[name]
        if (entry := table_type(hint)) is not None and len(parts) > 1:
            parts.pop(0)
            owner = entry
        elif dataclasses.is_dataclass(hint):
            owner = hint
        else:
            return (hint, fields[name].metadata) if not parts and entry is None else None
    return None


def all_paths(owner: type = Config, prefix: str = "") -> list[str]:
    """Every dotted setting there is; the entries of named tables appear as *."""
    paths = []
    for name, hint in types_of(owner).items():
        if name not in {f.name for f in dataclasses.fields(owner)}:
            continue
        if (entry := table_type(hint)) is not None:
            paths += all_paths(entry, f"{prefix}{name}.*.")
        elif dataclasses.is_dataclass(hint):
            paths += all_paths(hint, f"{prefix}{name}.")  # type: ignore[arg-type]  # narrowed to the class, not an instance
        else:
            paths.append(f"{prefix}{name}")
    return paths


def did_you_mean(path: str) -> str:
    """A suggestion for an unknown dotted setting: the closest of its section, else the same name elsewhere."""
    paths = [with_entry_name(known, path) for known in all_paths()]
    sections = {".".join(p.split(".")[:n]) for p in paths for n in range(1, p.count(".") + 1)}
    parent, _, leaf = path.rpartition(".")
    siblings = {p.rpartition(".")[2] for p in [*paths, *sections] if p.rpartition(".")[0] == parent}
    candidates = [f"{parent}.{name}" if parent else name for name in difflib.get_close_matches(leaf, siblings, 1)]
    candidates += [p for p in paths if p.rpartition(".")[2] == leaf]
    candidates += difflib.get_close_matches(path, [*paths, *sections], 1)
    return f"; did you mean {candidates[0]}?" if candidates else ""


def with_entry_name(known: str, path: str) -> str:
    """A known setting of a named table, with the name that `path` uses in place of *."""
    table, star, setting = known.partition(".*.")
    if not star or not path.startswith(f"{table}."):
        return known
    return f"{table}.{path[len(table) + 1 :].partition('.')[0]}.{setting}"


def close_to(value: str, choices: Sequence[str]) -> str:
    """A suggestion among a field's legal values."""
    matches = difflib.get_close_matches(value, choices, 1)
    return f"; did you mean {matches[0]}?" if matches else ""


def build(owner: type, draft: Draft, prefix: str) -> Any:
    """Construct a dataclass from the draft's values; None when a value without a default is missing."""
    arguments: dict[str, Any] = {}
    hints, complete = types_of(owner), True
    for f in dataclasses.fields(owner):
        path, hint = f"{prefix}{f.name}", hints[f.name]
        if (entry := table_type(hint)) is not None:
            names = dict.fromkeys(p[len(path) + 1 :].split(".")[0] for p in draft.values if p.startswith(f"{path}."))
            names = draft.entries.get(path, {}) | names
            entries = {name: build(entry, draft, f"{path}.{name}.") for name in names}
            if entries:
                complete &= None not in entries.values()
                arguments[f.name] = entries
            elif has_no_default(f):
                complete = False
                draft.problems.append(f"{path}: is empty; add at least one [{path}.NAME]")
        elif dataclasses.is_dataclass(hint):
            section = build(hint, draft, f"{path}.")  # type: ignore[arg-type]  # narrowed to the class, not an instance
            complete &= section is not None
            arguments[f.name] = section
        elif path in draft.values:
            arguments[f.name] = draft.values[path]
        elif has_no_default(f):
            complete = False
            if not any(problem.startswith(path) for problem in draft.problems):
                draft.problems.append(f"{path}: is missing and has no default; set it in the recipe")
    return owner(**arguments) if complete else None


def has_no_default(f: dataclasses.Field[Any]) -> bool:
    """Whether a field must be given."""
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def fill_names(config: Config, draft: Draft) -> Config:
    """Replace settings named in braces in run.dir and run.branch_from by their values."""
    values = to_dict(config)

    def filled(name: str, path: Path) -> Path:
        def value_of(match: re.Match[str]) -> str:
            value: Any = values
            for part in match[1].split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is None or isinstance(value, dict | list):
                report(draft, config, name, f"{{{match[1]}}} is no setting with a value")
                return match[0]
            return str(value).replace("/", "_")

        # Only names in braces: the rest of the path may hold anything.
        return Path(os.path.abspath(re.sub(r"\{([\w.\-]+)\}", value_of, str(path))))

    parent = config.run.branch_from
    run = dataclasses.replace(
        config.run,
        dir=filled("run.dir", config.run.dir),
        branch_from=None if parent is None else filled("run.branch_from", parent),
    )
    return dataclasses.replace(config, run=run)
