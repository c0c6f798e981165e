"""A sweep's TOML file: what it may say, decoded as the settings it names, or everything that is wrong with it."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

from launch.sweep.names import METHOD, path_safe, text_of
from training.recipe import ConfigError, Draft, Text, did_you_mean, find_leaf, put, show

KEYS = ("recipe", "ds_config", "root", "settings", "grid", "methods", "skip")
RESERVED = ("run.dir",)
"""Settings that the sweep itself gives to its cells."""

Axes = dict[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A named group of settings."""

    name: str
    settings: dict[str, Any]
    """Of all its cells."""
    axes: Axes
    """Its own: instead of those of the grid, or more of them."""
    recipe: Path | None = None
    """Its own instead of the sweep's."""


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a sweep's file says, decoded; paths are absolute."""

    file: Path
    recipe: Path | None
    """None: every method has its own."""
    ds_config: Path | None
    root: Path
    settings: dict[str, Any]
    grid: Axes
    methods: tuple[Method, ...]
    """Empty where the file has no [methods]."""
    skip: tuple[dict[str, list[Any]], ...]
    """Each leaves out the cells that have, for all its names (axes or method), one of the values."""


@dataclass
class _Reader:
    """Decodes values one after another and collects what is wrong."""

    file: Path
    problems: list[str] = field(default_factory=list)

    def setting(self, path: str, value: Any) -> Any:
        """The value as the type of its setting; None, and a problem, where it can't be."""
        leaf = find_leaf(path)
        assert leaf is not None
        draft = Draft()
        put(draft, path, *leaf, value, self.file.name, self.file.parent)
        self.problems += draft.problems
        decoded = draft.values.get(path)
        if not draft.problems and not self._is_passed_on(path, decoded):
            self.wrong(f"{path} = {show(value)}", "can't be written on a run's command line; set it in the recipe")
        return decoded

    def _is_passed_on(self, path: str, value: Any) -> bool:
        """Whether a run that is given the value as text, on a line of its own, reads the same value."""
        leaf, text, draft = find_leaf(path), text_of(value), Draft()
        assert leaf is not None
        if text.startswith("--") or len(text.splitlines()) > 1:
            return False
        put(draft, path, *leaf, Text(text), self.file.name, self.file.parent)
        return not draft.problems and bool(draft.values[path] == value)

    def wrong(self, what: str, message: str) -> None:
        """Note a problem of something in the file."""
        self.problems.append(f"{what} ({self.file.name}): {message}")


def read_definition(file: Path) -> Definition:
    """Read and decode a sweep's file.

    Raises:
        ConfigError: with everything that is wrong in it.
    """
    file = file.absolute()
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError([f"{file}: no such file"]) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file}: can't be read: {error}"]) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{file}: not valid TOML: {error}"]) from error
    reader = _Reader(file)
    for key in table.keys() - set(KEYS):
        close = difflib.get_close_matches(key, KEYS, 1)
        hint = f"did you mean {close[0]}?" if close else f"a sweep has {', '.join(KEYS)}"
        reader.wrong(key, f"unknown key; {hint}" + ("; settings of runs go in [settings]" if not close else ""))
    root = _path(reader, table, "root")
    ds_config = _path(reader, table, "ds_config") if "ds_config" in table else None
    methods = tuple(_methods(reader, table))
    has_recipes = bool(methods) and all(method.recipe for method in methods)
    recipe = None if has_recipes and "recipe" not in table else _path(reader, table, "recipe")
    recipes = [("recipe", recipe), *((f"methods.{method.name}.recipe", method.recipe) for method in methods)]
    for key, named in [*recipes, ("ds_config", ds_config)]:
        if named is not None and not named.is_file():
            reader.wrong(f'{key} = "{named}"', "no such file")
    if root is not None and "{" in str(root):
        reader.wrong(f'root = "{root}"', "has braces; the cells are its folders, by their names")
    settings = {
        path: reader.setting(path, value) for path, value in _settings(reader, table.get("settings", {}), "settings")
    }
    grid = {
        path: _values(reader, path, value, "grid") for path, value in _settings(reader, table.get("grid", {}), "grid")
    }
    for path in settings.keys() & grid.keys():
        reader.wrong(path, "is in [settings] and in [grid]; keep one of them")
    if not grid and not methods and not reader.problems:
        reader.wrong(
            "grid", "there is neither [grid] nor [methods], so there is nothing to compare; start the recipe itself"
        )
    axes = [*grid, *(path for method in methods for path in method.axes)]
    skip = tuple(_skips(reader, table, axes, [method.name for method in methods]))
    if reader.problems:
        raise ConfigError(reader.problems)
    assert root is not None
    return Definition(
        file=file,
        recipe=recipe,
        ds_config=ds_config,
        root=root,
        settings=settings,
        grid=grid,
        methods=methods,
        skip=skip,
    )


