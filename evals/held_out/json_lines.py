"""Records of held-out JSONL files, with an id each, under which scores are paired between models."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.errors import EvalError


@dataclass(frozen=True)
class Record:
    """The texts of one line by their fields' names, and its id, by default the line's number."""

    id: str
    texts: dict[str, str]


def read_records(path: Path, fields: Sequence[str]) -> list[Record]:
    """All records of a file, in its order.

    Args:
        path: JSONL or JSONL.gz with an object on each line.
        fields: the names of its fields that are read; each must hold text.

    Raises:
        EvalError: the file is missing, or a line is not such an object, or an id comes twice.
    """
    records: dict[str, Record] = {}
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                record = _parse(line, number, path, fields)
                if record.id in records:
                    raise EvalError(
                        f"{path}:{number}: the id {record.id!r} is used twice; scores are paired by id, make ids unique"
                    )
                records[record.id] = record
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise EvalError(f"{path}: cannot be read as JSONL text ({error}); check the path and the encoding") from error
    return list(records.values())


def _parse(line: str, number: int, path: Path, fields: Sequence[str]) -> Record:
    expected = f"each line must be an object with {', '.join(fields)} and id"
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EvalError(f"{path}:{number}: not JSON ({error}); {expected}") from None
    texts: dict[str, str] = {}
    for name in fields:
        text = content.get(name) if isinstance(content, dict) else None
        if not isinstance(text, str):
            raise EvalError(f"{path}:{number}: no {name} string on this line; {expected}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EvalError(
                f"{path}:{number}: {name} is not valid Unicode ({error.reason}); repair or remove the document"
            ) from None
        texts[name] = text
    return Record(str(content.get("id", number)), texts)
