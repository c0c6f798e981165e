"""Where files are, hashing them, and writing files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 20
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095
"""What Linux takes as the name of a file and as a path."""


def is_url(location: str) -> bool:
    """Whether a location is a URL (of fsspec) and not a path."""
    return "://" in location


def resolve(text: str, folder: Path, *, is_name_allowed: bool = False) -> str:
    """An absolute path, or a URL or the name of a Hugging Face dataset as it is.

    Args:
        text: as written; `~` and `$VARIABLES` are expanded.
        folder: what a relative path is relative to.
        is_name_allowed: whether `name` and `owner/name` are names unless there is such a folder.

    Raises:
        ValueError: an environment variable in it is not set, or it can be no path.
    """
    expanded = os.path.expanduser(os.path.expandvars(text))
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise ValueError(f"the environment variable {unset[1]} is not set")
    if "\0" in expanded or len(os.fsencode(expanded)) > MAX_PATH_BYTES:
        raise ValueError(f"is no path: it has a zero byte, or more than {MAX_PATH_BYTES:,} bytes")
    if (longest := max(len(os.fsencode(part)) for part in expanded.split("/"))) > MAX_NAME_BYTES:
        raise ValueError(f"is no path: a name in it has {longest:,} bytes, above {MAX_NAME_BYTES}")
    if is_url(expanded):
        return expanded
    # A name is name or owner/name; anything else, or below a folder that exists, is meant as a path.
    could_be_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", expanded) and not expanded.startswith((".", "~"))
    if is_name_allowed and could_be_name and not os.path.isdir(folder / expanded.split("/")[0]):
        return expanded
    return os.path.normpath(folder / expanded)


def looked_at(name: str, problems: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield problems that are found by looking at paths; that one of them can't be looked at is a problem of the setting `name`."""
    try:
        yield from problems
    except OSError as error:
        yield name, unseen(error)


def unseen(error: OSError) -> str:
    """Which path can't be looked at, and why."""
    return f"{error.filename} can't be looked at: {error.strerror}"


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """The value in a file of JSON.

    Raises:
        OSError: it can't be read.
        ValueError: it is no JSON in UTF-8, or nested too deep.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk and rename it to `path`.

    Several writers of one path may race: each has its own temporary file and the last rename wins.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            # mkstemp makes private files; shared storage is read by the group.
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
