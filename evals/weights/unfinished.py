"""Rows of a comparison that is not finished, kept beside its output so that a second start goes on where the first was stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from evals.errors import EvalError
from evals.json_text import parse_json


class UnfinishedRows:
    """A file of one JSON object per line: what is compared, then a row per matrix. Used as a context."""

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        """Read the rows of an earlier start of the same comparison; those of another, and half a line, are dropped.

        Args:
            out: where the result will be; the rows are beside it.
            identity: what the result depends on, as JSON values.
        """
        self._path = out.with_name(f".{out.name}.rows.jsonl")
        header = json.loads(json.dumps(identity))
        lines = _whole_lines(self._path)
        self.rows: dict[str, dict[str, Any]] = {}
        if lines and lines[0] == header:
            self.rows = rows_by_name(lines[1:])
        self._header = header
        self._file: TextIO | None = None

    def __enter__(self) -> UnfinishedRows:
        """Open the file for more rows.

        Raises:
            EvalError: it can't be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Written again, without what was dropped.
            self._file = self._path.open("w", encoding="utf-8")
        except OSError as error:
            raise EvalError(f"{self._path}: cannot be written ({error.strerror}); remove it") from error
        self._append(self._header)
        for row in self.rows.values():
            self._append(row)
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        assert self._file is not None
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row for good."""
        self._append(row)

    def remove(self) -> None:
        """Delete the file, when the result is written."""
        self._path.unlink(missing_ok=True)

    def _append(self, content: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(content) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def rows_by_name(rows: Any) -> dict[str, dict[str, Any]]:
    """The rows of a document by the matrix that each is of; what is none is left out, the last of a name counts."""
    found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return {row["name"]: row for row in found if isinstance(row.get("name"), str)}


def _whole_lines(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            found.append(parse_json(line))
        except ValueError:
            break
    return found
