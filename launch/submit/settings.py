"""Overrides on their way into a batch script, which runs in another folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from training.recipe import Draft, find_leaf, read_overrides

WIDTH = 119


def absolute(overrides: Sequence[str]) -> list[str]:
    """The same settings with paths that are relative to the working directory written in full.

    What can't be read stays as it is; `load_config` says what is wrong with it.
    """
    settings: list[list[str]] = []
    for word in overrides:
        if word.startswith("--") or not settings:
            settings.append([word])
        else:
            settings[-1].append(word)
    return [word for setting in settings for word in _absolute(setting)]


def _absolute(setting: list[str]) -> list[str]:
    draft = Draft(needs_files=False)
    read_overrides(draft, setting)
    if draft.problems or len(draft.values) != 1:
        return setting
    ((path, value),) = draft.values.items()
    leaf = find_leaf(path)
    is_path = isinstance(value, Path) or (leaf is not None and leaf[1].keys() & {"path_or_name", "path_or_url"})
    return [f"--{path}", str(value)] if is_path and value is not None else setting


def shell_line(words: Iterable[str]) -> str:
    """A command for the shell, whatever is in its words; a long one goes on below, an option on each line."""
    quoted = [shlex.quote(word) for word in words]
    line = " ".join(quoted)
    if len(line) <= WIDTH:
        return line
    return "".join(f" \\\n    {word}" if word.startswith("--") and n else f" {word}" for n, word in enumerate(quoted))[
        1:
    ]
