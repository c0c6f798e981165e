"""What was read before, in a file of one line per item: only files that changed are read again.

An item's key names its files with their sizes and times, so an old item is never taken for a new one. A cache that is
damaged, or was written by another version, counts as empty as far as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evals.errors import EvalError

VERSION = 3
"""Changes with what is kept of a file."""
ELSEWHERE = "give a folder of your own with --out"


def read_cache(path: Path) -> dict[str, Any]:
    """Key -> item."""
    items: dict[str, Any] = {}
    try:
        with open(path, encoding="utf-8") as file:
            if _parsed(file.readline()) != ["collect", VERSION]:
                return {}
            for line in file:
                match _parsed(line):
                    case [str(key), dict(item)]:
                        items[key] = item
    except (OSError, UnicodeDecodeError):
        return items
    return items


def write_cache(path: Path, items: Mapping[str, Any]) -> None:
    """Write all items; readers see the whole file or the one before.

    Raises:
        EvalError: storage does not take it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(["collect", VERSION]) + "\n")
            file.writelines(json.dumps([key, item]) + "\n" for key, item in items.items())
        os.replace(temporary, path)
    except OSError as error:
        raise not_written(error, path) from error


def not_written(error: OSError, path: Path) -> EvalError:
    """What to say where a file of the result, or the one at `path` if the error names none, can't be written."""
    return EvalError(f"{error.filename or path}: cannot be written ({error.strerror}); {ELSEWHERE}")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
