"""Where files are, hashing them, and writing files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_CHUNK = 1 << 20


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
        ValueError: an environment variable in it is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(text))
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise ValueError(f"the environment variable {unset[1]} is not set")
    if is_url(expanded):
        return expanded
    # A name is name or owner/name; anything else, or below a folder that exists, is meant as a path.
    could_be_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", expanded) and not expanded.startswith((".", "~"))
    if is_name_allowed and could_be_name and not (folder / expanded.split("/")[0]).is_dir():
        return expanded
    return os.path.normpath(folder / expanded)


def sha256_of(path: Path) -> str:
    """The hex sha256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


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
