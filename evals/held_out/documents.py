"""Held-out documents: read from JSONL, drawn with a seed."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path

from evals.errors import EvalError


@dataclass(frozen=True)
class Document:
    """A held-out text and the id under which its scores are paired between models."""

    id: str
    text: str


def draw_documents(path: Path, *, seed: int, max_bytes: int = 0) -> list[Document]:
    """All non-empty documents of a JSONL file in a seeded random order, each cut to `max_bytes` UTF-8 bytes.

    The order does not depend on how many of them the caller takes: 100 examples are a subset of 200.

    Args:
        path: JSONL (or JSONL.gz) with `text` and optionally `id` on each line; the default id is the line number.
        seed: seed of the order.
        max_bytes: bytes kept of each document, cut at a character; 0 keeps all.

    Raises:
        EvalError: the file is missing, has no documents, or a line is not such an object.
    """
    cut = [Document(doc.id, _cut(doc.text, max_bytes)) for doc in _read(Path(path))]
    documents = [doc for doc in cut if doc.text]
    if not documents:
        raise EvalError(f"{path}: no documents with text in this file; give a JSONL file with text and id on each line")
    random.Random(seed).shuffle(documents)
    return documents


def _read(path: Path) -> list[Document]:
    documents: dict[str, Document] = {}
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                doc = _parse(line, number, path)
                if doc.id in documents:
                    raise EvalError(
                        f"{path}:{number}: the id {doc.id!r} is used twice; scores are paired by id, make ids unique"
                    )
                documents[doc.id] = doc
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise EvalError(f"{path}: cannot be read as JSONL text ({error}); check the path and the encoding") from error
    return list(documents.values())


def _parse(line: str, number: int, path: Path) -> Document:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise EvalError(f"{path}:{number}: not JSON ({error}); each line must be an object with text and id") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise EvalError(f"{path}:{number}: no text string on this line; each line must be an object with text and id")
    text = record["text"]
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EvalError(
            f"{path}:{number}: text is not valid Unicode ({error.reason}); repair or remove the document"
        ) from None
    return Document(str(record.get("id", number)), text)


def _cut(text: str, max_bytes: int) -> str:
    return text.encode()[:max_bytes].decode(errors="ignore") if max_bytes else text