def _path(reader: _Reader, table: Mapping[str, Any], key: str, name: str | None = None) -> Path | None:
    """A path relative to the file; None, and a problem, where there is none."""
    value, name = table.get(key), name or key
    if not isinstance(value, str) or not value:
        what = {"recipe": "the TOML file of the runs", "root": "the folder of the cells' run directories"}
        reader.wrong(name, f"is missing: {what[key]}" if value is None else f"is {show(value)}; must be a path")
        return None
    # As a setting that is a path is read: ~ and $VARIABLES are expanded.
    draft = Draft()
    put(draft, name, Path, {}, value, reader.file.name, reader.file.parent)
    reader.problems += draft.problems
    return draft.values.get(name)


def _settings(reader: _Reader, table: Any, section: str) -> Iterator[tuple[str, Any]]:
    """The settings of a section as dotted paths, which may be written in quotes or as nested tables."""
    if isinstance(table, Mapping):
        yield from _flat(reader, table, "", section)
    else:
        reader.wrong(f"{section} = {show(table)}", f"is a section: write [{section}]")


def _flat(reader: _Reader, table: Mapping[str, Any], prefix: str, section: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        path = f"{prefix}{key}"
        if path in RESERVED:
            reader.wrong(
                f"{section}.{path}", "is what the sweep gives to its cells: root, and the cell's name; set root"
            )
        elif find_leaf(path) is not None:
            yield path, value
        elif isinstance(value, Mapping):
            yield from _flat(reader, value, f"{path}.", section)
        else:
            reader.wrong(f"{section}.{path}", "unknown setting" + did_you_mean(path))


def _values(reader: _Reader, path: str, values: Any, section: str) -> list[Any]:
    """The values of an axis, decoded."""
    what = f"{section}.{path}"
    if not isinstance(values, list):
        reader.wrong(f"{what} = {show(values)}", "must be a list of values; one value for all cells goes in [settings]")
        return []
    if not values:
        reader.wrong(what, "is empty; an axis needs a value or more")
    before = len(reader.problems)
    decoded = [reader.setting(path, value) for value in values]
    if len(reader.problems) == before:
        for index, value in enumerate(decoded):
            if value in decoded[:index]:
                reader.wrong(what, f"has {show(value)} twice")
    return decoded


def _methods(reader: _Reader, table: Mapping[str, Any]) -> Iterator[Method]:
    section = table.get("methods", {})
    if not isinstance(section, Mapping):
        reader.wrong(f"methods = {show(section)}", "is a section: write [methods.NAME]")
        return
    for name, content in section.items():
        if not name or path_safe(name) != name or name.startswith((".", "-")):
            reader.wrong(
                f'methods."{name}"', "is part of folders' names: use letters, digits, and . _ + - between them"
            )
        settings: dict[str, Any] = {}
        axes: Axes = {}
        recipe = None
        if isinstance(content, Mapping) and "recipe" in content:
            recipe = _path(reader, content, "recipe", f"methods.{name}.recipe")
            content = {key: value for key, value in content.items() if key != "recipe"}
        for path, value in _settings(reader, content, f"methods.{name}"):
            if _is_axis(path, value):
                axes[path] = _values(reader, path, value, f"methods.{name}")
            else:
                settings[path] = reader.setting(path, value)
        yield Method(name=name, settings=settings, axes=axes, recipe=recipe)


def _is_axis(path: str, value: Any) -> bool:
    """Whether a value in a method is a list of values, also where one value is a list itself."""
    leaf = find_leaf(path)
    assert leaf is not None
    if not isinstance(value, list):
        return False
    return get_origin(leaf[0]) is not tuple or (bool(value) and all(isinstance(item, list) for item in value))


def _skips(
    reader: _Reader, table: Mapping[str, Any], axes: list[str], methods: list[str]
) -> Iterator[dict[str, list[Any]]]:
    entries = table.get("skip", [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        reader.wrong("skip", "is a list of sections: write [[skip]]")
        return
    for number, entry in enumerate(entries, start=1):
        what = f"skip {number}"
        if not entry:
            reader.wrong(what, "is empty, and would leave out every cell")
        conditions: dict[str, list[Any]] = {}
        for path, value in _pairs(entry, [*axes, METHOD]):
            values = value if isinstance(value, list) else [value]
            if path == METHOD:
                for unknown in (each for each in values if each not in methods):
                    reader.wrong(
                        f"{what}: method = {show(unknown)}",
                        f"there is no such method; there are {', '.join(methods) or 'none'}",
                    )
                conditions[METHOD] = values
            elif path in axes:
                conditions[path] = [reader.setting(path, each) for each in values]
            else:
                reader.wrong(
                    f"{what}: {path}",
                    f"is no axis; there are {', '.join([METHOD] * bool(methods) + list(dict.fromkeys(axes)))}",
                )
        yield conditions


def _pairs(entry: Mapping[str, Any], known: list[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The names and values of a table, also where it is written as nested tables."""
    for key, value in entry.items():
        path = f"{prefix}{key}"
        if path not in known and isinstance(value, Mapping):
            yield from _pairs(value, known, f"{path}.")
        else:
            yield path, value
