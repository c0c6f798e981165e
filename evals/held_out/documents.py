"""Held-out documents: read from JSONL, drawn with a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from evals.errors import EvalError
from evals.held_out.json_lines import read_records


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
    cut = [Document(record.id, _cut(record.texts["text"], max_bytes)) for record in read_records(Path(path), ["text"])]
    documents = [doc for doc in cut if doc.text]
    if not documents:
        raise EvalError(f"{path}: no documents with text in this file; give a JSONL file with text and id on each line")
    random.Random(seed).shuffle(documents)
    return documents


def _cut(text: str, max_bytes: int) -> str:
    return text.encode()[:max_bytes].decode(errors="ignore") if max_bytes else text
